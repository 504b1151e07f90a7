"""Tasks, a file each: what a job trains a model to do. A new task is a file here, its predictor, and a line in `TASKS`.

Knows no job file and no store: every room that needs a fact of a task, from the job file's schema to the endpoint's
routes, reads it from `TASKS`.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from ray_jobs.tasks.base import Task
from ray_jobs.tasks.chat.task import Chat
from ray_jobs.tasks.text_classification import TextClassification

TASKS: dict[str, Task[Any]] = {task.name: task for task in (Chat(), TextClassification())}
DEFAULT_TASK = Chat.name
"""Assumed where neither a request nor the rows' columns say the task."""


def task_for(columns: AbstractSet[str]) -> str:
    """Name of the task that recognises rows with these columns; `DEFAULT_TASK` where none does."""
    return next((name for name, task in TASKS.items() if task.recognises(columns)), DEFAULT_TASK)


def _known(value: object) -> str:
    if isinstance(value, str) and value in TASKS:
        return value
    *names, last = map(repr, TASKS)
    raise PydanticCustomError("literal_error", "must be {expected}", {"expected": f"{', '.join(names)} or {last}"})


TaskName = Annotated[str, PlainValidator(_known), WithJsonSchema({"enum": list(TASKS), "type": "string"})]
"""A field that holds a task's name: validated, and listed in the JSON schema, as a `Literal` of the names is."""
