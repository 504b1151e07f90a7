"""Observability: metrics, request logs and usage counts."""
