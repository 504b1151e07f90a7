"""Routes: a file a resource; they validate requests and call the rooms below."""
