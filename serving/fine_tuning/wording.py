"""Messages of a job's runner in the words of the API's callers.

Owns what a caller sees instead of the operator's: actions of the API for commands, and no addresses, files or nodes of
the cluster. Pure.
"""

from __future__ import annotations

import re

_ACTIONS = ("resume", "pause", "cancel")
_COMMAND = re.compile(r"`kitae (?P<command>[a-z]+)[^`]*`")
_ASIDE = re.compile(r" \(`kitae [^`]*`\)")
_INSIDE = (
    (re.compile(r"\bs3://[^\s,;:)'\"]+"), "the store"),
    (re.compile(r"\bhttps?://[^\s,;)'\"]+"), "an address of the cluster"),
    (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"), "a machine"),
    (re.compile(r"\b[0-9a-f]{40,}\b"), "…"),
    (re.compile(r"\b[a-z0-9-]+(?:\.[a-z0-9-]+)*\.(?:svc|internal|local)(?:\.[a-z.]+)?(?::\d+)?\b"), "a machine"),
    (re.compile(r"\bip-\d+-\d+-\d+-\d+\b"), "a machine"),
    (re.compile(r"(?<![\w/.:<])/(?!v1/)(?:[\w.+@=-]+/)+[\w.+@=-]*"), "a file"),
)


def for_callers(message: str, job_id: str) -> str:
    """A message without commands, files, nodes or addresses of the cluster. `job_id`: the job's id in the API."""

    def action(found: re.Match[str]) -> str:
        if found["command"] in _ACTIONS:
            return f"`POST /v1/fine_tuning/jobs/{job_id}/{found['command']}`"
        return "the operator"

    shown = _COMMAND.sub(action, _ASIDE.sub("", message))
    for inside, instead in _INSIDE:
        shown = inside.sub(instead, shown)
    return shown
