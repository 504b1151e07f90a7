"""Evaluation: scores of the tuned model and its base, the gate, parity with the engine, and published checkpoints."""
