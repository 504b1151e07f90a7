"""Secrets: keys and tokens by their prefixes, values beside words such as `password`, and private keys.

The prefixes are those that the issuers publish for secret scanning.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from ray_jobs.data.clean.finding import Finding, FoldedText
from ray_jobs.data.clean.folding import fold

_TOKEN_END = r"(?![A-Za-z0-9_-])"
_PREFIXED: tuple[tuple[str, str], ...] = (
    ("sk-", r"(?:[a-z0-9]{2,8}-){0,3}[A-Za-z0-9_-]{20,240}"),  # OpenAI, Anthropic, OpenRouter, DeepSeek
    ("AKIA", r"[A-Z0-9]{16}"),  # AWS
    ("ASIA", r"[A-Z0-9]{16}"),
    ("gh", r"[pousr]_[A-Za-z0-9]{36,255}"),  # GitHub
    ("github_pat_", r"[A-Za-z0-9_]{22,255}"),
    ("glpat-", r"[A-Za-z0-9_-]{20,64}"),  # GitLab
    ("xox", r"[abprs]-[A-Za-z0-9-]{10,250}"),  # Slack
    ("xapp-", r"[A-Za-z0-9-]{10,250}"),
    ("https://hooks.slack.com/services/", r"T[A-Za-z0-9_]{6,16}/B[A-Za-z0-9_]{6,16}/[A-Za-z0-9_]{16,32}"),
    ("AIza", r"[A-Za-z0-9_-]{35}"),  # Google
    ("ya29.", r"[A-Za-z0-9_-]{20,250}"),
    ("GOCSPX-", r"[A-Za-z0-9_-]{28}"),
    ("sk_", r"(?:live|test)_[A-Za-z0-9]{16,250}"),  # Stripe
    ("rk_", r"(?:live|test)_[A-Za-z0-9]{16,250}"),
    ("whsec_", r"[A-Za-z0-9+/=]{24,80}"),
    ("eyJ", r"[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,1000}"),  # JSON Web Tokens
    ("hf_", r"[A-Za-z0-9]{30,64}"),  # Hugging Face
    ("npm_", r"[A-Za-z0-9]{36}"),
    ("pypi-", r"AgE[A-Za-z0-9_-]{50,250}"),
    ("SG.", r"[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}"),  # SendGrid
    ("gsk_", r"[A-Za-z0-9]{40,64}"),  # Groq
    ("xai-", r"[A-Za-z0-9]{40,100}"),
    ("dapi", r"[a-f0-9]{32}(?:-[0-9])?"),  # Databricks
    ("shpat_", r"[a-fA-F0-9]{32}"),  # Shopify
    ("dop_v1_", r"[a-f0-9]{64}"),  # DigitalOcean
    ("lin_api_", r"[A-Za-z0-9]{32,64}"),  # Linear
    ("ntn_", r"[A-Za-z0-9]{40,60}"),  # Notion
    ("key-", r"[a-f0-9]{32}"),  # Mailgun
)
_COMPILED = tuple(
    (prefix, re.compile(rf"(?<![A-Za-z0-9_-]){re.escape(prefix)}{body}{_TOKEN_END}")) for prefix, body in _PREFIXED
)

_WORDS = (
    r"api[_ -]?key|access[_ -]?key|secret[_ -]?key|secret[_ -]?access[_ -]?key|account[_ -]?key|client[_ -]?secret"
    r"|auth[_ -]?token|access[_ -]?token|refresh[_ -]?token|bearer|token|secret|password|passwd|passphrase|pwd"
    r"|パスワード|パスフレーズ|暗証|apiキー|アクセスキー|シークレットキー?|秘密鍵|トークン|認証キー"
)
_BESIDE_WORD = re.compile(
    rf"(?:bearer |(?:{fold(_WORDS)})(?![a-z])['\"`]? ?(?:[:=]{{1,2}}>?|(?:is|was|は|が|:)[ :]?)[ \n]?)"
    r"[「『\"'`]?(?P<value>[!-&*-;=?-_a-~]{8,200})"
)
_WORD_MARKS = tuple(
    map(fold, ("key", "token", "secret", "pass", "pwd", "bearer", "パス", "暗証", "キー", "トークン", "秘密鍵"))
)
_NO_VALUE = re.compile(
    r"(?:[a-z]+[_.-])*[a-z]+[0-9]{0,3}|.*(?:your|example|xxxx|\*\*\*|\.\.\.|<|\{|\$|\(|placeholder|changeme|environ).*"
    r"|https?:.*|/.*|[0-9a-z]+\[.*|\[[A-Z_]{5,20}_[A-Z2-7]{8}",
    re.IGNORECASE,
)
"""Identifiers, placeholders (also those of a redaction), calls and addresses beside such a word."""
_URL_PASSWORD = re.compile(r"[A-Za-z0-9_.~%+-]{0,64}:(?P<value>[^\s/@:<>{}$\[\]\"']{3,128})@(?=[A-Za-z0-9.-])")

_PEM = re.compile(r"-----(?P<side>BEGIN|END) [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_PEM_BODY = re.compile(r"[A-Za-z0-9+/=\s\\]*")


def find_api_keys(text: FoldedText) -> Iterator[Finding]:
    """Detector of `api_key`."""
    folded = text.folded
    for prefix, pattern in _COMPILED:
        at = folded.find(prefix)
        while at >= 0:
            match = pattern.match(folded, at)
            if match is not None and (prefix != "sk-" or _is_random(match[0])):
                yield Finding("api_key", *match.span())
            at = folded.find(prefix, at + len(prefix) if match is None else match.end())
    if any(mark in text.lowered for mark in _WORD_MARKS):
        for match in _BESIDE_WORD.finditer(text.lowered):
            start, end = match.span("value")
            value = folded[start:end].rstrip(".,;:!?'\"`)]}")
            if len(value) >= 8 and _NO_VALUE.fullmatch(value) is None and _is_random(value):
                yield Finding("api_key", start, start + len(value))
    at = folded.find("://")
    while at >= 0:
        if match := _URL_PASSWORD.match(folded, at + 3):
            yield Finding("api_key", *match.span("value"))
        at = folded.find("://", at + 3)


def find_private_keys(text: FoldedText) -> Iterator[Finding]:
    """Detector of `private_key`. A key without its end counts as far as it goes."""
    original = text.original
    if "PRIVATE KEY" not in original:
        return
    began: re.Match[str] | None = None
    for mark in _PEM.finditer(original):
        if mark["side"] == "BEGIN":
            if began is not None:
                yield _cut_off(began, original, mark.start())
            began = mark
        elif began is not None:
            yield Finding("private_key", began.start(), mark.end())
            began = None
    if began is not None:
        yield _cut_off(began, original, len(original))


def _cut_off(began: re.Match[str], text: str, limit: int) -> Finding:
    body = _PEM_BODY.match(text, began.end(), limit)
    return Finding("private_key", began.start(), began.end() if body is None else body.end())


def _is_random(value: str) -> bool:
    """True for letters with digits, or with other signs, whose entropy a word does not reach."""
    letters = sum(character.isalpha() for character in value)
    if not letters or letters == len(value):
        return False
    counts = Counter(value)
    bits = -sum(count / len(value) * math.log2(count / len(value)) for count in counts.values())
    return bits >= (3.0 if len(value) >= 16 else 2.5) and any(map(str.isdigit, value))
