"""How many tokens a model reads at once, from its configuration. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_AFTER_PADDING = frozenset(
    {"camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
     "xlm-roberta", "xlm-roberta-xl", "xmod"}
)  # fmt: skip
"""Models whose positions begin after the number of the padding token."""


def longest_sequence(config: Mapping[str, Any]) -> int | None:
    """Tokens of the longest sequence that the model has positions for. None: its configuration sets no limit."""
    inner = config.get("text_config")
    places = [config, *([inner] if isinstance(inner, Mapping) else [])]
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    found = [place[name] for place in places for name in names if isinstance(place.get(name), int)]
    if not found or found[0] <= 0:
        return None
    if config.get("model_type") in _AFTER_PADDING:
        return int(found[0]) - int(config.get("pad_token_id") or 0) - 1
    return int(found[0])


def capped(tokens: int, longest: int | None) -> int:
    """A number of tokens, or as many as a model reads at once if that is less. None: no limit is known."""
    return tokens if longest is None else min(tokens, longest)
