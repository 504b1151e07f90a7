"""The launcher and the chart finetune-job give the same RayJob for the same job."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from ray_jobs.cluster import settings
from ray_jobs.launch import rayjob_manifest
from ray_jobs.launch.launcher import Needs
from ray_jobs.spec import parse_spec
from tests.charts import chart_values, helm

RUNNER = "ftjob-0123456789-1"
JOB_FILE = "/etc/kitae"
"""Mount path of the chart; the launcher's runner reads its job from the store."""


def launched(profile: str) -> dict[str, Any]:
    """The launcher's RayJob with the chart's own `cluster.yaml`."""
    documents = helm.render("kitae", chart_values.kitae(profile=profile))
    (text,) = [d["data"]["cluster.yaml"] for d in documents if "cluster.yaml" in (d.get("data") or {})]
    cluster = settings.parse(
        yaml.safe_load(text)
        | {"head": {"cpu": "1", "memory": "4Gi"}}  # the sizes of the chart of one job
        | {"worker": {"cpu": "4", "memory": "16Gi", "gpu": 1, "shared_memory": "8Gi"}}
    )
    spec = parse_spec(chart_values.job()["job"]["spec"])
    environment = {"KITAE_STORE": "s3://models/kitae"}
    arguments = ["resume", spec.job_id, "--launched"]
    return rayjob_manifest.manifest(cluster, RUNNER, arguments, environment, Needs.of(spec, spec.job_id))


def released() -> dict[str, Any]:
    _, job = helm.render("finetune-job", chart_values.job())
    return job


def pods(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    templates = {
        "head": cluster["headGroupSpec"]["template"],
        "worker": workers["template"],
        "submitter": job["spec"]["submitterPodTemplate"],
    }
    return {name: template["spec"] for name, template in templates.items()}


def comparable(pod: dict[str, Any]) -> dict[str, Any]:
    """A pod without the job file, with named lists as mappings."""
    (container,) = pod["containers"]
    found = {key: value for key, value in pod.items() if key not in ("containers", "volumes")}
    found |= {key: value for key, value in container.items() if key not in ("env", "volumeMounts", "lifecycle")}
    found["resources"] = {
        kind: {name: str(amount) for name, amount in amounts.items()} for kind, amounts in found["resources"].items()
    }
    found["env"] = {each["name"]: each.get("value") for each in container.get("env", [])}
    mounts = {each["name"]: each for each in container.get("volumeMounts", [])}
    file = {"job"} & {name for name, mount in mounts.items() if mount["mountPath"].startswith(JOB_FILE)}
    found["mounts"] = {name: mount for name, mount in mounts.items() if name not in file}
    found["volumes"] = {each["name"]: each for each in pod.get("volumes", []) if each["name"] not in file}
    return found


@pytest.mark.parametrize("which", ["head", "worker", "submitter"])
def test_pods_are_the_same(which: str) -> None:
    ours, chart = comparable(pods(launched("gpu"))[which]), comparable(pods(released())[which])
    assert ours == chart


def test_all_else_is_the_same() -> None:
    ours, chart = launched("gpu")["spec"], released()["spec"]
    for spec in (ours, chart):
        cluster = spec["rayClusterSpec"]
        cluster["headGroupSpec"].pop("template")
        cluster["workerGroupSpecs"][0].pop("template")
        spec.pop("submitterPodTemplate")
        entrypoint = spec.pop("entrypoint")
        assert "ray_jobs" in entrypoint
        assert " --launched" in entrypoint, "otherwise KubeRay restarts a stopped job"
    assert ours.pop("suspend") is True  # Kueue's webhook sets it for the chart's: docs/decisions/kubernetes.md
    assert ours == chart
