"""Training: the loop, its optimizer step, batches and checkpoints, and its Ray workers. Runs without Ray as well."""
