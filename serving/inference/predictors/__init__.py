"""Predictors: models that answer without generating tokens, a file a task."""
