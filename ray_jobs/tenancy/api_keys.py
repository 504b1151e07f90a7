"""API keys: who may use the endpoint, for which team, and how much; one document a key in `keys/{id}.json`.

Owns the records, the form of a key and how one is made, found and revoked. Does not know HTTP nor how limits count
(`serving`). Only a key's SHA-256 is stored. Its secret part has 256 random bits, so no list of guesses reaches it, and
the slow salted hashes that passwords need would protect nothing here: they would only cost time in every request.

    key, secret = keys.create(store, "search", "nightly evaluation", Limits(requests_per_minute=60))
    keys.find(store, secret)  # the record; None for any other text
    keys.revoke(store, key.id)
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ray_jobs.errors import ApiKeyError, CorruptObject, ObjectNotFound, suggestion
from ray_jobs.spec import Name
from ray_jobs.storage import Store

PREFIX = "keys/"

Label = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""What people call a key: one line of at most 64 characters."""

_ID_CHARACTERS = 16
_SECRET_CHARACTERS = 52  # of 5 bits each: the first 260 of them, so at least 256
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_KEY = re.compile(rf"kitae-([a-z2-7]{{{_ID_CHARACTERS}}})-[a-z2-7]{{{_SECRET_CHARACTERS}}}")
"""A fixed prefix, alphabet and length: a scanner for leaked secrets finds a key by this expression alone."""
_READS_AT_ONCE = 8


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)


class Limits(_Record):
    """What one key may use. None: no limit."""

    requests_per_minute: int | None = Field(None, ge=1)
    """Requests begun in any minute, at each replica of the ingress."""
    tokens_per_minute: int | None = Field(None, ge=1)
    """Tokens read and written in a minute, counted when an answer is complete, at each replica of the ingress."""
    concurrent_requests: int | None = Field(None, ge=1)
    """Requests being answered at the same time, at each replica of the ingress."""
    concurrent_jobs: int | None = Field(None, ge=1)
    """Fine-tuning jobs that are not over."""
    max_body_bytes: int | None = Field(None, ge=1024)
    """Longest request body, where that is less than the endpoint's own limit."""


class ApiKey(_Record):
    """One key, without its secret."""

    id: str = Field(pattern=rf"^[a-z2-7]{{{_ID_CHARACTERS}}}$")
    """Names the key; no secret. It is a part of the key, so that the record is found without a scan."""
    team: Name
    """Whose jobs, files and models the key reaches."""
    name: Label
    """What it is for; need not be unique."""
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the whole key."""
    created_at: datetime
    expires_at: datetime | None = None
    """It opens nothing from then on. None: it does not expire."""
    revoked_at: datetime | None = None
    """Since when it opens nothing. None: it was not revoked."""
    limits: Limits = Limits()

    def state(self, now: datetime) -> Literal["active", "expired", "revoked"]:
        """What it is at that moment."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"

    def opens(self, key: str, now: datetime) -> bool:
        """Whether `key` is this key and may be used, in a time that tells nothing of the digest."""
        return hmac.compare_digest(digest_of(key), self.digest) and self.state(now) == "active"


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def id_of(key: str) -> str | None:
    """The id in a whole key; None where the text has not the form of one. Proves nothing."""
    found = _KEY.fullmatch(key)
    return None if found is None else found.group(1)


def create(
    store: Store, team: str, name: str, limits: Limits | None = None, *, expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """A new key's record, and the key itself, which is nowhere else and cannot be shown again.

    `expires_at` has a time zone. Raises ApiKeyError naming everything that is wrong with what was asked.
    """
    now = datetime.now(UTC)
    if expires_at is not None and (expires_at.tzinfo is None or expires_at <= now):
        raise ApiKeyError(f"a key cannot expire at {expires_at}: give a time after {now:%Y-%m-%d %H:%M}, with its zone")
    key_id = _random(_ID_CHARACTERS)
    secret = f"kitae-{key_id}-{_random(_SECRET_CHARACTERS)}"
    try:
        key = ApiKey(
            id=key_id,
            team=team,
            name=name,
            digest=digest_of(secret),
            created_at=now,
            expires_at=expires_at,
            limits=limits or Limits(),
        )
    except ValidationError as error:
        details = [f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors()]
        raise ApiKeyError(f"no key {name!r} of team {team!r} can be made", details=details) from error
    store.put_json(_path(key.id), key.model_dump(mode="json"), if_absent=True)
    return key, secret


def list_keys(store: Store, *, team: str | None = None) -> list[ApiKey]:
    """Every key, or those of one team: revoked and expired ones too, by team and then by age."""
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        found = pool.map(lambda key_id: read(store, key_id), etags(store))
        keys = [key for key in found if key is not None and team in (None, key.team)]
    return sorted(keys, key=lambda key: (key.team, key.created_at, key.id))


def etags(store: Store) -> dict[str, str]:
    """Id → etag of its record, of every key: what there is, and whether it changed, in one request for each 1,000."""
    return {info.key.removeprefix(PREFIX).removesuffix(".json"): info.etag for info in store.list(PREFIX)}


def read(store: Store, key_id: str) -> ApiKey | None:
    """A key's record; None where there is none. Raises CorruptObject."""
    try:
        return _parse(key_id, store.get_json(_path(key_id)))
    except ObjectNotFound:
        return None


def find(store: Store, key: str) -> ApiKey | None:
    """The record of a whole key that may be used now; None for a wrong, revoked or expired one, or any other text."""
    key_id = id_of(key)
    record = None if key_id is None else read(store, key_id)
    return record if record is not None and record.opens(key, datetime.now(UTC)) else None


def revoke(store: Store, key_id: str) -> ApiKey:
    """Let a key open nothing any more; one that is revoked stays as it is. Its record stays, for the ledgers.

    Takes an id, or the whole key, as a leak brings it. Raises ApiKeyError where there is none, naming the nearest.
    """
    wanted = id_of(key_id) or key_id

    def change(old: dict[str, Any] | None) -> dict[str, Any]:
        if old is None:
            raise _unknown(store, wanted)
        key = _parse(wanted, old)
        return key.model_copy(update={"revoked_at": key.revoked_at or datetime.now(UTC)}).model_dump(mode="json")

    if not re.fullmatch(r"[a-z2-7]+", wanted):  # it becomes a part of a path
        raise _unknown(store, wanted)
    return _parse(wanted, store.update_json(_path(wanted), change))


def _path(key_id: str) -> str:
    return f"{PREFIX}{key_id}.json"


def _parse(key_id: str, document: Any) -> ApiKey:
    try:
        return ApiKey.model_validate(document)
    except ValidationError as error:
        raise CorruptObject(f"{_path(key_id)} is not the record of an API key: {error}") from error


def _random(characters: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(characters))


def _unknown(store: Store, key_id: str) -> ApiKeyError:
    known = list(etags(store))
    hint = suggestion(key_id, known, "`kitae keys list` shows them")
    # What was given may be most of a secret: no more of it is told than an id has characters.
    return ApiKeyError(f"no API key {key_id[:_ID_CHARACTERS]!r} among {len(known)} in {store.uri(PREFIX)}; {hint}")
