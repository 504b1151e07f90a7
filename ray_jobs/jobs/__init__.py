"""The durable record of a job: attempts, events, progress, checkpoint requests, SIGTERM. Knows no stage or launcher.

`record` is what is stored, `attempts` who may write it, `events` what a reader follows.
"""

from ray_jobs.jobs.attempts import CHECK_EVERY_S, Job, Launched, Released, start_attempt
from ray_jobs.jobs.events import (
    Event,
    Level,
    event,
    events,
    newest_names,
    note,
    note_changed,
    note_created,
)
from ray_jobs.jobs.identity import id_of
from ray_jobs.jobs.record import (
    JobRecord,
    StageRecord,
    Status,
    create,
    exists,
    find,
    give_up,
    list_jobs,
    load,
    queue,
    read_stage,
    request_cancel,
    request_pause,
    stages,
    write_stage,
)

__all__ = [
    "CHECK_EVERY_S", "Event", "Job", "JobRecord", "Launched", "Level", "Released", "StageRecord", "Status", "create",
    "event", "events", "exists", "find", "give_up", "id_of", "list_jobs", "load", "newest_names", "note",
    "note_changed", "note_created", "queue", "read_stage", "request_cancel", "request_pause", "stages",
    "start_attempt", "write_stage",
]  # fmt: skip
