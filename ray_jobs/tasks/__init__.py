"""The kinds of job there are, by name. A new task is a new file here and a line in `TASKS`."""

from __future__ import annotations

from ray_jobs.tasks.base import Task
from ray_jobs.tasks.chat import Chat
from ray_jobs.tasks.text_classification import TextClassification

TASKS: dict[str, Task] = {task.name: task for task in (Chat(), TextClassification())}
