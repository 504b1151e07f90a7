"""Batches: files of requests that are answered while nobody else uses the engines. Knows no HTTP routes."""
