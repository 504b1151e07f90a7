"""The predictor of text classification: one Serve application for each registered model.

Owns the deployment: it loads a version from the store and puts waiting requests into one batch. Predictions come from
the task's own `predict`, as in training and evaluation.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from ray_jobs import registry
from ray_jobs.deploy.records import Deployment
from ray_jobs.engine import GPU, cpu_hardware, serving_dtype
from ray_jobs.registry.files import fetch_checked
from ray_jobs.storage import Store, Workspace
from serving.inference.engine_errors import plain_errors
from serving.inference.llm import CPU_SHARE, has_gpu

if TYPE_CHECKING:
    from ray.serve import Application

BATCH_TEXTS = 32
"""Most texts in one batch."""

BATCH_WAIT_S = 0.005
"""Longest that the first text of a batch waits for others."""


def build(args: dict[str, Any]) -> Application:
    """Build the Serve application of a deployment record, given as its JSON."""
    from ray import serve

    record = Deployment.model_validate(args)
    deployment = serve.deployment(
        name="Predictor",
        num_replicas=1,
        max_ongoing_requests=record.serving.max_ongoing_requests,
        max_queued_requests=record.serving.max_queued_requests,
        logging_config={"enable_access_log": False},  # the ingress has a line for each request
        ray_actor_options={"num_cpus": CPU_SHARE, "num_gpus": 0.1 if has_gpu() else 0},
        health_check_period_s=10.0,
        health_check_timeout_s=30.0,
        max_constructor_retry_count=1,
    )(TextClassifier)
    application: Application = deployment.bind(record.model_dump(mode="json"))
    return application


class TextClassifier:
    """One replica: a classifier in memory that predicts a batch at a time."""

    def __init__(self, args: dict[str, Any]) -> None:
        with plain_errors("the start of the predictor"):
            self._start(args)

    def _start(self, args: dict[str, Any]) -> None:
        record = Deployment.model_validate(args)
        assert record.key is not None
        hardware = cpu_hardware()
        os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
        store = Workspace(Store.from_env(check=False), str(record.team))
        directory = fetch_checked(store, record.key)
        base = None if record.base_key is None else fetch_checked(store, record.base_key)

        import torch
        from ray import serve

        from ray_jobs.models import load_processor, load_published
        from ray_jobs.tasks.text_classification import TextClassification

        if torch.cuda.is_available():
            hardware = GPU
        else:
            torch.set_num_threads(hardware.threads)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[serving_dtype(record.precision, hardware)]
        self._labels = registry.get(store, f"{record.name}@{record.version}").labels
        self._model = load_published(directory, base, record.task, self._labels, dtype)
        if hardware is GPU:
            self._model.to("cuda")
        self._tokenizer = load_processor(directory, record.task)
        self._task = TextClassification()
        # Wrapped here, not as a decorator: this module is imported without ray.
        self._batched = serve.batch(max_batch_size=BATCH_TEXTS, batch_wait_timeout_s=BATCH_WAIT_S)(self._predict)

    async def classify(self, texts: list[str]) -> list[dict[str, Any]]:
        """See `serving.inference.backends.Backend.predict`. Texts of several requests share a batch."""
        with plain_errors("a prediction"):
            return list(await asyncio.gather(*(self._batched(text) for text in texts)))

    async def embed(self, texts: list[str]) -> list[dict[str, Any]]:
        """See `serving.inference.backends.Backend.predict`."""
        with plain_errors("an embedding"):
            return await asyncio.to_thread(self._embed_now, texts)

    def _embed_now(self, texts: list[str]) -> list[dict[str, Any]]:
        vectors = self._task.embed(self._model, self._tokenizer, texts)
        return [
            {"embedding": vector, "tokens": len(self._tokenizer.encode(text))}
            for text, vector in zip(texts, vectors, strict=True)
        ]

    async def _predict(self, texts: list[str]) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self._predict_now, texts)

    def _predict_now(self, texts: list[str]) -> list[dict[str, Any]]:
        predictions = self._task.predict(self._model, self._tokenizer, texts, self._labels)
        return [
            {"scores": prediction.scores, "tokens": len(self._tokenizer.encode(text))}
            for text, prediction in zip(texts, predictions, strict=True)
        ]
