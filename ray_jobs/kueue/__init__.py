"""Kueue: its objects, and what a queue holds, lacks and could admit. Pure."""
