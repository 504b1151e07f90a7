"""Routes of OpenAI's API, and of clients that call it, which Kitae does not have: 400 with what to use instead.

400 and not 404: proxies take a 404 for a missing model and stop sending any requests to it.
"""

from __future__ import annotations

_CHAT = "use /v1/chat/completions"
INSTEAD = {
    "/v1/conversations": f"{_CHAT} and send the whole conversation",
    "/v1/assistants": _CHAT,
    "/v1/threads": f"{_CHAT} and send the whole conversation",
    "/v1/chatkit": _CHAT,
    "/v1/realtime": f"{_CHAT} with stream: true",
    "/v1/messages": f"{_CHAT}; this is Anthropic's path",
    "/v1/edits": _CHAT,
    "/v1/engines": "use /v1/models",
    "/v1/fine-tunes": "use /v1/fine_tuning/jobs",
    "/v1/moderations": "train a text_classification model on your own rules and use /v1/classify",
    "/v1/rerank": "use /v1/embeddings and compare the vectors",
    "/v1/score": "use /v1/embeddings and compare the vectors",
    "/v1/vector_stores": "use /v1/embeddings and keep the vectors in your own database",
    "/v1/images": "the models here answer with text",
    "/v1/audio": "the models here answer with text",
    "/v1/videos": "the models here answer with text",
    "/v1/containers": "nothing here runs code",
    "/v1/skills": "nothing here runs code",
    "/v1/organization": "`kitae keys`, `kitae usage` and `kitae quota` are the operator's commands for this",
    "/v1/projects": "`kitae keys`, `kitae usage` and `kitae quota` are the operator's commands for this",
    "/openai/deployments": "use OpenAI's client, or Azure's with the base URL ending in /openai/v1, and name the "
    "model in the body",
}
"""Path → what to do instead. A path stands for all that are below it."""
POSTS = {
    "/v1/responses/input_tokens": "send the request with max_output_tokens: 1 and read its usage",
    "/v1/responses/compact": "set truncation: auto, or send fewer items",
    "/v1/responses/{}/cancel": "close the stream: there are no responses in the background",
}
"""Paths that exist only for POST, below paths that Kitae has; `{}` stands for an id."""


def instead_of(method: str, path: str) -> tuple[str, str] | None:
    """The entry for a path: the path that it names, and what to do instead. Pure."""
    if method == "POST":
        for name, text in POSTS.items():
            start, _, end = name.partition("{}")
            if path == name or ("{}" in name and path.startswith(start) and path.endswith(end)):
                return path, text
    return next(((name, text) for name, text in INSTEAD.items() if path == name or path.startswith(f"{name}/")), None)
