"""Access: API keys, callers, body sizes and rate limits. Knows no routes beyond their paths."""
