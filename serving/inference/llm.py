"""Generative models: one Serve application a base (with all its adapters) or full fine-tune, on ray.serve.llm and vLLM.

Owns the deployment around `ray.serve.llm.LLMServer`: what it loads and reserves. Exchanges plain dictionaries, so that
callers import neither vllm nor torch. `ray_jobs.engine` alone configures vLLM.

Start-up is short: building the application imports nothing heavy, weights come from the store instead of a download
task on every node, and a CPU engine runs in one process instead of two.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

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
from ray_jobs.errors import MachineError
from ray_jobs.models.imports import import_transformers
from ray_jobs.registry.files import fetch_checked
from ray_jobs.spec import ServingSection
from ray_jobs.storage import Store, Workspace
from ray_jobs.tasks.chat.parsers import Parsers, parsers_of
from serving.inference import engine_errors
from serving.inference.places import team_answers, with_reserve

if TYPE_CHECKING:
    from ray.serve import Application

    from serving.inference.backends import Chunks

logger = logging.getLogger(__name__)

CPU_SHARE = 0.01
"""Ray CPUs reserved by an engine without a GPU: on a small machine training and serving share the same cores."""


GROWTH_GIB = 3.0
"""Memory that an engine may take beyond that of its start and its cache. Over it Serve replaces the replica, before the
machine's memory ends and takes other processes with it."""


def memory_gib() -> float:
    """Return the resident memory of this process and its children."""
    me = psutil.Process()
    used_bytes = 0
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.Error):  # ended meanwhile
            used_bytes += process.memory_info().rss
    return float(used_bytes) / 2**30


def engine_settings(record: Deployment, hardware: Hardware) -> EngineSettings:
    serving = record.serving
    return EngineSettings(
        dtype=serving_dtype(record.precision, hardware),
        hardware=hardware,
        max_model_len=serving.max_model_len,
        max_lora_rank=record.max_lora_rank,
        max_loras=serving.max_loras,
        kv_cache_gib=serving.kv_cache_gib,
        max_num_seqs=with_reserve(team_answers(serving)),
    )


def build(args: dict[str, Any]) -> Application:
    """Build the application of a deployment record, given as JSON, for Serve (`serving.inference.llm:build`)."""
    from ray import serve

    record = Deployment.model_validate(args)
    gpu = has_gpu()
    deployment = serve.deployment(
        name="Engine",
        num_replicas=1,
        max_ongoing_requests=with_reserve(record.serving.max_ongoing_requests),
        max_queued_requests=record.serving.max_queued_requests,
        # A queued request polls for a free slot. Serve's default backoff of 0.5 s leaves free slots unused.
        request_router_config={"max_backoff_s": 0.05},
        logging_config={"enable_access_log": False},  # the ingress has a line for each request
        ray_actor_options={"num_cpus": 1.0 if gpu else CPU_SHARE},
        placement_group_bundles=[{"CPU": 1.0, "GPU": 1.0} if gpu else {"CPU": CPU_SHARE}],
        placement_group_strategy="STRICT_PACK",
        # Serve replaces a replica after three failed checks; this bounds the time that a dead engine refuses requests.
        health_check_period_s=2.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=10.0,
        # Retries do not repair an invalid model: fail at once with its message.
        max_constructor_retry_count=1,
    )(Engine)
    application: Application = deployment.bind(record.model_dump(mode="json"), "gpu" if gpu else "cpu")
    return application


def has_gpu() -> bool:
    """Return whether this Ray cluster has GPUs. Engines run on CPUs only if it has none."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's is not annotated
    return resources.get("GPU", 0) > 0


def find_parsers(directory: Path, serving: ServingSection) -> Parsers:
    """Return the parsers of a base's answers. Reasoning is not parsed where the tokenizer lacks its tokens."""
    from vllm.parser.parser_manager import ParserManager

    tokenizer = import_transformers().AutoTokenizer.from_pretrained(str(directory))
    parsers = parsers_of(tokenizer, tool=serving.tool_parser, reasoning=serving.reasoning_parser)
    try:
        kind = ParserManager.get_reasoning_parser(parsers.reasoning)
        if kind is not None:
            kind(tokenizer, chat_template_kwargs=dict(parsers.switches))
    except RuntimeError as error:
        logger.warning("reasoning stays in the text of the answers: %s", error)
        return Parsers(parsers.tool, None)
    return parsers


def frontend_kwargs(parsers: Parsers) -> dict[str, Any]:
    """Return vLLM's arguments for reading answers (`vllm.entrypoints` and `EngineArgs`).

    Without a parser for the base's own calls, one of JSON: a call that the request demands is generated in its format.
    """
    kwargs: dict[str, Any] = {"enable_auto_tool_choice": True, "tool_call_parser": parsers.tool or "hermes"}
    if parsers.reasoning is not None:
        kwargs["reasoning_parser"] = parsers.reasoning
    if parsers.switches:
        kwargs["default_chat_template_kwargs"] = dict(parsers.switches)
    return kwargs


class Engine:
    """One replica: an LLMServer and the adapters that requests name."""

    async def __init__(self, args: dict[str, Any], device: str) -> None:  # type: ignore[misc]  # Serve awaits it
        with engine_errors.plain_errors("the start of the engine"):
            await self._start(args, device)

    async def _start(self, args: dict[str, Any], device: str) -> None:
        record = Deployment.model_validate(args)
        assert record.key is not None
        settings = engine_settings(record, GPU if device == "gpu" else cpu_hardware())
        self._context_tokens = settings.max_model_len
        os.environ.update(engine_environment(settings))  # before torch or vllm is imported, here and in the engine
        whole = Store.from_env(check=False)
        store = whole if record.team is None else Workspace(whole, record.team)
        directory = await asyncio.to_thread(fetch_checked, store, record.key)

        from ray.serve.llm import LLMConfig

        from serving.inference.vllm_engine import AdapterLoader, KeepLocal, Server, SingleProcessEngine

        parsers = await asyncio.to_thread(find_parsers, directory, record.serving)
        self._chooses_tools = parsers.tool is not None
        name = record.name if record.version is None else f"{record.name}@{record.version}"
        lora = {
            "dynamic_lora_loading_path": store.uri("models"),
            "max_num_adapters_per_replica": record.serving.max_loras,
        }
        config = LLMConfig(
            model_loading_config={"model_id": name, "model_source": str(directory)},
            engine_kwargs=engine_kwargs(settings) | frontend_kwargs(parsers),
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
        # What fills later: the cache (which a GPU holds itself), adapters, grammars.
        self._memory_gib = memory_gib() + (0.0 if device == "gpu" else record.serving.kv_cache_gib) + GROWTH_GIB

    async def chat(self, body: dict[str, Any]) -> Chunks:
        """Answer a chat completion."""
        from ray.serve.llm.openai_api_models import ChatCompletionRequest

        async for chunk in self._answer("chat", ChatCompletionRequest, body):
            yield chunk

    async def completions(self, body: dict[str, Any]) -> Chunks:
        """Answer a text completion."""
        from ray.serve.llm.openai_api_models import CompletionRequest

        async for chunk in self._answer("completions", CompletionRequest, body):
            yield chunk

    async def in_flight(self) -> int:
        """Return the number of running and queued requests of the engine."""
        engine: Any = self._server.engine
        return len(engine._engine_client.output_processor.request_states)

    async def check_health(self) -> None:
        """Raise if the engine is dead, so that Serve replaces the replica."""
        with engine_errors.plain_errors("the engine's health check"):
            await self._server.check_health()
            used_gib = memory_gib()
            if used_gib > self._memory_gib:
                raise MachineError(f"the engine uses {used_gib:.1f} GiB, over its {self._memory_gib:.1f} GiB")

    async def _answer(self, method: str, schema: Any, body: dict[str, Any]) -> Chunks:
        """Yield the answer in chunks. Every failure is an `{"error": …}`: no exception leaves this process."""
        if (body.get("max_completion_tokens") or body.get("max_tokens") or 0) >= self._context_tokens:
            yield {"error": engine_errors.over_context(body, self._context_tokens)}
            return
        if body.get("tool_choice") == "auto" and not self._chooses_tools:
            yield {"error": engine_errors.no_tools(body)}
            return
        try:
            request = schema.model_validate(body)
        except Exception as invalid:  # noqa: BLE001  # vLLM's validators raise their own classes, TypeError and others
            yield {"error": engine_errors.invalid_request(invalid, body)}
            return
        started = False
        try:
            async for chunk in await getattr(self._server, method)(request):
                for item in chunk if isinstance(chunk, list) else [chunk]:
                    if isinstance(item, str):
                        error = _error_event(item)
                    else:
                        found = getattr(item, "error", None)
                        error = None if found is None else found.model_dump(mode="json")
                    if error is not None:
                        yield {"error": engine_errors.translated(error, body, context_tokens=self._context_tokens)}
                        return
                    yield item if isinstance(item, str) else {"response": item.model_dump(mode="json")}
                    started = True
        except Exception as failure:  # noqa: BLE001  # logged there
            engine: Any = self._server.engine
            dead = bool(engine._engine_client.errored)
            yield {
                "error": engine_errors.failed_request(
                    failure, body, started=started, dead=dead, context_tokens=self._context_tokens
                )
            }


def _error_event(event: str) -> dict[str, Any] | None:
    """Return the error of a server-sent event, if it is one."""
    if not event.startswith('data: {"error"'):
        return None
    try:
        error = json.loads(event.removeprefix("data:"))["error"]
    except (ValueError, KeyError):
        return {}
    return error if isinstance(error, dict) else {}
