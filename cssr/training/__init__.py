"""Training: the run and its loop, one optimizer step, checkpoints, validation, and what keeps a run going."""
