"""Which jobs read a file: a marker for each, written before the job's record and kept after its end.

    teams/{team}/uses/{file_id}/{ftjob_id}.json
    uses-marked.json                             written once all open jobs have their markers

Owns the markers. A file that an open job reads is neither deleted nor swept. A job is created marker first and then
looks for its file; a deletion withdraws the file first and then looks for markers: one of the two sees the other.
"""

from __future__ import annotations

from collections.abc import Callable

from ray_jobs.storage import Store
from serving.files.stored_files import Files
from serving.fine_tuning import records
from serving.fine_tuning.records import ORPHAN_AFTER_S, ApiJob
from serving.fine_tuning.responses import model_name
from serving.http.ids import created_at_s, is_id

_ALL_MARKED = "uses-marked.json"
SHOWN = 100
"""Jobs of a file that are shown."""


def note(store: Store, api: ApiJob) -> None:
    """Mark the files of a job."""
    for file_id in files_of(api):
        store.put_json(f"{_folder(api.team, file_id)}/{api.id}.json", {})


def hold(store: Store, api: ApiJob, files: Files) -> None:
    """Mark the files of a job that is being created, which stay from now on. ApiError 404 if one was just deleted."""
    note(store, api)
    for file_id in files_of(api):
        files.get(api.team, file_id)


def files_of(api: ApiJob) -> list[str]:
    """Ids of the files that a job reads."""
    return [file_id for file_id in (api.training_file, api.validation_file) if file_id is not None]


def jobs_of(store: Store, team: str, file_id: str) -> list[str]:
    """Ids of the jobs that read a file, oldest first, also of those that ended."""
    names = (info.key.rpartition("/")[2].removesuffix(".json") for info in store.list(_folder(team, file_id)))
    return [name for name in names if is_id(records.KIND, name)]


def open_jobs(store: Store, team: str, file_id: str, is_open: Callable[[ApiJob], bool], now_s: float) -> list[str]:
    """Ids of a team's open jobs that read a file. A marked job without a record may be about to get it."""
    note_open(store)
    found = []
    for job in jobs_of(store, team, file_id):
        api = records.find(store, team, job)
        exists = api is not None or records.exists(store, team, job)
        if is_open(api) if api is not None else exists or now_s - created_at_s(job) < ORPHAN_AFTER_S:
            found.append(job)
    return found


def note_open(store: Store) -> None:
    """Mark the files of the open jobs of versions that wrote no markers, once a store."""
    if store.exists(_ALL_MARKED):
        return
    for key_id, job in records.all_open(store):
        team = records.team_of_open(store, key_id, job)
        api = None if team is None else records.find(store, team, job)
        if api is not None:
            note(store, api)
    store.put_json(_ALL_MARKED, {})


def made_from(store: Store, team: str, file_id: str) -> dict[str, list[str]]:
    """The newest jobs that read a file, and the models that they made."""
    jobs = jobs_of(store, team, file_id)[-SHOWN:]
    found = [api for job in jobs if (api := records.find(store, team, job)) is not None]
    return {
        "jobs": [api.id for api in found],
        "models": [model_name(api) for api in found if api.closed is not None and api.closed.status == "succeeded"],
    }


def _folder(team: str, file_id: str) -> str:
    return f"teams/{team}/uses/{file_id}"
