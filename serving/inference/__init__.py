"""Inference: a model's name resolved to the replica that answers."""
