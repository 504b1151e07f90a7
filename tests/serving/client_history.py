"""The responses that the clients of a chaos scenario received; a later response must agree with earlier ones."""

from __future__ import annotations

from dataclasses import dataclass, field

from serving.http import openai_types

ENDED = ("succeeded", "failed", "cancelled")


@dataclass
class ClientHistory:
    """Responses that clients received, and what runners did."""

    files: dict[str, bytes] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    maybe_deleted: set[str] = field(default_factory=set)
    """Deletes without a response."""
    created: dict[str, str] = field(default_factory=dict)
    """Number of the create request → job id."""
    unanswered: set[str] = field(default_factory=set)
    """Numbers of create requests without a response."""
    jobs: dict[str, openai_types.FineTuningJob] = field(default_factory=dict)
    """Job id → the job in the latest response."""
    events: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """Job id → (id, message) of its events in the latest list, oldest first."""
    ended: dict[str, str] = field(default_factory=dict)
    """Job id → final status, for jobs that a runner or a client has ended."""
    maybe_cancelled: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    models_deleted: set[str] = field(default_factory=set)

    def record(self, job: openai_types.FineTuningJob) -> None:
        """Record a job that a client received, and check it against earlier responses."""
        before = self.jobs.get(job.id)
        if before is not None and before.status in ENDED:
            assert job == before, "an ended job has changed"
        if job.status in ENDED:
            assert job.finished_at is not None
            assert job.id not in self.ended or job.status == self.ended[job.id]
        self.jobs[job.id] = job

    def end(self, identifier: str, how: str) -> None:
        """Record that a runner or a client has ended a job, with a confirmed result."""
        assert self.ended.setdefault(identifier, how) == how, f"{identifier} was {self.ended[identifier]} before"
