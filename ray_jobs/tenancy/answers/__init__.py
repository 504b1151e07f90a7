"""Stored answers of models: their records, the teams that store none, and rows for training made from them."""
