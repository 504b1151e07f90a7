"""Generative models: one Serve application a base (with all its adapters) or full fine-tune, on ray.serve.llm and vLLM.

Owns the deployment around `ray.serve.llm.LLMServer`: what it loads, what it reserves, and plain dictionaries in and out
so that whoever calls it imports neither vllm nor torch. How vLLM itself is set up is `ray_jobs.engine`'s alone.

Start-up is kept short: nothing heavy is imported to build the application, the weights come from our store instead of a
download task on every node, and a CPU engine has one process of its own, not two.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from ray_jobs.deploy.records import Deployment
from ray_jobs.engine import (
    GPU,
    EngineSettings,
    Hardware,
    cpu_hardware,
    engine_environment,
    engine_kwargs,
    serving_dtype,
)
from ray_jobs.errors import StoreError
from ray_jobs.storage import Store

if TYPE_CHECKING:
    from ray.serve import Application

logger = logging.getLogger(__name__)

CPU_SHARE = 0.01
"""Ray CPUs an engine without a GPU reserves: on a small machine training and serving take turns at the same cores."""


def engine_settings(record: Deployment, hardware: Hardware) -> EngineSettings:
    """The engine of a deployment record."""
    serving = record.serving
    return EngineSettings(
        dtype=serving_dtype(record.precision, hardware),
        hardware=hardware,
        max_model_len=serving.max_model_len,
        max_lora_rank=record.max_lora_rank,
        max_loras=serving.max_loras,
        kv_cache_gib=serving.kv_cache_gib,
        max_num_seqs=serving.max_ongoing_requests,
    )


def build(args: dict[str, Any]) -> Application:
    """Serve's builder (`serving.inference.llm:build`): the application of one record, given as its JSON."""
    from ray import serve

    record = Deployment.model_validate(args)
    gpu = has_gpu()
    deployment = serve.deployment(
        name="Engine",
        num_replicas=1,
        max_ongoing_requests=record.serving.max_ongoing_requests,
        max_queued_requests=record.serving.max_queued_requests,
        # A request that waits asks for a free place again and again: at Serve's default every half second, in which
        # places stay empty while requests wait for them.
        request_router_config={"max_backoff_s": 0.05},
        logging_config={"enable_access_log": False},  # the ingress has a line for each request
        ray_actor_options={"num_cpus": 1.0 if gpu else CPU_SHARE},
        placement_group_bundles=[{"CPU": 1.0, "GPU": 1.0} if gpu else {"CPU": CPU_SHARE}],
        placement_group_strategy="STRICT_PACK",
        # Serve replaces a replica after three failures; a dead engine must not refuse requests for longer than that.
        health_check_period_s=2.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=10.0,
        # A wrong model does not become right by trying: fail with its message at once.
        max_constructor_retry_count=1,
    )(Engine)
    application: Application = deployment.bind(record.model_dump(mode="json"), "gpu" if gpu else "cpu")
    return application


def has_gpu() -> bool:
    """Whether this Ray cluster has GPUs; engines then run on them, and on CPUs only where there are none."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's is not annotated
    return resources.get("GPU", 0) > 0


class Engine:
    """One replica: an LLMServer, and the adapters that requests ask for."""

    async def __init__(self, args: dict[str, Any], device: str) -> None:  # type: ignore[misc]  # Serve awaits it
        record = Deployment.model_validate(args)
        assert record.key is not None
        settings = engine_settings(record, GPU if device == "gpu" else cpu_hardware())
        os.environ.update(engine_environment(settings))  # before torch or vllm are imported, here and in the engine
        store = Store.from_env(check=False)
        directory = await asyncio.to_thread(store.fetch, record.key)

        from ray.serve.llm import LLMConfig

        from serving.inference.vllm_engine import AdapterLoader, KeepLocal, Server, SingleProcessEngine

        name = record.name if record.version is None else f"{record.name}@{record.version}"
        lora = {
            "dynamic_lora_loading_path": store.uri("models"),
            "max_num_adapters_per_replica": record.serving.max_loras,
        }
        config = LLMConfig(
            model_loading_config={"model_id": name, "model_source": str(directory)},
            engine_kwargs=engine_kwargs(settings),
            accelerator_config={"kind": device},
            placement_group_config={
                "bundle_per_worker": {"CPU": 1.0, "GPU": 1.0} if device == "gpu" else {"CPU": CPU_SHARE}
            },
            lora_config=lora if record.max_lora_rank is not None else None,
            callback_config={"callback_class": KeepLocal},
            experimental_configs={"stream_batching_interval_ms": 0},
        )
        self._server = Server.sync_init(
            config,
            engine_cls=SingleProcessEngine if device == "cpu" else None,
            model_downloader=AdapterLoader,
        )
        await self._server.start()  # type: ignore[no-untyped-call]  # Ray's is not annotated

    async def chat(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any] | str]:
        """A chat completion; see `serving.inference.backends.Backend.generate`."""
        from ray.serve.llm.openai_api_models import ChatCompletionRequest

        async for piece in self._answer("chat", ChatCompletionRequest, body):
            yield piece

    async def completions(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any] | str]:
        """A text completion; see `serving.inference.backends.Backend.generate`."""
        from ray.serve.llm.openai_api_models import CompletionRequest

        async for piece in self._answer("completions", CompletionRequest, body):
            yield piece

    async def in_flight(self) -> int:
        """Requests the engine works on or has queued."""
        engine: Any = self._server.engine
        return len(engine._engine_client.output_processor.request_states)

    async def check_health(self) -> None:
        """Serve's health check: raises when the engine is dead, so that the replica is replaced."""
        await self._server.check_health()

    async def _answer(self, method: str, schema: Any, body: dict[str, Any]) -> AsyncIterator[dict[str, Any] | str]:
        from pydantic import ValidationError

        try:
            request = schema.model_validate(body)
        except ValidationError as invalid:
            yield {"error": _first_problem(invalid)}
            return
        try:
            async for piece in await getattr(self._server, method)(request):
                for item in piece if isinstance(piece, list) else [piece]:
                    if isinstance(item, str):
                        yield item
                    elif (error := getattr(item, "error", None)) is not None:
                        yield {"error": error.model_dump(mode="json")}
                    else:
                        yield {"response": item.model_dump(mode="json")}
        except Exception as failure:
            # Told, not raised: whoever asked cannot even unpickle vLLM's exceptions without importing it.
            logger.exception("a request failed")
            engine: Any = self._server.engine
            passing = isinstance(failure, StoreError) or engine._engine_client.errored
            yield {"error": {"message": type(failure).__name__, "code": 503 if passing else 500}}


def _first_problem(error: Any) -> dict[str, Any]:
    """A request that does not fit vLLM's schema, as vLLM's own refusals look."""
    problem = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return {"message": f"{where}: {problem['msg']}" if where else problem["msg"], "param": where or None, "code": 400}
