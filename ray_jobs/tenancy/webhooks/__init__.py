"""Webhooks: a team's own HTTP endpoints hear when a job of theirs has ended, signed as OpenAI signs.

    endpoint = add(store, "blue", "https://hooks.blue.example/kitae", EVENTS, Policy.from_env(os.environ))
    enqueue(store, "blue", "fine_tuning.job.succeeded", job_id)  # any number of replicas may: one event
    await Sender(store, policy).run(stop)                        # a background task of every API process

The parts, low layer first: `targets` (what may be sent to, pure but for asking the DNS), `records` (the endpoints, and
the signature), `outbox` (an event under way: who still waits for it, and until when), `sender` (the requests).

    webhooks/{team}/{id}.json     an endpoint, with the secret that signs what is sent to it
    webhooks-out/{event_id}.json  an event and how far its deliveries are; deleted a day after the last of them ended
"""

from ray_jobs.tenancy.webhooks.outbox import enqueue, next_try, test_event
from ray_jobs.tenancy.webhooks.records import EVENTS, Endpoint, EventType, add, endpoints, get, remove, sign
from ray_jobs.tenancy.webhooks.sender import OUTCOMES, Answer, Sender
from ray_jobs.tenancy.webhooks.targets import Policy

__all__ = [
    "EVENTS",
    "OUTCOMES",
    "Answer",
    "Endpoint",
    "EventType",
    "Policy",
    "Sender",
    "add",
    "endpoints",
    "enqueue",
    "get",
    "next_try",
    "remove",
    "sign",
    "test_event",
]
