"""The launcher of a Kubernetes cluster on the fake API server, with fake Kueue and KubeRay controllers.

Over 400 lines: the tests share these fakes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from ray_jobs.cluster.kinds import CONFIG_MAP, LOCAL_QUEUE, RAY_JOB, RELEASE_ANNOTATION, WORKLOAD, Object
from ray_jobs.cluster.settings import parse
from ray_jobs.errors import (
    ClusterError,
    ClusterUnreachable,
    Forbidden,
    NoSuchKind,
    PriorityTooHigh,
    RequestTooLarge,
    UnknownQueue,
)
from ray_jobs.launch.kubernetes import KubernetesLauncher
from ray_jobs.launch.launcher import Runner
from ray_jobs.launch.ray_job import RayLauncher
from ray_jobs.launch.rayjob_manifest import manifest
from ray_jobs.spec import TRACKING_CREDENTIALS
from serving.app import launcher_from_environment
from tests.charts.manifests import unbounded
from tests.cluster.builders import SETTINGS, local_queue
from tests.cluster.fake_kubernetes import Rule
from tests.launch.two_teams import ARGUMENTS, BLUE, ENVIRONMENT, ID, NEEDS, Place, two_teams


@pytest.fixture
def place() -> Iterator[Place]:
    with two_teams(lending=2) as found:
        yield found


# ---- the manifest --------------------------------------------------------------------------------------------


def test_a_runner_is_a_suspended_rayjob_with_a_queue(place: Place) -> None:
    place.launch()
    made = place.server.objects.get(RAY_JOB, ID, BLUE)
    labels, spec = made["metadata"]["labels"], made["spec"]
    assert labels["kueue.x-k8s.io/queue-name"] == "kitae"
    assert labels["kueue.x-k8s.io/priority-class"] == "kitae-normal"
    assert labels["kitae.dev/team"] == "blue"
    assert labels["kitae.dev/job"] == "0123456789abcdef"
    assert labels["kitae.dev/runner"] == ID
    assert labels["app.kubernetes.io/part-of"] == "kitae"
    assert spec["suspend"] is True
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["entrypoint"] == "python -m ray_jobs resume tiny-0123456789 --launched"
    assert spec["rayClusterSpec"]["rayVersion"] == metadata.version("ray")
    (workers,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (2, 2, 2)
    (container,) = workers["template"]["spec"]["containers"]
    limits = {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}
    assert container["resources"]["limits"] == {**limits, "ephemeral-storage": "80Gi"}
    head = spec["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"] == {"num-cpus": "0"}
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]


def pods_of(body: Object) -> list[Object]:
    cluster = body["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [*(group["template"] for group in groups), body["spec"]["submitterPodTemplate"]]


def test_every_pod_is_restricted_and_has_no_token() -> None:
    body = manifest(parse(SETTINGS), ID, ARGUMENTS, ENVIRONMENT, NEEDS)
    assert len(pods_of(body)) == 3
    for template in pods_of(body):
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        mounts = {mount["mountPath"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert {"/tmp", "/home/kitae"} <= mounts
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["readOnlyRootFilesystem"] is True
            named = {volume["name"] for volume in pod["volumes"]}
            assert {mount["name"] for mount in container["volumeMounts"]} <= named


def test_no_pod_may_fill_its_nodes_disk() -> None:
    body = manifest(parse(SETTINGS | {"disk": "7Gi"}), ID, ARGUMENTS, ENVIRONMENT, NEEDS)
    assert [unbounded(template["spec"]) for template in pods_of(body)] == [[]] * 3
    head, worker, _ = pods_of(body)
    for template in (head, worker):
        assert template["spec"]["containers"][0]["resources"]["limits"]["ephemeral-storage"] == "7Gi"


def test_training_pods_request_a_checkpoint_before_they_end() -> None:
    body = manifest(parse(SETTINGS), ID, ARGUMENTS, ENVIRONMENT, NEEDS)
    *training, _ = pods_of(body)
    for template in training:
        (container,) = template["spec"]["containers"]
        command = container["lifecycle"]["preStop"]["exec"]["command"]
        assert command == ["python", "-m", "ray_jobs", "notice", "tiny-0123456789", "--wait-s", "90"]
        assert template["spec"]["terminationGracePeriodSeconds"] > 90
        assert {"name": "KITAE_STORE", "value": "s3://kitae/prod"} in container["env"]
        assert container["envFrom"] == [{"secretRef": {"name": "kitae-store"}}]


def test_training_pods_get_the_trackers_credentials_by_name() -> None:
    body = manifest(parse(SETTINGS | {"tracking_secret": "trackers"}), ID, ARGUMENTS, ENVIRONMENT, NEEDS)
    *training, submitter = pods_of(body)
    wanted = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": "trackers", "key": name, "optional": True}}}
        for name in TRACKING_CREDENTIALS
    ]
    for template in training:
        assert template["spec"]["containers"][0]["env"][-4:] == wanted
    assert "trackers" not in str(submitter)
    assert "trackers" not in str(manifest(parse(SETTINGS), ID, ARGUMENTS, ENVIRONMENT, NEEDS))


def test_the_same_runner_gives_the_same_document() -> None:
    settings = parse(SETTINGS)
    first = manifest(settings, ID, ARGUMENTS, ENVIRONMENT, NEEDS)
    assert first == manifest(settings, ID, ARGUMENTS, ENVIRONMENT, NEEDS)
    bare = manifest(settings, ID, ARGUMENTS, ENVIRONMENT, replace(NEEDS, gpus_per_worker=0, cpus_per_worker=6))
    (container,) = bare["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"cpu": "6", "memory": "16Gi", "ephemeral-storage": "80Gi"}


@pytest.mark.parametrize("name", ["1-ftjob", "ftjob-A", "f" * 48, "ftjob-", ""])
def test_an_id_that_is_no_valid_name_is_refused(name: str) -> None:
    with pytest.raises(ClusterError, match="cannot name a RayJob"):
        manifest(parse(SETTINGS), name, ARGUMENTS, ENVIRONMENT, NEEDS)


def test_the_platforms_deadlines() -> None:
    scheduling = {"backoff_limit": 1, "deadline_s": 3600, "waiting_deadline_s": 600, "ttl_s": 5}
    settings = parse({**SETTINGS, "scheduling": scheduling})
    spec = manifest(settings, ID, ARGUMENTS, ENVIRONMENT, NEEDS)["spec"]
    assert (spec["backoffLimit"], spec["ttlSecondsAfterFinished"]) == (1, 5)
    assert (spec["activeDeadlineSeconds"], spec["preRunningDeadlineSeconds"]) == (3600, 600)


# ---- a runner's life --------------------------------------------------------------------------------------


def test_a_runner_from_its_launch_to_its_end(place: Place) -> None:
    assert place.launcher.runners("ftjob-") == {}
    place.launch()
    place.launch()  # again, as another process may
    assert place.names() == [ID]
    assert place.runner() == Runner("pending", "waiting: Kueue has not processed it yet")
    place.kueue.reconcile()
    assert place.runner() == Runner("pending", "starting")
    place.kueue.advance(ID, BLUE)
    place.kueue.advance(ID, BLUE)
    assert place.runner() == Runner("pending")
    place.kueue.advance(ID, BLUE)
    assert place.runner() == Runner("running")
    assert place.launcher.runners("other-") == {}
    place.kueue.finish(ID, BLUE)
    assert place.runner() == Runner("ended", "Complete")
    place.kueue.expire(ID, BLUE)
    assert place.runner() is None


def test_an_ended_rayjob_is_deleted_after_a_day(place: Place) -> None:
    place.launch()
    place.start()
    place.kueue.finish(ID, BLUE)
    helms = place.server.objects.get(RAY_JOB, ID, BLUE)
    helms["metadata"] = {"name": "ftjob-by-helm", "namespace": BLUE, "labels": helms["metadata"]["labels"]}
    helms["metadata"]["labels"] |= {"app.kubernetes.io/managed-by": "Helm", "kitae.dev/runner": "ftjob-by-helm"}
    place.server.objects.create(RAY_JOB, helms, BLUE)
    place.kueue.finish("ftjob-by-helm", BLUE)
    place.now_s += 3600
    assert place.runner() == Runner("ended", "Complete")
    place.now_s += 86400
    place.server.fail(500, when=lambda request: request.verb == "delete")
    assert place.runner() == Runner("ended", "Complete")  # reported again: no endpoint may have seen it
    assert ID in place.names()
    place.now_s += 600
    place.runner()
    assert place.names() == ["ftjob-by-helm"]
    assert place.runner() is None


def test_an_endpoint_that_was_down_for_days_still_sees_how_a_runner_ended(place: Place) -> None:
    place.launch()
    place.start()
    place.kueue.finish(ID, BLUE, ok=False, reason="DeadlineExceeded", message="3600 s")
    place.now_s += 3 * 86400
    for _ in range(3):
        found = place.runner()
        assert found is not None
        assert found.hopeless
        place.now_s += 100


def test_a_failed_runner_has_the_reason(place: Place) -> None:
    place.launch()
    place.start()
    place.kueue.finish(ID, BLUE, ok=False, message="exit code 9")
    assert place.runner() == Runner("ended", "AppFailed: exit code 9")


def test_a_runner_past_its_deadline_is_hopeless(place: Place) -> None:
    place.launch()
    place.start()
    place.kueue.finish(ID, BLUE, ok=False, reason="DeadlineExceeded", message="3600 s")
    found = place.runner()
    assert found is not None
    assert found.hopeless
    assert "scheduling.deadline_s" in found.message


def test_a_waiting_runner_has_the_numbers_of_its_quota(place: Place) -> None:
    for number, workers, message in (
        (1, 6, "starting"),
        (2, 5, "waiting: blue uses 6 of 8 h100; 2 can be borrowed"),
        (3, 3, "starting"),
        (4, 2, "waiting: blue uses 9 of 8 h100; 1 can be borrowed"),
    ):
        place.launch(f"ftjob-{number}-1", replace(NEEDS, workers=workers))
        place.kueue.reconcile()
        assert place.runner(f"ftjob-{number}-1") == Runner("pending", message)
    place.launch("ftjob-5-1", replace(NEEDS, team="red", workers=8))
    place.kueue.reconcile()
    waits = "waiting: red uses 0 of 8 h100; 1 are lent to others"
    assert place.runner("ftjob-5-1") == Runner("pending", waits)


def test_the_start_is_estimated_from_ended_runners(place: Place) -> None:
    place.launch("ftjob-a-1", replace(NEEDS, workers=8))
    place.start("ftjob-a-1")
    place.now_s += 3600
    place.kueue.finish("ftjob-a-1", BLUE)
    place.launch("ftjob-b-1", replace(NEEDS, workers=8))
    place.start("ftjob-b-1")
    place.now_s += 1200
    place.launch("ftjob-c-1", replace(NEEDS, workers=8))
    place.kueue.reconcile()
    found = place.runner("ftjob-c-1")
    assert found is not None
    assert found.message == "waiting: blue uses 8 of 8 h100; 2 can be borrowed; about 40 min"


def test_a_preempted_runner_waits_under_its_own_name_and_resumes(place: Place) -> None:
    place.launch()
    place.start()
    place.now_s += 100
    preempted_at = place.now_s
    place.kueue.preempt(ID, BLUE)
    found = place.runner()
    assert found is not None
    assert (found.state, found.interrupted_at) == ("pending", preempted_at)
    # Its quota is still reserved: the message does not mention it.
    assert found.message == "preempted: another job goes first; waiting"
    place.kueue.advance(ID, BLUE)
    found = place.runner()
    assert found is not None
    assert found.message.startswith("preempted: another job goes first; waiting: blue uses 0 of 8 h100")
    place.now_s += 50
    place.start()
    assert place.runner() == Runner("running", "", preempted_at + 50)  # admitted again
    assert place.kueue.made == [ID]


def test_an_image_that_cannot_be_pulled_is_reported_and_later_hopeless(place: Place) -> None:
    place.launch()
    place.kueue.reconcile()
    place.kueue.advance(ID, BLUE)
    place.kueue.cannot_pull(ID, BLUE, made_at=place.kueue.clock())
    found = place.runner()
    assert found is not None
    assert (found.state, found.hopeless) == ("pending", False)
    assert "the image registry.example/kitae:0.1.0 cannot be pulled (ImagePullBackOff" in found.message
    place.now_s += 901
    found = place.runner()
    assert found is not None
    assert found.hopeless


def test_stop_deletes_a_runner_and_ignores_an_unknown_one(place: Place) -> None:
    place.launch()
    place.launcher.stop("ftjob-x-1")
    assert place.names() == [ID]
    place.server.objects.deletion_lingers = True
    place.launcher.stop(ID)
    assert place.runner() == Runner("running", "being stopped")  # so no second one starts beside it
    place.launcher.stop(ID)
    place.server.objects.collect()
    assert place.runner() is None
    assert place.server.objects.list(WORKLOAD) == []


# ---- what fits ---------------------------------------------------------------------------------------------


def test_a_request_beyond_every_quota_is_refused_with_the_largest_possible(place: Place) -> None:
    place.launcher.check(replace(NEEDS, workers=10))  # with what the other team lends
    with pytest.raises(RequestTooLarge) as caught:
        place.launcher.check(replace(NEEDS, workers=11))
    assert "lower compute.workers" in caught.value.message
    assert caught.value.details == (
        "nvidia.com/gpu: 11 workers with 1 each request 11, and the most of h100 is 10 (8 of its own, 2 borrowed); "
        "10 would fit",
    )
    with pytest.raises(RequestTooLarge) as caught:
        place.launcher.check(replace(NEEDS, workers=8, cpus_per_worker=100))
    assert "cpu: 8 workers with 100 each request 800, and the most of h100 is 128" in caught.value.details[0]


def test_an_unknown_team_and_a_missing_queue(place: Place) -> None:
    with pytest.raises(UnknownQueue, match="team 'green' has no queue in this cluster; these have: blue, red"):
        place.launcher.check(replace(NEEDS, team="green"))
    place.server.objects.delete(LOCAL_QUEUE, "kitae", BLUE)
    place.server.objects.create(LOCAL_QUEUE, local_queue("other", "kitae-blue"), BLUE)
    with pytest.raises(UnknownQueue, match="no LocalQueue 'kitae' in namespace kitae-blue; existing: other"):
        place.launcher.check(NEEDS)
    place.launch()
    place.kueue.reconcile()
    found = place.runner()
    assert found is not None
    assert "LocalQueue kitae doesn't exist" in found.message
    assert "kitae in kitae-red" in found.message  # the existing ones


# ---- faults ----------------------------------------------------------------------------------------------------


def test_a_missing_operator_permission_or_answer(place: Place) -> None:
    kinds = set(place.server.objects.kinds)
    place.server.objects.kinds = {kind for kind in kinds if kind.group != "ray.io"}
    for act in (place.launch, place.runner):
        with pytest.raises(NoSuchKind, match=r"install KubeRay 1\.7"):
            act()
    place.server.objects.kinds = kinds
    place.server.rules = [Rule(("list", "watch", "get"), ("*",))]
    with pytest.raises(Forbidden, match=r"may not create rayjobs\.ray\.io in namespace kitae-blue"):
        place.launch()
    place.server.rules = None
    place.server.down = True
    with pytest.raises(ClusterUnreachable):
        place.runner()
    place.server.heal()
    place.launch()
    assert place.names() == [ID]


def test_a_second_launch_finds_the_rayjob_of_a_lost_answer(place: Place) -> None:
    place.server.drop(after=True, when=lambda request: request.verb == "create")
    with pytest.raises(ClusterUnreachable):
        place.launch()
    place.launch()
    place.kueue.reconcile()
    assert place.kueue.made == [ID]


def test_the_endpoints_environment_selects_the_launcher(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    place.server.write_kubeconfig(tmp_path / "config")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert isinstance(launcher_from_environment({}, time.time), RayLauncher)
    launcher = launcher_from_environment({"KITAE_CLUSTER": str(tmp_path / "cluster.yaml")}, time.time)
    assert isinstance(launcher, KubernetesLauncher)
    launcher.launch(ID, ARGUMENTS, ENVIRONMENT, NEEDS)
    assert place.names() == [ID]


def test_a_priority_above_the_teams_ceiling_is_refused(place: Place) -> None:
    teams = {**SETTINGS["teams"], "blue": {**SETTINGS["teams"]["blue"], "max_priority": 0}}
    place.launcher.settings = parse(SETTINGS | {"teams": teams})
    place.launcher.check(replace(NEEDS, priority=0))
    with pytest.raises(PriorityTooHigh, match="priority is 1, and team blue may use at most 0: lower it"):
        place.launcher.check(replace(NEEDS, priority=1))


def test_rayjobs_of_an_uninstalled_release_are_deleted(place: Place) -> None:
    """A failed `helm upgrade` leaves a revision that does not name the running RayJob; uninstalling it deletes the
    ConfigMap, which every revision names."""
    release = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "faq"}}
    place.server.objects.create(CONFIG_MAP, release, BLUE)
    job = manifest(parse(SETTINGS), "faq-1f0c2a9b", ARGUMENTS, ENVIRONMENT, NEEDS)
    job["metadata"]["annotations"] = {RELEASE_ANNOTATION: "faq"}
    job["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "Helm"
    place.server.objects.create(RAY_JOB, job, BLUE)
    place.launch()

    def pass_by() -> None:
        for _ in range(3):
            place.now_s += 20
            place.launcher.runners("ftjob-")
        place.server.objects.collect()

    pass_by()
    assert place.names() == ["faq-1f0c2a9b", ID]
    place.server.fail(503, times=9, when=lambda request: request.kind == CONFIG_MAP)
    place.server.objects.delete(CONFIG_MAP, "faq", BLUE)
    pass_by()
    assert place.names() == ["faq-1f0c2a9b", ID], "an error is no answer"
    place.server.heal()
    place.now_s += 20
    place.launcher.runners("ftjob-")
    assert place.names() == ["faq-1f0c2a9b", ID], "its release may be about to be created"
    pass_by()
    assert place.names() == [ID]
    assert place.server.objects.list(WORKLOAD) == []
