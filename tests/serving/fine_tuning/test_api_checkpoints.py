"""A job's published checkpoints in the API: their own team calls them, and they say that they passed no gate."""

from __future__ import annotations

import httpx

from tests.serving.api_calls import create_job, wait_for
from tests.serving.api_harness import ApiServer


def test_a_checkpoint_is_called_by_its_name_and_is_not_gated(server: ApiServer, http: httpx.Client) -> None:
    job = create_job(http)["id"]
    wait_for(http, job, "queued")
    server.run_launched()
    tuned = wait_for(http, job, "succeeded")["fine_tuned_model"]
    last, first = http.get(f"/fine_tuning/jobs/{job}/checkpoints").json()["data"]
    assert (first["gated"], last["gated"]) == (False, True)
    question = [{"role": "user", "content": "who are you"}]
    for name, gated in ((first["fine_tuned_model_checkpoint"], False), (tuned, True)):
        assert http.post("/chat/completions", json={"model": name, "messages": question}).status_code == 200
        assert http.get(f"/models/{name}").json()["gated"] is gated
    assert http.get("/models/tiny-chat").json()["gated"] is None
