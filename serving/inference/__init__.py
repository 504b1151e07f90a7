"""Inference: resolves a model name to the Serve application that answers, and calls it. Knows no HTTP routes."""
