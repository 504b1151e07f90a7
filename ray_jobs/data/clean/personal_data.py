"""Personal data and secrets in a text, with their offsets: the detectors and what overlaps.

Knows texts and kinds; no rows, files or tasks. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ray_jobs.data.clean.finding import Detector, Finding, FoldedText
from ray_jobs.data.clean.network import find_emails, find_ip_addresses
from ray_jobs.data.clean.numbers import find_numbers
from ray_jobs.data.clean.secret_keys import find_api_keys, find_private_keys
from ray_jobs.data.clean.street_address import find_addresses
from ray_jobs.spec.personal_data import ALL_KINDS

DETECTORS: tuple[Detector, ...] = (
    find_private_keys,
    find_api_keys,
    find_emails,
    find_numbers,
    find_addresses,
    find_ip_addresses,
)

_SIGN = re.compile("[0-9０-９@＠一二三四五六七八九十百\U0001d7ce-\U0001d7ff]")
"""A text without one of these has no finding of any detector, but for keys and passwords of URLs."""

_RANK = {kind: rank for rank, kind in enumerate(ALL_KINDS)}


def find(text: str, label: str = "", detectors: Sequence[Detector] = DETECTORS) -> list[Finding]:
    """Findings in the order of the text, without overlaps: the more specific kind wins, then the longer value.

    `label` is read as standing before the text, such as the name of its field. Time is linear in the text's length.
    """
    if detectors is DETECTORS and _SIGN.search(text) is None and "PRIVATE KEY" not in text and "://" not in text:
        return []
    prefix = f"{label}: " if label else ""
    folded = FoldedText(prefix + text)
    found = {finding for detector in detectors for finding in detector(folded) if finding.start >= len(prefix)}
    if len(found) > 1:
        found = _without_overlaps(found, len(prefix) + len(text))
    return sorted(
        (Finding(kind, start - len(prefix), end - len(prefix)) for kind, start, end in found),
        key=lambda finding: finding.start,
    )


def _without_overlaps(found: set[Finding], length: int) -> set[Finding]:
    taken, kept = bytearray(length), set[Finding]()
    for finding in sorted(found, key=lambda each: (_RANK[each.kind], each.start - each.end, each.start)):
        if taken.find(1, finding.start, finding.end) < 0:
            taken[finding.start : finding.end] = b"\x01" * (finding.end - finding.start)
            kept.add(finding)
    return kept
