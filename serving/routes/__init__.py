"""Routes: one file a resource; request validation only."""
