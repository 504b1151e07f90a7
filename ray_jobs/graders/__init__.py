"""Graders: what judges a model's answer, in the shapes of OpenAI's API. Pure: models are called through `ModelCalls`.

Knows no store, no HTTP and no engine.
"""
