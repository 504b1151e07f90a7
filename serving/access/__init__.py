"""Access: API keys, teams and rate limits of requests."""
