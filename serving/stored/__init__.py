"""Stored answers: what is kept of chat completions and responses, and how it is written, read and deleted."""
