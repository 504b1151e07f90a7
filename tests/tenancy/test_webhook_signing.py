"""Signatures that the official client accepts, and the receiver of the documentation."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import threading
import time
from datetime import UTC, datetime
from typing import Any

import openai
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.storage import Store
from ray_jobs.tenancy import webhooks
from ray_jobs.tenancy.webhooks import EVENTS
from tests.repository import ROOT
from tests.tenancy.webhook_receiver import (
    CLIENT,
    HERE,
    Receiver,
    enqueue,
    make_sender,
    subscribe,
    tick,
)


def test_the_official_client_accepts_a_delivery(store: Store, receiver: Receiver) -> None:
    endpoint = subscribe(store, receiver)
    event_id = enqueue(store, "ftjob-ä", at=datetime.fromtimestamp(1795000000, UTC))
    tick(make_sender(store))
    (request,) = receiver.got
    event = CLIENT.webhooks.unwrap(request.body, request.headers, secret=endpoint.secret)
    assert type(event).__name__ == "FineTuningJobSucceededWebhookEvent"
    assert json.loads(request.body) == {
        "id": event_id,
        "object": "event",
        "type": "fine_tuning.job.succeeded",
        "created_at": 1795000000,
        "data": {"id": "ftjob-ä"},
    }
    assert request.headers["webhook-id"] == event_id
    assert request.headers["content-type"] == "application/json"
    assert request.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert request.path == "/hook?token=in-the-url"
    for changed in (request.body + b" ", request.body.replace(b"succeeded", b"cancelled")):
        with pytest.raises(openai.InvalidWebhookSignatureError):
            CLIENT.webhooks.unwrap(changed, request.headers, secret=endpoint.secret)


@given(key=st.binary(min_size=1, max_size=64), body=st.text(st.characters(codec="utf-8")), event_id=st.text("az_09"))
def test_signatures_equal_those_of_the_official_client(key: bytes, body: str, event_id: str) -> None:
    secret = "whsec_" + base64.b64encode(key).decode()
    now_s = int(time.time())
    signature = webhooks.sign(secret, event_id, now_s, body.encode())
    headers = {"webhook-id": event_id, "webhook-timestamp": str(now_s), "webhook-signature": signature}
    CLIENT.webhooks.verify_signature(body, headers, secret=secret)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        CLIENT.webhooks.verify_signature(body + "x", headers, secret=secret)


def test_the_documented_receiver_verifies_and_deduplicates(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/webhooks.md").read_text(encoding="utf-8"), re.DOTALL)
    listener = socket.create_server(("127.0.0.1", 0))
    endpoint = webhooks.add(store, "blue", f"http://127.0.0.1:{listener.getsockname()[1]}/kitae", EVENTS, HERE)
    monkeypatch.setenv("OPENAI_WEBHOOK_SECRET", endpoint.secret)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/webhooks.md", "exec"), names)
    server = uvicorn.Server(uvicorn.Config(names["app"], log_level="warning", lifespan="off"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    try:
        event_id = enqueue(store, "ftjob-7")
        tick(make_sender(store))
        assert names["seen"] == {event_id: "ftjob-7: fine_tuning.job.succeeded"}
        forged = endpoint.model_copy(update={"secret": "whsec_" + base64.b64encode(b"another").decode()})
        answer = asyncio.run(make_sender(store).send(forged, webhooks.test_event(forged, store.now())))
        assert answer.status == 400
        assert len(names["seen"]) == 1
    finally:
        server.should_exit = True
        thread.join(10)
