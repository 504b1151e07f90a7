"""Tenancy: API keys, usage and webhooks of teams."""
