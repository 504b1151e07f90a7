"""Evaluation: the candidate, both models' scores, the gates and published checkpoints. Trains nothing."""
