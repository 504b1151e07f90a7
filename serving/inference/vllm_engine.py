"""Overrides of ray.serve.llm. Imports vllm: only an engine's replica loads this module.

`Server` sends no usage reports and loads each adapter once. `KeepLocal` skips the download of weights. `AdapterLoader`
fetches verified adapters from the store. `SingleProcessEngine` runs a CPU engine's scheduler and worker in one process.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from ray import serve
from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.llm._internal.common.models import global_id_manager
from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.llm._internal.serve.utils.lora_serve_utils import LoraModelLoader
from ray.serve.llm.deployment import LLMServer

from ray_jobs import registry
from ray_jobs.errors import MachineError
from ray_jobs.registry.files import fetch_checked
from ray_jobs.registry.model import key_of
from ray_jobs.storage import Store


class Server(LLMServer):
    """Starts only the engine, since Ray's server also starts a process of 400 MiB that reports usage, and loads each
    adapter once: without a lock, two first requests both load it, and vLLM refuses the second."""

    async def _start_engine(self) -> None:
        assert self.engine is not None
        await self.engine.start()  # type: ignore[no-untyped-call]  # Ray's is not annotated
        self._adapter_locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def _maybe_resolve_lora_from_multiplex(self) -> None:
        """Load the request's adapter. Raises StoreError, or MachineError: the caller is never at fault."""
        adapter = serve.get_multiplexed_model_id()
        async with self._adapter_locks[adapter]:
            try:
                await super()._maybe_resolve_lora_from_multiplex()
            except ValueError as error:
                raise MachineError(f"the engine cannot load the adapter {adapter}: {error}") from error


class KeepLocal(CallbackBase):
    """Skips the download task on every node, which takes a process and ten seconds to find that nothing is missing."""

    async def on_before_node_init(self) -> None:
        self.ctx.run_init_node = False


class AdapterLoader(LoraModelLoader):
    """Loads adapters by `name@version` from the store, with verified checksums, into the node's cache."""

    async def load_model_from_config(self, lora_model_id: str, llm_config: Any) -> DiskMultiplexConfig:
        if lora_model_id not in self.disk_cache:
            name, _, version = lora_model_id.partition("@")
            home = await asyncio.to_thread(registry.workspace_of, Store.from_env(check=False), name)
            # Checked, since vLLM also loads pickles.
            directory = await asyncio.to_thread(fetch_checked, home, key_of(name, version))
            self.disk_cache[lora_model_id] = DiskMultiplexConfig(
                model_id=lora_model_id,
                max_total_tokens=None,
                local_path=str(directory),
                lora_assigned_int_id=global_id_manager.next(),
            )
        return self.disk_cache[lora_model_id]


class SingleProcessEngine(VLLMEngine):
    """Runs the worker of a CPU engine in its scheduler's process.

    vLLM uses a separate worker process to bind threads to cores. With one worker and no binding (see `ray_jobs.engine`)
    it would only import vllm a second time: about 10 s and 0.5 GiB.
    """

    def _prepare_engine_config(self, callback_ctx: Any) -> Any:
        engine_args, frontend_args, config = super()._prepare_engine_config(callback_ctx)
        if config.parallel_config.world_size == 1:
            config.parallel_config.distributed_executor_backend = "uni"
        return engine_args, frontend_args, config
