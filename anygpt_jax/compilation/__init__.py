"""What a compiled program costs on a TPU slice that is not there."""
