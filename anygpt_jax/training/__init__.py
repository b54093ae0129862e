"""Training: its config, the state, the step, the loop and the log."""
