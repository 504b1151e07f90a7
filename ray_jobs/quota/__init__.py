"""Quotas of teams: what they use, what another quota would change, what past jobs cost. Knows no client and no CLI."""
