"""The local service of one directory, in `.kitae/`: an embedded S3 server, a Ray head and the endpoint's port.

    python -m ray_jobs local up

Owns the order of starting and stopping. The parts: `embedded_store` and `ray_head` (how each is started), `processes`
(which processes belong to the service), `state` (the files). Knows no job and no model.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray_jobs.errors import MachineError
from ray_jobs.local import embedded_store, processes, ray_head
from ray_jobs.local.state import Home, LocalState

Log = Callable[[str], None]


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def up(root: Path | None = None, *, port: int | None = None, log: Log = _print) -> None:
    """Start the parts that do not run, and wait until they answer. Data and healthy parts stay untouched.

    `root` None: the current directory. `port`, the endpoint's, None: KITAE_PORT, else the previous port, else 8000.
    Raises MachineError if a part does not start, or another program uses the port.
    """
    home = Home(root or Path.cwd())
    with home.locked():
        state = home.load() or LocalState(
            endpoint_port=8000,
            store_ports=embedded_store.choose_ports(),
            store=None,
            ray_ports=ray_head.choose_ports(),
            ray=None,
        )
        state = _with_endpoint_port(home, state, port)
        home.save(state)
        state = _store_up(home, state, log)
        _ray_up(home, state, log)


def down(root: Path | None = None, *, log: Log = _print) -> None:
    """Stop the processes of the service and all their descendants, and no others. The data stays."""
    home = Home(root or Path.cwd())
    if not home.path.is_dir():
        log(f"nothing to stop: {home.path} does not exist")
        return
    with home.locked():
        state = home.load()
        roots = {} if state is None else {"ray": state.ray, "store": state.store}
        # Ray first: jobs on it still write to the store.
        for part, what in (("ray", "Ray and its jobs"), ("store", "the store")):
            count = processes.stop([roots.get(part)], home.mark(part))
            log(f"stopped {what}: {count} process(es)" if count else f"{what} did not run")
        ray_head.keep_logs(home.root, home.logs / "ray-session")
        if state is not None:
            embedded_store.remove_sockets(state.store_ports)
            home.save(replace(state, store=None, ray=None))


def is_up(root: Path | None = None) -> bool:
    """True if the store of this directory runs; quick, since it only checks the process."""
    state = Home(root or Path.cwd()).load()
    return state is not None and state.store is not None and state.store.alive


def status(root: Path | None = None) -> dict[str, Any]:
    """State and address of each part."""
    home = Home(root or Path.cwd())
    state = home.load()
    if state is None:
        return {"directory": str(home.path), "store": None, "ray": None, "endpoint": None}
    return {
        "directory": str(home.path),
        "store": {
            "pid": state.store.pid if state.store and state.store.alive else None,
            "healthy": embedded_store.is_healthy(state.store_ports, home.credentials()),
            "uri": f"s3://{embedded_store.BUCKET}",
            "endpoint_url": embedded_store.endpoint_url(state.store_ports),
        },
        "ray": {
            "pid": state.ray.pid if state.ray and state.ray.alive else None,
            "healthy": ray_head.is_healthy(state.ray_ports, home.ray_token()),
            "address": f"127.0.0.1:{state.ray_ports.gcs}",
            "dashboard_url": ray_head.dashboard_url(state.ray_ports),
        },
        "endpoint": {
            "listening": not processes.is_free(state.endpoint_port),
            "url": f"http://127.0.0.1:{state.endpoint_port}/v1",
        },
        "logs": str(home.logs),
    }


def environment(root: Path | None = None) -> dict[str, str]:
    """Environment variables with the addresses and credentials of this service."""
    home = Home(root or Path.cwd())
    state = home.load()
    if state is None:
        raise MachineError(f"no service in {home.root}: start it with `kitae local up`")
    credentials = home.credentials()
    home.ray_token()
    variables = {
        "KITAE_STORE": f"s3://{embedded_store.BUCKET}",
        "AWS_ENDPOINT_URL": embedded_store.endpoint_url(state.store_ports),
        "AWS_ACCESS_KEY_ID": credentials.access_key_id,
        "AWS_SECRET_ACCESS_KEY": credentials.secret_access_key,
        "AWS_REGION": "us-east-1",
        "KITAE_PORT": str(state.endpoint_port),
        "KITAE_API_KEY": home.api_key(),
        # Drivers use the first; Ray's job and Serve clients each use one of the others.
        "RAY_ADDRESS": f"127.0.0.1:{state.ray_ports.gcs}",
        "RAY_API_SERVER_ADDRESS": ray_head.dashboard_url(state.ray_ports),
        "RAY_DASHBOARD_ADDRESS": ray_head.dashboard_url(state.ray_ports),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home.token_path),
    }
    if any(os.environ.get(name) for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")):
        bypassed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
        direct = ",".join([*filter(None, [bypassed]), "127.0.0.1", "localhost"])
        variables |= {"no_proxy": direct, "NO_PROXY": direct}
    if os.environ.get("AWS_SESSION_TOKEN"):  # it belongs to other credentials
        variables["AWS_SESSION_TOKEN"] = ""
    return variables


def _with_endpoint_port(home: Home, state: LocalState, port: int | None) -> LocalState:
    """The state with this endpoint port, else KITAE_PORT's, else unchanged. MachineError if it cannot be used."""
    named = os.environ.get("KITAE_PORT")
    if port is None and named:
        if not named.isdigit() or not 0 < int(named) < 65536:
            raise MachineError(f"KITAE_PORT is {named!r}, not a port: set a number from 1 to 65535")
        port = int(named)
    port = port or state.endpoint_port
    if not processes.is_free(port):
        holder = processes.holder_of(port)
        if holder not in processes.family([state.ray], home.mark("ray")):
            raise MachineError(
                f"port {port}, the endpoint's, is in use by {holder or 'another program'}: stop that, or set "
                "KITAE_PORT to another port"
            )
    running = state.ray is not None and state.ray.alive
    if running and port != state.endpoint_port:
        raise MachineError(
            f"the service of {home.root} runs with endpoint port {state.endpoint_port}, not {port}: `kitae local down` "
            f"first, or set KITAE_PORT={state.endpoint_port}"
        )
    return replace(state, endpoint_port=port)


def _store_up(home: Home, state: LocalState, log: Log) -> LocalState:
    credentials = home.credentials()
    if state.store is not None and state.store.alive and embedded_store.is_healthy(state.store_ports, credentials):
        log(f"store: runs at {embedded_store.endpoint_url(state.store_ports)}")
        return state
    processes.stop([state.store], home.mark("store"))
    taken = [port for port in embedded_store.every_port(state.store_ports) if not processes.is_free(port)]
    if taken:
        holder = processes.holder_of(taken[0]) or "another program"
        log(f"store: port {taken[0]} is in use by {holder}; choosing other ports")
        processes.stop([state.ray], home.mark("ray"))  # its workers have the old address
        state = replace(state, store_ports=embedded_store.choose_ports(), ray=None)
    output = home.logs / "store.log"
    process = embedded_store.start(
        home.store_data,
        output,
        state.store_ports,
        credentials,
        environment={**os.environ, processes.MARK: home.mark("store")},
    )
    state = replace(state, store=process)
    home.save(state)
    embedded_store.wait_until_ready(process, state.store_ports, credentials, output)
    log(f"store: started at {embedded_store.endpoint_url(state.store_ports)}, its data in {home.store_data}")
    return state


def _ray_up(home: Home, state: LocalState, log: Log) -> LocalState:
    token = home.ray_token()
    if state.ray is not None and state.ray.alive and ray_head.is_healthy(state.ray_ports, token):
        log(f"ray: runs, dashboard at {ray_head.dashboard_url(state.ray_ports)}")
        return state
    processes.stop([state.ray], home.mark("ray"))
    if any(not processes.is_free(port) for port in vars(state.ray_ports).values()):
        state = replace(state, ray_ports=ray_head.choose_ports())
        home.save(state)
    output = home.logs / "ray.log"
    inherited = {**os.environ, **environment(home.root), processes.MARK: home.mark("ray")}
    process = ray_head.start(home.root, output, state.ray_ports, environment=inherited)
    state = replace(state, ray=process)
    home.save(state)
    ray_head.wait_until_ready(process, state.ray_ports, token, output)
    log(f"ray: started, dashboard at {ray_head.dashboard_url(state.ray_ports)}")
    return state
