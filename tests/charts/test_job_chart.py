"""The chart finetune-job: one job file becomes a valid RayJob for KubeRay and Kueue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ray_jobs.cluster.kinds import RELEASE_ANNOTATION
from ray_jobs.spec import TRACKING_CREDENTIALS, JobSpec, load_spec, parse_spec, parse_yaml
from tests.charts import chart_values, helm
from tests.charts.manifests import Object, findings, pod_templates
from tests.repository import ROOT

CASES = [pytest.param(major, name, id=f"{name} (Helm {major})") for major in helm.MAJORS for name in chart_values.JOB]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def rendered(case: str = "gpu", **options: Any) -> tuple[Object, Object]:
    """The release's ConfigMap and the RayJob."""
    config, job = helm.render("finetune-job", chart_values.JOB[case], release="faq", namespace="kitae-blue", **options)
    assert (config["kind"], job["kind"]) == ("ConfigMap", "RayJob")
    return config, job


def name_of(values: chart_values.Values, **options: Any) -> str:
    _, job = helm.render("finetune-job", values, release="faq", **options)
    return str(job["metadata"]["name"])


def job_file(job: Object) -> str:
    """The job file that head and workers see at /etc/kitae/job.yaml."""
    cluster = job["spec"]["rayClusterSpec"]
    texts = set()
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        annotations = group["template"]["metadata"]["annotations"]
        (volume,) = [each for each in group["template"]["spec"]["volumes"] if each["name"] == "job"]
        (item,) = volume["downwardAPI"]["items"]
        assert item["fieldRef"]["fieldPath"] == "metadata.annotations['kitae.dev/job-file']"
        texts.add(annotations["kitae.dev/job-file"])
    (text,) = texts
    return str(text)


@pytest.mark.parametrize(("major", "case"), CASES)
def test_every_document_is_valid(major: int, case: str) -> None:
    documents = rendered(case, major=major)
    assert [finding for document in documents for finding in findings(document)] == []
    assert len(list(pod_templates(documents[1]))) == 3
    for document in documents:
        assert document["metadata"]["namespace"] == "kitae-blue"
        assert document["metadata"]["labels"]["app.kubernetes.io/part-of"] == "kitae"


@pytest.mark.parametrize("case", chart_values.JOB)
def test_both_majors_render_the_same(case: str) -> None:
    three, four = (rendered(case, major=major) for major in helm.MAJORS)
    assert three == four


@pytest.mark.parametrize("major", helm.MAJORS)
def test_lint(major: int) -> None:
    assert "0 chart(s) failed" in helm.lint(major, "finetune-job", chart_values.JOB["gpu"])


# --- the job file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("major", helm.MAJORS)
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_job_file_is_passed_unchanged(path: Path, major: int) -> None:
    values = chart_values.job() | {"job": {"attempt": 1}}
    _, job = helm.render("finetune-job", values, major=major, files={"job.spec": path})
    assert job_file(job).strip() == path.read_text(encoding="utf-8").strip()
    assert parse_spec(parse_yaml(job_file(job))) == load_spec(path)


def test_the_examples_are_found() -> None:
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("case", chart_values.JOB)
def test_values_give_the_same_job(case: str) -> None:
    given = chart_values.JOB[case]["job"]["spec"]
    wanted = parse_spec(parse_yaml(given) if isinstance(given, str) else given)
    _, job = rendered(case)
    assert parse_spec(parse_yaml(job_file(job))) == wanted
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert {group[key] for key in ("replicas", "minReplicas", "maxReplicas")} == {wanted.compute.workers}
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits.get("nvidia.com/gpu", 0) == wanted.compute.gpus_per_worker
    assert float(limits["cpu"]) >= wanted.compute.cpus_per_worker
    assert job["metadata"]["labels"]["kitae.dev/team"] == (wanted.team or "default")


def test_numbers_stay_numbers() -> None:
    training = {"learning_rate": 2e-5, "max_steps": 10_000_000, "seed": 2**31 - 1, "max_grad_norm": None}
    values = chart_values.job(job={"spec": {"training": training}})
    for major in helm.MAJORS:
        _, job = helm.render("finetune-job", values, major=major)
        spec: JobSpec = parse_spec(parse_yaml(job_file(job)))
        assert (spec.training.learning_rate, spec.training.max_steps, spec.training.seed) == (2e-5, 10**7, 2**31 - 1)


# --- attempts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"job": {"spec": {"training": {"epochs": 1}}}},
        {"job": {"attempt": 2}},
        {"worker": {"cpu": "8"}},
        {"retries": 1},
        {"image": {"tag": "2"}},
        {"priorityClass": "kitae-high"},
        {"nccl": {"NCCL_DEBUG": "INFO"}},
    ],
    ids=str,
)
def test_every_change_starts_a_new_attempt(change: chart_values.Values) -> None:
    assert name_of(chart_values.job()) != name_of(chart_values.job(**change))


def test_no_change_starts_no_attempt() -> None:
    assert name_of(chart_values.job(), major=3) == name_of(chart_values.job(), major=4)
    assert name_of(chart_values.job()) == name_of(chart_values.job(retries=3, queue="kitae"))


def test_helm_uninstall_removes_everything() -> None:
    for document in rendered():
        assert "helm.sh/resource-policy" not in document["metadata"].get("annotations", {})
        assert "helm.sh/hook" not in document["metadata"].get("annotations", {})


def test_every_revision_has_the_release_and_one_rayjob_that_names_it() -> None:
    """Whichever revision is the last, uninstalling it deletes the ConfigMap, and the endpoint what refers to it."""
    revisions = [helm.render("finetune-job", chart_values.job(retries=count), release="faq") for count in (1, 2)]
    assert len({job["metadata"]["name"] for _, job in revisions}) == 2
    for config, job in revisions:
        assert (config["kind"], config["metadata"]["name"]) == ("ConfigMap", "faq")
        assert config["data"] == {"rayjob": job["metadata"]["name"]}
        assert job["metadata"]["annotations"] == {RELEASE_ANNOTATION: "faq"}
        assert job["metadata"]["labels"]["app.kubernetes.io/part-of"] == "kitae", (
            "the endpoint's informer selects by it"
        )


def test_two_releases_do_not_collide() -> None:
    names = {
        (document["kind"], document["metadata"]["name"])
        for release in ("one", "two")
        for document in helm.render("finetune-job", chart_values.job(), release=release)
    }
    assert len(names) == 4


def test_a_long_name_is_refused() -> None:
    assert len(helm.render("finetune-job", chart_values.job(), release="a" * 38)[1]["metadata"]["name"]) == 47
    with pytest.raises(helm.Refused, match="has 39 characters; at most 38"):
        helm.render("finetune-job", chart_values.job(), release="a" * 39)


# --- KubeRay and Kueue -----------------------------------------------------------------------------------------------


def test_the_rayjob_meets_kueues_requirements() -> None:
    _, job = rendered()
    labels, spec = job["metadata"]["labels"], job["spec"]
    assert labels["kueue.x-k8s.io/queue-name"] == "kitae"
    assert labels["kueue.x-k8s.io/priority-class"] == "kitae-normal"
    assert labels["kitae.dev/runner"] == job["metadata"]["name"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] <= 60
    assert "suspend" not in spec, "Kueue sets it: a second `helm upgrade` must not reset it"
    cluster = spec["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert [group["rayStartParams"] for group in cluster["workerGroupSpecs"]] == [{}]
    for _, template in pod_templates(job):
        (container,) = template["spec"]["containers"]
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]), "a quota counts both"
    without = rendered("no queue")[1]["metadata"]["labels"]
    assert not [label for label in without if label.startswith("kueue")]


def test_pods_request_a_checkpoint_before_they_end() -> None:
    _, job = rendered()
    templates = [template["spec"] for _, template in pod_templates(job["spec"]["rayClusterSpec"])]
    assert len(templates) == 2
    for spec in templates:
        (container,) = spec["containers"]
        command = container["lifecycle"]["preStop"]["exec"]["command"]
        assert command == ["python", "-m", "ray_jobs", "notice", "/etc/kitae/job.yaml", "--wait-s", "90"]
        assert spec["terminationGracePeriodSeconds"] == 120
        assert spec["automountServiceAccountToken"] is False
        assert container["envFrom"] == [{"secretRef": {"name": "a-store"}}]


def test_pods_get_the_trackers_credentials_by_name() -> None:
    _, job = rendered("tracking")
    for _, template in pod_templates(job["spec"]["rayClusterSpec"]):
        (container,) = template["spec"]["containers"]
        found = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in container["env"] if "valueFrom" in each}
        assert found == {name: {"name": "trackers", "key": name, "optional": True} for name in TRACKING_CREDENTIALS}


def test_deadlines() -> None:
    spec = rendered("deadlines")[1]["spec"]
    wanted = {"backoffLimit": 0, "activeDeadlineSeconds": 3600, "preRunningDeadlineSeconds": 600}
    assert {key: spec[key] for key in wanted} == wanted
    assert not {"activeDeadlineSeconds", "preRunningDeadlineSeconds"} & set(rendered()[1]["spec"])
