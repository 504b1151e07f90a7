"""A stand-in for kubectl: keeps Secrets, and runs the pod of infra/object-store/seaweedfs.yaml as a process.

    KITAE_FAKE_CLUSTER=DIRECTORY python tests/infra/fake_kubectl.py -n kitae-store get secret seaweedfs -o jsonpath=…

Owns a directory: `secrets/NAMESPACE/NAME.json`, the store's Deployment, its ports, and its process. A command that it
does not know succeeds. `kubectl exec` runs here, with the pod's environment; the pod's S3 port 8333 is a free one.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import subprocess
import sys
import time
import urllib.request
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from ray_jobs.local import embedded_store, processes
from ray_jobs.local.embedded_store import StorePorts
from ray_jobs.local.processes import Process
from tests.repository import ROOT

Object = dict[str, Any]


class FakeCluster:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pod_file = directory / "pod.json"

    # ---- Secrets ----------------------------------------------------------------------------------------------------

    def secret(self, namespace: str, name: str) -> Object | None:
        path = self.directory / "secrets" / namespace / f"{name}.json"
        found: Object | None = json.loads(path.read_text()) if path.exists() else None
        return found

    def values(self, namespace: str, name: str) -> dict[str, str]:
        """The data of a Secret, decoded."""
        found = self.secret(namespace, name)
        assert found is not None, f"no Secret {name} in {namespace}"
        return {key: base64.b64decode(value).decode() for key, value in found["data"].items()}

    def write_secret(self, manifest: Object) -> None:
        """As `kubectl apply`: the version changes with the data."""
        namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
        old = self.secret(namespace, name)
        if old is not None and old["data"] == manifest["data"]:
            return
        version = 1 if old is None else int(old["metadata"]["resourceVersion"]) + 1
        manifest["metadata"]["resourceVersion"] = str(version)
        path = self.directory / "secrets" / namespace / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(manifest))

    # ---- the store's pod --------------------------------------------------------------------------------------------

    @property
    def ports(self) -> StorePorts:
        path = self.directory / "ports.json"
        if not path.exists():
            path.write_text(json.dumps(asdict(embedded_store.choose_ports())))
        return StorePorts(**json.loads(path.read_text()))

    @property
    def pod(self) -> Process | None:
        return Process(**json.loads(self.pod_file.read_text())["process"]) if self.pod_file.exists() else None

    def template(self) -> Object:
        """The Deployment's pod template."""
        found: Object = json.loads((self.directory / "deployment.json").read_text())["spec"]["template"]
        return found

    def environment(self) -> dict[str, str]:
        (container,) = self.template()["spec"]["containers"]
        values = {each["name"]: each["value"] for each in container["env"]}
        for each in container["envFrom"]:
            values |= self.values("kitae-store", each["secretRef"]["name"])
        return values | {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}

    def roll_out(self) -> None:
        """Restart the pod if its template has changed, and wait until it is ready."""
        template = self.template()
        if self.pod_file.exists():
            if json.loads(self.pod_file.read_text())["template"] == template:
                return
            self.stop()
        mounted = self.directory / "mounted"
        mounted.mkdir(exist_ok=True)
        (volume,) = (each for each in template["spec"]["volumes"] if "secret" in each)
        for name, text in self.values("kitae-store", volume["secret"]["secretName"]).items():
            (mounted / name).write_text(text)
        (container,) = template["spec"]["containers"]
        (place,) = (each["mountPath"] for each in container["volumeMounts"] if each["name"] == volume["name"])
        words = [
            word.replace("/opt/kitae/bin/weed", embedded_store.find_binary())
            .replace("/data", str(self.directory / "data"))
            .replace(place, str(mounted))
            for word in [*container["command"], *container["args"]]
            if not word.startswith("-s3.port=")
        ]
        words += [f"-{server}.port={port}" for server, port in asdict(self.ports).items()]
        (self.directory / "data").mkdir(exist_ok=True)
        mark = secrets.token_hex(16)
        process = processes.spawn(
            words,
            environment=self.environment() | {processes.MARK: mark},
            log=self.directory / "weed.log",
            directory=mounted,
        )
        self.pod_file.write_text(json.dumps({"process": asdict(process), "mark": mark, "template": template}))
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{embedded_store.endpoint_url(self.ports)}/healthz", timeout=5).close()
                return
            except OSError:
                assert time.monotonic() < deadline, "the store is not ready"
                time.sleep(0.2)

    def stop(self) -> None:
        if self.pod_file.exists():
            processes.stop([self.pod], json.loads(self.pod_file.read_text())["mark"])
            embedded_store.remove_sockets(self.ports)
            self.pod_file.unlink()

    def run(self, command: list[str]) -> int:
        """`kubectl exec`."""
        port = f"127.0.0.1:{self.ports.s3}"
        words = [word.replace("127.0.0.1:8333", port) for word in command]
        return subprocess.run(words, env=self.environment(), cwd=self.directory).returncode


def data_of(option: str) -> dict[str, str]:
    """The data of `kubectl create secret generic` from stdin."""
    text = sys.stdin.read()
    if option == "--from-env-file=/dev/stdin":
        found = dict(line.split("=", 1) for line in text.splitlines())
    else:
        match = re.fullmatch(r"--from-file=([^=]+)=/dev/stdin", option)
        assert match is not None, option
        found = {match[1]: text}
    return {key: base64.b64encode(value.encode()).decode() for key, value in found.items()}


def get_secret(cluster: FakeCluster, namespace: str, name: str, path: str | None) -> int:
    found = cluster.secret(namespace, name)
    if found is None:
        print(f'Error from server (NotFound): secrets "{name}" not found', file=sys.stderr)
        return 1
    for key in (path or "").removeprefix("jsonpath={.").removesuffix("}").split("."):
        found = found.get(key, "") if key else found
    print(found if path else name, end="")
    return 0


def main(words: list[str]) -> int:
    cluster = FakeCluster(Path(os.environ["KITAE_FAKE_CLUSTER"]))
    namespace = "default"
    if words[:1] == ["-n"]:
        namespace, words = words[1], words[2:]
    match words:
        case ["get", "secret", name]:
            return get_secret(cluster, namespace, name, None)
        case ["get", "secret", name, "-o", path]:
            return get_secret(cluster, namespace, name, path)
        case ["create", "secret", "generic", name, option, *more]:
            metadata = {"name": name, "namespace": namespace}
            manifest = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data_of(option)}
            if more:
                print(yaml.safe_dump(manifest))
            else:
                assert cluster.secret(namespace, name) is None, "kubectl create does not change an object"
                cluster.write_secret(manifest)
        case ["apply", *_, "-f", "-"]:
            for manifest in yaml.safe_load_all(sys.stdin):
                if manifest["kind"] == "Secret":
                    cluster.write_secret(manifest)
                elif manifest["kind"] == "Deployment":
                    (cluster.directory / "deployment.json").write_text(json.dumps(manifest))
        case ["rollout", "status", "deployment/seaweedfs", *_]:
            cluster.roll_out()
        case ["exec", "-i", "deploy/seaweedfs", "--", *command]:
            assert namespace == "kitae-store"
            return cluster.run(command)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
