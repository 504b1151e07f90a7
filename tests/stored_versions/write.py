"""Writes the store that `test_stored_versions.py` reads with later versions: what the present version leaves behind.

    python -m tests.stored_versions.write

Run once a release, before the version changes; commit the new `store.tar.xz`. The command takes about four minutes: it
starts a store server and Ray, and runs real jobs on models of a few thousand weights.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import yaml

import ray_jobs
from ray_jobs import jobs, registry
from ray_jobs.deploy import needed_records, records, traffic
from ray_jobs.registry import shares
from ray_jobs.spec import DEFAULT_TEAM, ServingSection, parse_spec
from ray_jobs.storage import Store, Workspace
from ray_jobs.tenancy import api_keys, usage, webhooks
from ray_jobs.tenancy.api_keys import Limits
from ray_jobs.tenancy.usage import UsageRow
from tests.conftest import StoreServer, start_store_server, stop_store_server
from tests.models import tiny_models
from tests.pipeline.live_service import Service, Watched, live_service
from tests.serving.api_harness import KEY, add_base, api_server, rows

CHAT, CLASSIFIER, SEARCHED, PAUSED = "greeter", "sorter", "searched", "paused"
"""Names of the jobs. Three have succeeded; the last is paused behind its first checkpoint."""
BASE = "tiny-chat"
"""The base in the catalogue."""
TEAM = "blue"
DAY = datetime(2026, 1, 2, tzinfo=UTC).date()
CHECKPOINT = re.compile(r"(?P<folder>.*)/(?P<name>step-\d+-[^/]+)/")


def store_uri(version: str) -> str:
    """Address of a version's store. The same when it is written and when it is read: job files name it."""
    return f"s3://kitae/stored-{version}"


def archive(version: str) -> Path:
    return Path(__file__).parent / version / "store.tar.xz"


def main() -> None:
    version = ray_jobs.__version__
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for name in ("server", "service", "files"):
            (root / name).mkdir()
        server = start_store_server(root / "server")
        try:
            store = Workspace(Store(store_uri(version), server.settings(), cache=root / "cache"), DEFAULT_TEAM)
            upload_inputs(store, root / "files")
            run_jobs(store, server, root)
            write_records(store)
            pack(store, archive(version))
        finally:
            stop_store_server(server)


def upload_inputs(store: Workspace, directory: Path) -> None:
    """Rows and base models, in the store: a local path would be another one when the store is read."""
    save_servable(directory / BASE)
    tiny_models.save_encoder(directory / "encoder")
    tiny_models.save_encoder(directory / "other", seed=1)
    write_rows(directory / "chat.jsonl", tiny_models.chat_rows(40))
    labels = tiny_models.label_rows(120)
    write_rows(directory / "train.jsonl", labels[:96])
    write_rows(directory / "held_out.jsonl", labels[96:])
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        store.put(f"files/{path.relative_to(directory).as_posix()}", path.read_bytes())


def save_servable(directory: Path) -> None:
    """A tiny causal model whose attention heads are wide enough (32) for vLLM, so that the parity check runs."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny_models.save_causal(directory)
    config = LlamaConfig.from_pretrained(directory)
    config.update({"hidden_size": 64, "num_attention_heads": 2, "head_dim": 32, "num_hidden_layers": 2})
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(str(directory))  # type: ignore[no-untyped-call]  # transformers is half typed


def write_rows(path: Path, rows: list[Any]) -> None:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")


def job_document(store: Workspace, name: str) -> dict[str, Any]:
    """The job file of that name."""
    chat = name == CHAT
    document: dict[str, Any] = {
        "name": name,
        "task": "chat" if chat else "text_classification",
        "base_model": BASE if chat else store.uri("files/encoder"),
        "data": {"train": store.uri("files/chat.jsonl" if chat else "files/train.jsonl"), "max_tokens": 128},
        "training": {
            "method": "lora",
            "epochs": 2,
            "batch_size": 8,
            "micro_batch_tokens": 128,
            "learning_rate": 3e-3,
            "precision": "fp32",
            "checkpoint_every_steps": 5,
        },
        "compute": {"workers": 1, "threads_per_worker": 1},
        "evaluation": {"must_beat_base": False, "generate_rows": 2, "max_new_tokens": 8},
        "serving": {"deploy": False, "max_model_len": 256},
    }
    if not chat:
        document["data"]["held_out"] = store.uri("files/held_out.jsonl")
    if name in (CHAT, CLASSIFIER):
        document["training"]["publish_checkpoints"] = True
    if name == PAUSED:
        document["training"] |= {"epochs": 40, "batch_size": 32, "micro_batch_tokens": 32}
        document["data"]["max_tokens"] = 32
    if name == SEARCHED:
        space = {
            "base_model": [store.uri("files/encoder"), store.uri("files/other")],
            "learning_rate": {"min": 1e-3, "max": 1e-1, "scale": "log"},
        }
        document["search"] = {"space": space, "trials": 5, "parallel": 2, "algorithm": "asha"}
    return document


def run_jobs(store: Workspace, server: StoreServer, root: Path) -> None:
    with live_service(root / "service", server) as service:
        kitae(service, store, "bases", "add", store.uri(f"files/{BASE}"), "--name", BASE)
        for name in (CHAT, CLASSIFIER, SEARCHED):
            kitae(service, store, "run", str(job_file(store, name, root)))
        path = job_file(store, PAUSED, root)
        driver = service.kitae(store, "run", str(path))
        job_id = parse_spec(job_document(store, PAUSED)).job_id
        Watched(store, job_id).wait_for_step(5, driver)
        jobs.request_pause(store, job_id)
        driver.wait()
        assert Watched(store, job_id).status() == "paused", driver.output


def job_file(store: Workspace, name: str, root: Path) -> Path:
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(job_document(store, name)))
    return path


def kitae(service: Service, store: Workspace, *arguments: str) -> None:
    driver = service.kitae(store, *arguments)
    assert driver.wait() == 0, driver.output
    print(driver.output, flush=True)


def write_records(store: Workspace) -> None:
    """What jobs do not write themselves: deployment, traffic, share, key, usage, webhook, and jobs of the API."""
    for name in (CHAT, CLASSIFIER):
        for record in needed_records(registry.get(store, name), None, ServingSection(), lora_rank=8):
            records.write(store, record)
    other = next(v.version for v in registry.versions(store, CHAT) if v.version != registry.get(store, CHAT).version)
    traffic.start_canary(store, CHAT, other, percent=10)
    shares.share(store, CHAT, teams=[TEAM])
    key, _ = api_keys.create(store, TEAM, "laptop", Limits(requests_per_minute=60))
    row = UsageRow(day=DAY, team=TEAM, key_id=key.id, model=CHAT, kind="inference", requests=3, prompt_tokens=40)
    usage.write(store, TEAM, DAY, "writer", 1, [row])
    webhooks.add(store, TEAM, "https://hooks.example.com/kitae", ["fine_tuning.job.succeeded"], webhooks.Policy())
    entry = add_base(store, "other-chat")  # the API's jobs train in `auto`, and an engine serves one precision
    with api_server(store) as server:
        client = httpx.Client(base_url=f"{server.url}/v1", headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
        upload = {"file": ("rows.jsonl", rows(12))}
        file = client.post("/files", files=upload, data={"purpose": "fine-tune"}).raise_for_status().json()
        wanted = {"model": entry.name, "training_file": file["id"], "suffix": "api"}
        first = client.post("/fine_tuning/jobs", json=wanted).raise_for_status().json()
        second = client.post("/fine_tuning/jobs", json=wanted | {"suffix": "stopped"}).raise_for_status().json()
        client.post(f"/fine_tuning/jobs/{second['id']}/cancel").raise_for_status()
        while client.get(f"/fine_tuning/jobs/{first['id']}").raise_for_status().json()["status"] != "succeeded":
            server.run_launched()


def pack(store: Workspace, path: Path) -> None:
    """Write the store to an archive, without large objects that no command reads."""
    sizes = {info.key: info.size_bytes for info in store.root.list()}
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:xz", preset=9) as packed:
        for key in kept(sizes):
            member = tarfile.TarInfo(key)
            member.size = sizes[key]
            packed.addfile(member, io.BytesIO(store.root.get(key)))
    print(f"{path}: {path.stat().st_size:,} bytes")


def kept(keys: Iterable[str]) -> list[str]:
    """Without the search's page, and with the newest checkpoint of each folder."""
    newest: dict[str, str] = {}
    for key in sorted(keys):
        if found := CHECKPOINT.match(key):
            newest[found["folder"]] = found["name"]
    return [
        key
        for key in sorted(keys)
        if not key.endswith("/page.html")
        and ((found := CHECKPOINT.match(key)) is None or newest[found["folder"]] == found["name"])
    ]


if __name__ == "__main__":
    main()
