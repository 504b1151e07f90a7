"""Teams' API keys, usage and webhooks. Knows no HTTP routes and counts no limits."""
