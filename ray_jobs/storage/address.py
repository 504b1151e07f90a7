"""The address of the store: its `s3://` URI, and the environment variables that name it. Pure; makes no request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_jobs.errors import StoreError
from ray_jobs.storage.bucket import StoreSettings

_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?")
# With any of these variables, boto finds credentials without the two keys.
_OTHER_CREDENTIALS = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_PROFILE",
)


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of Store besides the URI. Raises StoreError with one detail per missing or wrong variable."""
    credentials = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    if any(environment.get(name) for name in _OTHER_CREDENTIALS):
        credentials = []
    what = {
        "KITAE_STORE": "the bucket and prefix that hold everything, such as s3://bucket/kitae",
        "AWS_ENDPOINT_URL": "the store's address, such as https://s3.eu-west-1.amazonaws.com",
        "AWS_ACCESS_KEY_ID": "the store's access key",
        "AWS_SECRET_ACCESS_KEY": "the access key's secret",
    }
    needed = ["KITAE_STORE", "AWS_ENDPOINT_URL", *credentials]
    problems = [f"{name} is not set: {what[name]}" for name in needed if not environment.get(name)]
    endpoint_url = environment.get("AWS_ENDPOINT_URL", "")
    if endpoint_url and not re.fullmatch(r"https?://[^/\s@]+/?", endpoint_url):
        problems.append("AWS_ENDPOINT_URL is not of the form http(s)://host:port, without path or credentials")
    uri = environment.get("KITAE_STORE", "")
    if uri and not _URI.fullmatch(uri):
        problems.append(f"KITAE_STORE is {uri!r}, not of the form s3://bucket/prefix")
    patience = environment.get("KITAE_STORE_PATIENCE_S") or "60"
    if not re.fullmatch(r"\d+(\.\d+)?", patience):
        problems.append(f"KITAE_STORE_PATIENCE_S is {patience!r}, not a number of seconds")
    if problems:
        raise StoreError("the store is not configured (`make demo` sets up an embedded one)", details=problems)
    settings = StoreSettings(
        endpoint_url=endpoint_url.rstrip("/"),
        region=environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1",
        access_key_id=environment.get("AWS_ACCESS_KEY_ID") or None,
        secret_access_key=environment.get("AWS_SECRET_ACCESS_KEY") or None,
        session_token=environment.get("AWS_SESSION_TOKEN") or None,
        patience_s=float(patience),
    )
    cache = environment.get("KITAE_CACHE")
    return {"settings": settings, "cache": Path(cache).expanduser() if cache else None}


def split_uri(uri: str) -> tuple[str, str]:
    """(bucket, prefix); the prefix is empty or ends in a slash."""
    match = _URI.fullmatch(uri)
    if match is None:
        raise StoreError(f"{uri!r} is not of the form s3://bucket/prefix")
    return match[1], folder_of(match[2] or "")


def folder_of(prefix: str) -> str:
    stripped = prefix.strip("/")
    return f"{stripped}/" if stripped else ""
