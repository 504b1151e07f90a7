"""Rows in, a registered model out: ingest, train, evaluate, register. Importing this package does nothing."""

__version__ = "0.2.0"
