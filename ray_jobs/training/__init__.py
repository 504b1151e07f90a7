"""Training: the loop, its batches, its checkpoints and its Ray workers. Runs without Ray when called directly."""
