"""The object store: the only durable state, and the only S3 client. Knows no jobs, no models and no file formats.

Owns single objects with conditional writes, parallel verified transfer of files and trees, and trees committed by a
`manifest.json` that is written last.

    store = Store.from_env()
    files = store.upload_tree(directory, "models/greeter/1")
    store.commit("models/greeter/1", files, {"task": "chat"})
    path = store.fetch("models/greeter/1")

The parts, low layer first: `unreadable` (bounds of a document), `manifest` (contents of a tree), `faults` (classes of
failed requests), `bucket`
(single requests, with retries), `transfer` (parallel requests), `probe` (required features), `store` (the front),
`workspace` (a team's part of it).
"""

from ray_jobs.storage.manifest import FileEntry, Manifest, ObjectInfo
from ray_jobs.storage.store import Store
from ray_jobs.storage.transfer import ProgressFn
from ray_jobs.storage.workspace import Workspace

__all__ = ["FileEntry", "Manifest", "ObjectInfo", "ProgressFn", "Store", "Workspace"]
