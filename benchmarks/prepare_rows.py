"""The preparation of a dataset in a process of its own, on Ray Data, without the upload.

python -m benchmarks.prepare_rows ROWS.jsonl
"""

from __future__ import annotations

import sys

from ray_jobs.data.prepare import outline
from ray_jobs.spec import DataSection
from ray_jobs.storage import Workspace
from ray_jobs.tasks import TASKS
from ray_jobs.training import ray_workers

RECIPE = {"split": "18:1:1", "clean": "standard"}


def main(rows: str) -> None:
    data = DataSection.model_validate({"train": rows, **RECIPE})
    ray_workers.connect()
    print(outline(Workspace.from_env(), data, TASKS["text_classification"]).as_text())


if __name__ == "__main__":
    main(sys.argv[1])
