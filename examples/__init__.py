"""The examples: job files, and what brings their real models and rows onto a machine."""
