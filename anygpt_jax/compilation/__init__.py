"""What a compiled program costs on a TPU slice or GPUs that are not there."""
