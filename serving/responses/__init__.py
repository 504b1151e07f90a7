"""The Responses API: its requests as chat completions, and chat answers as its objects and events."""
