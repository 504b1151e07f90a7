"""The places where ray.serve.llm is told to do otherwise. Imports vllm: only an engine's replica loads this.

`Server`: sends no usage reports. `KeepLocal`: the weights are on this node already. `AdapterLoader`: adapters come
verified from our store. `SingleProcessEngine`: a CPU engine's scheduler and worker share one process.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.llm._internal.common.models import global_id_manager
from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.llm._internal.serve.utils.lora_serve_utils import LoraModelLoader
from ray.serve.llm.deployment import LLMServer

from ray_jobs.storage import Store


class Server(LLMServer):
    """Starts its engine and nothing else: Ray's would start a process of 400 MiB that reports usage to its makers."""

    async def _start_engine(self) -> None:
        assert self.engine is not None
        await self.engine.start()  # type: ignore[no-untyped-call]  # Ray's is not annotated


class KeepLocal(CallbackBase):
    """Skips the task that downloads a model on every node: it costs a process and ten seconds to find nothing to do."""

    async def on_before_node_init(self) -> None:
        self.ctx.run_init_node = False


class AdapterLoader(LoraModelLoader):
    """Adapters by `name@version`, fetched with every checksum verified and kept in the node's cache."""

    async def load_model_from_config(self, lora_model_id: str, llm_config: Any) -> DiskMultiplexConfig:
        if lora_model_id not in self.disk_cache:
            name, _, version = lora_model_id.partition("@")
            store = Store.from_env(check=False)
            directory = await asyncio.to_thread(store.fetch, f"models/{name}/{version}")
            self.disk_cache[lora_model_id] = DiskMultiplexConfig(
                model_id=lora_model_id,
                max_total_tokens=None,
                local_path=str(directory),
                lora_assigned_int_id=global_id_manager.next(),
            )
        return self.disk_cache[lora_model_id]


class SingleProcessEngine(VLLMEngine):
    """vLLM gives a CPU engine a worker process beside its scheduler's, to bind threads to cores.

    With one worker and no binding (see `ray_jobs.engine`) that is a second import of vllm, about ten seconds and half
    a GiB, for nothing.
    """

    def _prepare_engine_config(self, callback_ctx: Any) -> Any:
        engine_args, frontend_args, config = super()._prepare_engine_config(callback_ctx)
        if config.parallel_config.world_size == 1:
            config.parallel_config.distributed_executor_backend = "uni"
        return engine_args, frontend_args, config
