"""Requests to one address of an import: retried within bounds, paged, without its key in any message.

Owns the retries and the reading of errors. Knows no route. `httpx` and not `openai`, which the product does not need
elsewhere.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import httpx

from ray_jobs.errors import RemoteError, SpecError, one_line

Document = dict[str, Any]

_TRIES = 8
_TRIES_OF_A_FAILURE = 3
"""Tries after a status 500, which may be the request's own."""
_LONGEST_WAIT_S = 300.0
"""A longer `Retry-After` ends the command, which resumes when it is started again."""
_RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})
_FOR_GOOD = ("insufficient_quota", "billing_hard_limit_reached")
_TIMEOUT = httpx.Timeout(120.0, connect=15.0)
_PIECE_BYTES = 2**20
_SHOWN_CHARACTERS = 500
_LONGEST_LIST = 10_000
"""Pages of a list at most."""


@dataclass(frozen=True)
class Address:
    """Where requests go, and the key that they carry."""

    name: str
    """As messages name it: `OpenAI`, `the endpoint`."""
    url: str
    key: str
    key_variable: str
    """Environment variable of the key."""
    team: str | None = None
    """Team on whose behalf the operator's key acts."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            shown = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
            raise SpecError(
                f"the address of {self.name} is {shown!r}; it must be an address without a user or a query, such as "
                "https://api.openai.com/v1"
            )
        if not self.key:
            raise SpecError(f"no key for {self.name}: set {self.key_variable}")
        if not self.key.isascii() or not self.key.isprintable() or " " in self.key:
            raise SpecError(f"{self.key_variable} has a space, a line break or a character that no key has")

    def __repr__(self) -> str:
        return f"Address({self.name!r}, {self.url!r})"


class ApiClient(AbstractContextManager["ApiClient"]):
    """The API at one address. Safe to use from several threads."""

    def __init__(
        self,
        address: Address,
        *,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.address = address
        self._sleep = sleep
        headers = {"Authorization": f"Bearer {address.key}"}
        if address.team is not None:
            headers["OpenAI-Project"] = address.team
        # Redirects are not followed: nothing is sent anywhere but to this address.
        self._http = httpx.Client(
            base_url=address.url.rstrip("/"),
            headers=headers,
            timeout=_TIMEOUT,
            follow_redirects=False,
            transport=transport,
        )

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Document:
        """The JSON object at a path. Raises RemoteError."""
        given = {name: value for name, value in (params or {}).items() if value is not None}
        return self._object(self._retried(lambda: self._http.get(path, params=given)), path)

    def post(self, path: str, body: Document, *, key: str | None = None, repeats: bool = True) -> Document:
        """Send a request. `key`: the Idempotency-Key. Raises RemoteError.

        `repeats` false: a request without an answer is not sent again, since it may have been carried out.
        """
        headers = {"Idempotency-Key": key} if key is not None else {}
        response = self._retried(lambda: self._http.post(path, json=body, headers=headers), unanswered=repeats)
        return self._object(response, path)

    def post_file(self, path: str, name: str, content: BinaryIO, fields: Mapping[str, str]) -> Document:
        """Upload a file. An upload without an answer is not repeated here, since it may have arrived.

        Raises RemoteError."""

        def send() -> httpx.Response:
            content.seek(0)
            return self._http.post(path, data=dict(fields), files={"file": (name, content)})

        return self._object(self._retried(send, unanswered=False), path)

    def pages(self, path: str, params: Mapping[str, Any] | None = None) -> Iterator[list[Document]]:
        """The pages of a list. Raises RemoteError, also for a list that does not end."""
        after: str | None = None
        seen = set[str]()
        for _ in range(_LONGEST_LIST):
            page = self.get(path, {**(params or {}), "after": after})
            data = page.get("data")
            if not isinstance(data, list) or not all(isinstance(each, dict) for each in data):
                raise RemoteError(f"{self.address.name} answered {path} without a list in `data`")
            yield data
            if not page.get("has_more") or not data:
                return
            after = data[-1].get("id")
            if not isinstance(after, str) or after in seen:
                break
            seen.add(after)
        raise RemoteError(f"{self.address.name} repeats pages of {path}: the list does not end")

    def download(self, path: str, target: Path, *, size_bytes: int | None) -> str:
        """Write the content at a path to a file, whole or not at all. Returns its SHA-256. Raises RemoteError."""
        part = target.with_name(f"{target.name}.part")
        try:
            digest = self._read(path, part, size_bytes)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        return digest

    def digest(self, path: str) -> str:
        """The SHA-256 of the content at a path. Raises RemoteError."""
        return self._read(path, Path(os.devnull), None)

    def _read(self, path: str, target: Path, size_bytes: int | None) -> str:
        """Write the content at a path, of which more than `size_bytes` is not read. Returns its SHA-256."""
        digest = ""

        def fetch() -> httpx.Response:
            nonlocal digest
            with self._http.stream("GET", path) as response:
                if response.status_code != 200:
                    response.read()
                    return response
                hashed, received = hashlib.sha256(), 0
                with target.open("wb") as file:
                    for piece in response.iter_bytes(_PIECE_BYTES):
                        received += len(piece)
                        if size_bytes is not None and received > size_bytes:
                            break
                        hashed.update(piece)
                        file.write(piece)
                if size_bytes is not None and received != size_bytes:
                    raise httpx.ReadError(f"{received} bytes came, and {size_bytes} were announced")
                digest = hashed.hexdigest()
                return response

        self._checked(self._retried(fetch), path)
        return digest

    def _retried(self, send: Callable[[], httpx.Response], *, unanswered: bool = True) -> httpx.Response:
        """Send until there is an answer that is not worth another try. Raises RemoteError where none comes."""
        for tried in range(1, _TRIES + 1):
            try:
                response = send()
            except httpx.HTTPError as error:
                if tried == _TRIES or not unanswered:
                    raise self._unanswered(error) from error
                self._sleep(_backoff_s(tried))
                continue
            waits_s = retry_after_s(response, tried)
            if waits_s is None or tried == _TRIES:
                return response
            if waits_s > _LONGEST_WAIT_S:
                raise RemoteError(
                    f"{self.address.name} asks for {waits_s:,.0f} s until the next request; at most "
                    f"{_LONGEST_WAIT_S:,.0f} s are waited: start the command again then, it resumes where it stopped"
                )
            self._sleep(waits_s)
        raise AssertionError("unreachable")

    def _unanswered(self, error: Exception) -> RemoteError:
        where = self.address
        found = RemoteError(f"{where.name} does not answer at {where.url} ({self._without_key(str(error))})")
        found.unanswered = True
        return found

    def _object(self, response: httpx.Response, path: str) -> Document:
        self._checked(response, path)
        try:
            found = response.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise RemoteError(f"{self.address.name} answered {path} with something that is not a JSON object")
        return found

    def _checked(self, response: httpx.Response, path: str) -> None:
        status = response.status_code
        if 200 <= status < 300:
            return
        where = self.address
        try:
            body = response.json()
        except ValueError:
            body = None
        error = body.get("error") if isinstance(body, dict) else None
        error = error if isinstance(error, dict) else {}
        said = self._without_key(str(error.get("message") or ""))[:_SHOWN_CHARACTERS]
        if 300 <= status < 400:
            said = "it redirects elsewhere, which is not followed: give its final address"
        elif status == 401:
            said = f"the key in {where.key_variable} is not valid there"
        found = RemoteError(f"{where.name} answered {path} with {status}{': ' + said if said else ''}")
        found.status = status
        found.code = error.get("code") if isinstance(error.get("code"), str) else None
        details = error.get("details")
        found.findings = [each for each in details if isinstance(each, dict)] if isinstance(details, list) else []
        raise found

    def _without_key(self, text: str) -> str:
        """Text of the other side, which may repeat the key, on one printable line."""
        return one_line(text.replace(self.address.key, "…"))


def retry_after_s(response: httpx.Response, tried: int) -> float | None:
    """Seconds until the next try. None: the answer is final."""
    if response.status_code not in _RETRIED or response.headers.get("x-should-retry") == "false":
        return None
    if response.status_code == 500 and tried >= _TRIES_OF_A_FAILURE:
        return None
    if response.status_code == 429 and any(code in response.text for code in _FOR_GOOD):
        return None
    asked = _asked_s(response.headers)
    return _backoff_s(tried) if asked is None else asked


def _asked_s(headers: httpx.Headers) -> float | None:
    """Seconds in `retry-after-ms` or `Retry-After`, which has seconds or a date."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        given = headers["retry-after"]
    except (KeyError, ValueError):
        return None
    try:
        return max(0.0, float(given))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(given)
    except ValueError:
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


def _backoff_s(tried: int) -> float:
    return min(30.0, 0.5 * 2.0 ** (tried - 1)) * random.uniform(0.75, 1.25)
