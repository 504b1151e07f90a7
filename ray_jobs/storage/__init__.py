"""The object store: the only durable thing, and the only way to it.

Owns everything that speaks S3: single objects with conditional writes, parallel verified transfer of files and trees,
and trees committed by a `manifest.json` that is written last. Knows nothing of jobs, models or what the bytes mean.

    store = Store.from_env()
    files = store.upload_tree(directory, "models/greeter/1")
    store.commit("models/greeter/1", files, {"task": "chat"})
    path = store.fetch("models/greeter/1")

The parts, low layer first: `manifest` (what a tree holds, pure), `faults` (what a failed request means, pure), `bucket`
(single requests, with retries), `transfer` (many requests at once), `probe` (what a store can do), `store` (the front).
"""

from ray_jobs.storage.manifest import FileEntry, Manifest, ObjectInfo
from ray_jobs.storage.store import Store
from ray_jobs.storage.transfer import ProgressFn

__all__ = ["FileEntry", "Manifest", "ObjectInfo", "ProgressFn", "Store"]
