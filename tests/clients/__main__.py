"""`make test-clients`: unmodified OpenAI clients, each in an environment of its own, against a real service.

    python -m tests.clients [NAME …]

Owns the order of the runs. A failing client does not stop the others; the exit code is then 1. The results are in
docs/clients.md, and the output of each client in `.kitae/clients/NAME.log`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from tests.clients.catalogue import CLIENTS, NODE, Client
from tests.clients.result_table import DOCUMENT, PASSED, Outcome, rendered
from tests.clients.tuned_service import TunedService, tuned_service
from tests.serving.clients import CLIENTS as ENVIRONMENTS
from tests.serving.clients import environment

SCRIPTS = Path(__file__).parent / "scripts"
QUIET = {
    "DO_NOT_TRACK": "1",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "PROMPTFOO_DISABLE_TELEMETRY": "1",
    "PROMPTFOO_DISABLE_UPDATE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Nothing is sent to other servers. Everything else of a client has its default."""


def main(names: list[str]) -> int:
    known = [client.name for client in CLIENTS]
    if unknown := sorted(set(names) - set(known)):
        print(f"error: unknown clients {', '.join(unknown)}; known are {', '.join(known)}", file=sys.stderr)
        return 2
    failed = []
    with tuned_service() as service:
        for client in CLIENTS:
            if names and client.name not in names:
                continue
            print(f"== {client.name} {client.version}", flush=True)
            error = run(client, service)
            print(f"   {error or PASSED}", flush=True)
            failed += [client.name] if error else []
            outcome = Outcome(client.version, error or PASSED, f"{datetime.now(UTC):%Y-%m-%d}")
            text = rendered(CLIENTS, {client.name: outcome}, DOCUMENT.read_text(encoding="utf-8"))
            DOCUMENT.write_text(text, encoding="utf-8")
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    return 1 if failed else 0


def run(client: Client, service: TunedService) -> str | None:
    """Install and run a client; returns its last error if it failed."""
    arguments = [service.url, service.key, service.model, str(service.tokenizer)]
    log = ENVIRONMENTS / f"{client.name}.log"
    with log.open("w", encoding="utf-8") as output, tempfile.TemporaryDirectory() as directory:
        try:
            command = command_of(client)
            done = subprocess.run(
                [*command, *arguments],
                env={name: value for name, value in os.environ.items() if not name.startswith("OPENAI")} | QUIET,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
                timeout=client.timeout_s,
                check=False,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            return f"failed: {str(error).replace(str(ENVIRONMENTS), '…')[:200]}"
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line] or lines or [f"exit code {done.returncode}"]
    return f"failed: {errors[-1][:200]}"


def command_of(client: Client) -> list[str]:
    """Interpreter and script; installs what they need."""
    script = SCRIPTS / client.script
    if script.suffix == ".py":
        python = environment(client.environment or client.name, client.packages) if client.packages else sys.executable
        return [str(python), str(script)]
    programs = environment("node", (NODE,)).parent
    directory = ENVIRONMENTS / client.name
    directory.mkdir(parents=True, exist_ok=True)
    search_path = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    install = [str(programs / "npm"), "install", "--silent", "--prefix", str(directory), *client.packages]
    subprocess.run(install, env=os.environ | search_path, check=True, timeout=900)
    # Node looks for packages beside the script.
    return [str(programs / "node"), str(shutil.copy(script, directory / script.name))]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
