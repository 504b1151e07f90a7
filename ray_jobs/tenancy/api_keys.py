"""API keys: the teams and limits of the endpoint's clients, one document per key in `keys/{id}.json`.

Owns the records and how a key is made, found and revoked. Does not know HTTP nor how limits are counted (`serving`).
Only a key's SHA-256 is stored: its secret part has 256 random bits, so a slow salted hash would add no protection and
cost time in every request.

    key, secret = api_keys.create(store, "search", "nightly evaluation", Limits(requests_per_minute=60))
    api_keys.find(store, secret)  # the record; None for any other text
    api_keys.revoke(store, key.id)
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from ray_jobs.errors import ApiKeyError, suggestion
from ray_jobs.spec import Name
from ray_jobs.spec.problems import problems
from ray_jobs.storage import Store
from ray_jobs.storage.documents import Documents

Label = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""Display name of a key: one line of at most 64 characters."""

Scope = Literal["inference", "fine-tuning", "read", "admin"]
"""What a key may do: call models; files, jobs and models of its team; read those; everything, as the operator."""
DEFAULT_SCOPES: tuple[Scope, ...] = ("inference", "fine-tuning", "read")
_ID_CHARACTERS = 16
_SECRET_CHARACTERS = 52  # 5 bits each: 260 bits
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_KEY = re.compile(rf"kitae-([a-z2-7]{{{_ID_CHARACTERS}}})-[a-z2-7]{{{_SECRET_CHARACTERS}}}")
"""A fixed prefix, alphabet and length, so that a secret scanner finds a leaked key by this expression alone."""


class _KeyModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)


class Limits(_KeyModel):
    """Limits of one key. None: no limit."""

    requests_per_minute: int | None = Field(None, ge=1)
    """Requests started per minute, at each replica of the ingress."""
    tokens_per_minute: int | None = Field(None, ge=1)
    """Prompt and completion tokens per minute, counted once an answer is complete, at each replica of the ingress."""
    concurrent_requests: int | None = Field(None, ge=1)
    """Requests processed at the same time, at each replica of the ingress."""
    concurrent_jobs: int | None = Field(None, ge=1)
    """Fine-tuning jobs that have not ended."""
    max_body_bytes: int | None = Field(None, ge=1024)
    """Longest request body, if less than the endpoint's own limit."""

    def or_else(self, defaults: Limits) -> Limits:
        """Return these limits, with the defaults where there is none."""
        own = self.model_dump(exclude_none=True)
        return defaults.model_copy(update=own) if own else defaults


class ApiKey(_KeyModel):
    """One key, without its secret."""

    id: str = Field(pattern=rf"^[a-z2-7]{{{_ID_CHARACTERS}}}$")
    """Public part of the key, by which its record is found without a scan."""
    team: Name
    """Team whose jobs, files and models the key can access."""
    name: Label
    """Purpose of the key; need not be unique."""
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the whole key."""
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    """The key is refused from this time on. None: it does not expire."""
    revoked_at: AwareDatetime | None = None
    """Time of revocation. None: not revoked."""
    limits: Limits = Limits()
    scopes: tuple[Scope, ...] = Field(DEFAULT_SCOPES, min_length=1)
    """What the key may do. Keys without them were made before there were scopes."""

    def state(self, now: datetime) -> Literal["active", "expired", "revoked"]:
        """State at that time."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"

    def opens(self, key: str, now: datetime) -> bool:
        """True if `key` is this key and active; compares in constant time."""
        return hmac.compare_digest(digest_of(key), self.digest) and self.state(now) == "active"


def _why_misplaced(name: str, key: ApiKey) -> str | None:
    return None if key.id == name else "it has the id of another key"


_KEYS = Documents("keys/", ApiKey, "the record of an API key", _why_misplaced)

read = _KEYS.read
read_or_report = _KEYS.find


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def id_of(key: str) -> str | None:
    """The id in a whole key; None if the text is not of its form. Verifies nothing."""
    found = _KEY.fullmatch(key)
    return None if found is None else found.group(1)


def create(
    store: Store,
    team: str,
    name: str,
    limits: Limits | None = None,
    *,
    scopes: Sequence[Scope] = DEFAULT_SCOPES,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """A new key's record, and the key itself, which is not stored and cannot be shown again.

    `expires_at` has a time zone. Raises ApiKeyError naming every invalid argument.
    """
    now = store.now()
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
            scopes=tuple(dict.fromkeys(scopes)),
        )
    except ValidationError as error:
        given = {"name": name, "team": team}
        details = [f"{where}: {message}" for where, message in problems(error.errors(), given)]
        raise ApiKeyError(f"no key {name!r} of team {team!r} can be made", details=details) from error
    store.put_json(_KEYS.key(key.id), key.model_dump(mode="json"), if_absent=True)
    return key, secret


def list_keys(store: Store, *, team: str | None = None) -> list[ApiKey]:
    """Every key, or those of one team, by team and then by age; includes revoked and expired keys."""
    wanted = [key for key in _KEYS.read_all(store).values() if team in (None, key.team)]
    return sorted(wanted, key=lambda key: (key.team, key.created_at, key.id))


def etags(store: Store) -> dict[str, str]:
    """Id → etag of the record, for every key; one request per 1,000 keys."""
    return {info.key.removeprefix(_KEYS.prefix).removesuffix(".json"): info.etag for info in store.list(_KEYS.prefix)}


def find(store: Store, key: str) -> ApiKey | None:
    """The record of an active key, given whole; None for a wrong, revoked or expired one, or any other text."""
    key_id = id_of(key)
    record = None if key_id is None else read(store, key_id)
    return record if record is not None and record.opens(key, store.now()) else None


def revoke(store: Store, key_id: str) -> ApiKey:
    """Revoke a key; a revoked one stays unchanged. The record stays, for the ledgers.

    Takes an id, or a whole leaked key. Raises ApiKeyError for an unknown key, naming the nearest.
    """
    wanted = id_of(key_id) or key_id

    def change(key: ApiKey | None) -> ApiKey:
        if key is None:
            raise _unknown(store, wanted)
        return key.model_copy(update={"revoked_at": key.revoked_at or store.now()})

    if not re.fullmatch(r"[a-z2-7]+", wanted):  # it becomes part of a store key
        raise _unknown(store, wanted)
    return _KEYS.update(store, wanted, change)


def _random(characters: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(characters))


def _unknown(store: Store, key_id: str) -> ApiKeyError:
    known = list(etags(store))
    hint = suggestion(key_id, known, "`kitae keys list` shows them")
    # The argument may hold most of a secret: show no more characters of it than an id has.
    return ApiKeyError(
        f"no API key {key_id[:_ID_CHARACTERS]!r} among {len(known)} in {store.uri(_KEYS.prefix)}; {hint}"
    )
