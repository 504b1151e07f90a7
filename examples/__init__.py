"""The examples: job files, and downloads of their models and rows."""
