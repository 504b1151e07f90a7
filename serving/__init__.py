"""HTTP: the OpenAI-compatible API over Ray Serve. Knows no training code; importing it does nothing."""
