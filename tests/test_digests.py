"""Digests are store keys: these values were computed by earlier versions and must not change."""

import hashlib

import pytest

from ray_jobs.digests import canonical_digest, canonical_json, json_digest, json_sha256

DOCUMENT = {"b": [1, 2.5, None], "a": "鍛え", "c": {"x": True}}


def test_json_digest_hashes_sorted_json_with_spaces() -> None:
    text = '{"a": "鍛え", "b": [1, 2.5, null], "c": {"x": true}}'
    assert json_digest(DOCUMENT) == hashlib.sha256(text.encode()).hexdigest()[:16] == "8b50833c6eb5f453"
    assert json_digest(DOCUMENT, 32) == hashlib.sha256(text.encode()).hexdigest()[:32]
    assert json_sha256(DOCUMENT).hexdigest() == hashlib.sha256(text.encode()).hexdigest()


def test_ensure_ascii_escapes_other_characters() -> None:
    text = r'{"a": "\u935b\u3048", "b": [1, 2.5, null], "c": {"x": true}}'
    assert (
        json_digest(DOCUMENT, ensure_ascii=True) == hashlib.sha256(text.encode()).hexdigest()[:16] == "825a129ed4b21b9a"
    )


def test_canonical_digest_hashes_json_without_spaces() -> None:
    assert canonical_json(DOCUMENT).decode() == '{"a":"鍛え","b":[1,2.5,null],"c":{"x":true}}'
    assert canonical_digest(DOCUMENT, 16) == canonical_digest(DOCUMENT)[:16] == "ff773834f212176e"


def test_canonical_json_refuses_what_json_has_no_number_for() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"loss": float("nan")})
