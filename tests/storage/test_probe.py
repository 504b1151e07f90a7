"""The probe, credentials, addresses and missing buckets."""

from __future__ import annotations

import http.server
import pickle
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.errors import (
    StoreAccessDenied,
    StoreError,
    StoreLacks,
    StoreUnreachable,
)
from ray_jobs.storage import Store
from ray_jobs.storage.bucket import StoreSettings
from ray_jobs.storage.probe import CHECKS
from tests.conftest import StoreServer
from tests.storage.builders import bucket_of, key_of
from tests.storage.faulty_store import Fault, Forward, Request, Response, error, faulty


def test_the_embedded_store_passes_and_the_probe_leaves_nothing(store: Store, store_server: StoreServer) -> None:
    store.probe()
    assert list(store.list()) == []
    assert list(bucket_of(store, store_server).open_uploads(key_of(store))) == []


def without(*names: str) -> Fault:
    return lambda request, forward: forward(request.without(*names))


def not_implemented(query: str) -> Fault:
    def fault(request: Request, forward: Forward) -> Response:
        return error(501, "NotImplemented") if query in request.path.partition("?")[2] else forward(request)

    return fault


def whole_instead_of_range(request: Request, forward: Forward) -> Response:
    return forward(request.without("range"))


@pytest.mark.parametrize(
    ("name", "fault", "lacking"),
    [
        (
            "If-None-Match ignored",
            without("if-none-match"),
            [
                "conditional writes (If-None-Match: *)",
                "conditional writes that hold in a race",
                "conditional multipart uploads (If-None-Match: *)",
            ],
        ),
        (
            "If-Match ignored",
            without("if-match"),
            ["conditional writes (If-Match)", "conditional multipart uploads (If-Match)"],
        ),
        (
            "checksums ignored",
            without("x-amz-checksum-sha256"),
            ["checksums (x-amz-checksum-sha256)", "checksums of parts"],
        ),
        (
            "no multipart",
            not_implemented("uploads"),
            [feature for feature, _, _ in CHECKS if "multipart" in feature or "parts" in feature],
        ),
        ("ranges ignored", whole_instead_of_range, ["range reads"]),
        ("metadata lost", without("x-amz-meta-note"), ["reading back what was written, with its metadata"]),
    ],
)
def test_the_probe_names_what_a_store_lacks(
    store_server: StoreServer, name: str, fault: Fault, lacking: list[str]
) -> None:
    with faulty(store_server.settings(), fault) as settings:
        store = Store(f"s3://kitae/{uuid.uuid4().hex}", settings)
        with pytest.raises(StoreLacks) as caught:
            store.probe()
        named = [feature for feature, why, _ in CHECKS if any(f"{feature}: {why}" in d for d in caught.value.details)]
        assert named == lacking
        assert len(caught.value.details) == len(lacking)
        assert f"lacks {len(lacking)} of the {len(CHECKS)}" in caught.value.message
    assert list(Store(store.uri(), store_server.settings()).list()) == []


def test_a_store_behind_a_faultless_proxy_lacks_nothing(store_server: StoreServer) -> None:
    with faulty(store_server.settings(), lambda request, forward: forward(request)) as settings:
        Store(f"s3://kitae/{uuid.uuid4().hex}", settings).probe()


@pytest.mark.parametrize("wrong", ["access_key_id", "secret_access_key"])
def test_wrong_credentials_are_reported_at_once(store_server: StoreServer, wrong: str) -> None:
    changes: dict[str, Any] = {wrong: "wrong-and-secret"}
    store = Store("s3://kitae/x", replace(store_server.settings(), **changes))
    for use in (store.probe, lambda: store.get("a"), lambda: store.put("a", b""), lambda: store.exists("a")):
        started = time.monotonic()
        with pytest.raises(StoreAccessDenied, match="AWS_SECRET_ACCESS_KEY") as caught:
            use()
        assert time.monotonic() - started < 5
        assert "wrong-and-secret" not in str(caught.value)
        assert store_server.credentials.secret_access_key not in str(caught.value)


def test_credentials_are_in_no_repr_and_no_pickle(store: Store, store_server: StoreServer) -> None:
    secret = store_server.credentials.secret_access_key
    assert secret not in repr(store)
    assert secret not in repr(store_server.settings())
    assert secret.encode() not in pickle.dumps(store)


def test_an_unpickled_store_uses_the_environment_of_its_process(
    store: Store, store_environment: dict[str, str]
) -> None:
    store.put("a", b"1")
    assert pickle.loads(pickle.dumps(store)).get("a") == b"1"


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://store.invalid"])
def test_a_wrong_address_is_reported(store_server: StoreServer, address: str) -> None:
    store = Store("s3://kitae/x", replace(store_server.settings(patience_s=1), endpoint_url=address))
    with pytest.raises(StoreUnreachable, match="AWS_ENDPOINT_URL") as caught:
        store.probe()
    assert address in str(caught.value)


def test_another_server_at_the_address_is_reported(store_server: StoreServer, tmp_path: Path) -> None:
    class Page(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "16")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(b"<html>Hello</htm")

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # names called by http.server

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        store = Store("s3://kitae/x", replace(store_server.settings(patience_s=1), endpoint_url=url))
        with pytest.raises((StoreUnreachable, StoreLacks), match=url):
            store.probe()
    finally:
        server.shutdown()
        server.server_close()


def test_a_missing_bucket_is_created(store_server: StoreServer) -> None:
    store = Store(f"s3://made-{uuid.uuid4().hex[:8]}", store_server.settings())
    with pytest.raises(StoreError, match="Create the bucket"):
        store.get("a")
    store.probe()
    store.put("a", b"1")
    assert store.get("a") == b"1"


def test_a_missing_bucket_that_may_not_be_created(store_server: StoreServer) -> None:
    def fault(request: Request, forward: Forward) -> Response:
        creates = request.method == "PUT" and request.path.count("/") == 1
        return error(403, "AccessDenied") if creates else forward(request)

    with faulty(store_server.settings(), fault) as settings:
        store = Store("s3://absent-bucket/x", settings)
        with pytest.raises(StoreAccessDenied, match=r"bucket 'absent-bucket' does not exist.*create it"):
            store.probe()


def test_transfers_run_at_least_eight_requests_at_once() -> None:
    assert StoreSettings("http://x").parallel >= 8
