"""Observability: metrics, the request log and the usage ledger. Knows no routes."""
