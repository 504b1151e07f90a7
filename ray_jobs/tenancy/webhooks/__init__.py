"""Webhooks: notify a team's HTTP endpoints when one of its jobs has ended, signed as OpenAI signs.

    endpoint = add(store, "blue", "https://hooks.blue.example/kitae", EVENTS, Policy.from_env(os.environ))
    enqueue(store, "blue", "fine_tuning.job.succeeded", job_id)  # called by any number of replicas: one event
    await Sender(store, policy).run(stop)                        # a background task of every API process

The parts, low layer first: `targets` (allowed addresses; pure except for DNS queries), `records` (the endpoints, and
the signature), `breaker` (when a failing receiver gets no requests), `outbox` (an event and its deliveries), `resolver`
(DNS queries that hang), `sender` (the requests).

    webhooks/{team}/{id}.json     an endpoint, with its signing secret
    webhooks-out/{event_id}.json  an event and its deliveries; deleted an hour after the last of them ended
"""

from ray_jobs.tenancy.webhooks.outbox import enqueue, next_try, test_event
from ray_jobs.tenancy.webhooks.records import EVENTS, Endpoint, EventType, add, endpoints, get, remove, sign
from ray_jobs.tenancy.webhooks.sender import OUTCOMES, Answer, Sender
from ray_jobs.tenancy.webhooks.targets import Policy

__all__ = [
    "EVENTS", "OUTCOMES", "Answer", "Endpoint", "EventType", "Policy", "Sender", "add", "endpoints", "enqueue", "get",
    "next_try", "remove", "sign", "test_event",
]  # fmt: skip
