"""Imports from OpenAI's API: files, fine-tuning jobs, evals and stored completions, and a replay of the answers."""
