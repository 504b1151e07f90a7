"""The Kubernetes client against the fake server: answers, refusals and broken connections."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.cluster.client import Cluster, WatchEvent
from ray_jobs.cluster.kinds import CLUSTER_QUEUE, CONFIG_MAP, LOCAL_QUEUE, RAY_JOB, WORKLOAD, Object
from ray_jobs.errors import (
    AlreadyExists,
    ClusterUnreachable,
    Expired,
    Forbidden,
    NoSuchKind,
    ObjectChanged,
    ObjectRefused,
)
from tests.cluster.fake_kubernetes import FakeKubernetes, Rule, fake_kubernetes
from tests.cluster.kubernetes_objects import Refused, selects


@pytest.fixture
def server() -> Iterator[FakeKubernetes]:
    with fake_kubernetes() as running:
        yield running


@pytest.fixture
def cluster(server: FakeKubernetes) -> Cluster:
    return server.connect()


def config_map(name: str, value: str = "1", **labels: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": labels},
        "data": {"value": value},
    }


def local_queue(name: str, **spec: Any) -> Object:
    return {
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": "LocalQueue",
        "metadata": {"name": name},
        "spec": {"clusterQueue": "kitae-blue", **spec},
    }


def names(found: list[Object]) -> list[str]:
    return [o["metadata"]["name"] for o in found]


def test_create_get_patch_and_delete(cluster: Cluster) -> None:
    made = cluster.create(CONFIG_MAP, config_map("a"), "blue")
    assert made["metadata"]["uid"]
    assert cluster.get(CONFIG_MAP, "a", "blue") == made
    assert cluster.get(CONFIG_MAP, "b", "blue") is None
    assert cluster.get(CONFIG_MAP, "a", "red") is None
    with pytest.raises(AlreadyExists, match="ConfigMap a in namespace blue already exists"):
        cluster.create(CONFIG_MAP, config_map("a"), "blue")
    changed = cluster.patch(CONFIG_MAP, "a", {"data": {"value": None, "other": "2"}}, "blue")
    assert changed["data"] == {"other": "2"}
    assert cluster.delete(CONFIG_MAP, "a", "blue") is True
    assert cluster.delete(CONFIG_MAP, "a", "blue") is False
    with pytest.raises(ObjectRefused, match="does not exist"):
        cluster.patch(CONFIG_MAP, "a", {"data": {}}, "blue")


def test_an_invalid_object_is_refused_with_every_cause(cluster: Cluster) -> None:
    with pytest.raises(ObjectRefused, match="clusterqueue") as caught:
        cluster.create(LOCAL_QUEUE, local_queue("kitae", clusterqueue="x"), "blue")
    assert caught.value.details
    assert cluster.list(LOCAL_QUEUE, "blue") == []
    cluster.create(LOCAL_QUEUE, local_queue("kitae"), "blue")
    with pytest.raises(ObjectRefused, match="stopPolicy"):
        cluster.patch(LOCAL_QUEUE, "kitae", {"spec": {"stopPolicy": "Sometimes"}}, "blue")
    answer = cluster.patch(LOCAL_QUEUE, "kitae", {"spec": {"stopPolicy": "Hold"}}, "blue")
    assert answer["spec"]["stopPolicy"] == "Hold"


def test_writes_name_their_field_manager(server: FakeKubernetes, cluster: Cluster) -> None:
    """Helm 4 names it in a conflict; the client's own default is the name of its code generator."""
    cluster.create(CONFIG_MAP, config_map("a"), "blue")
    cluster.patch(CONFIG_MAP, "a", {"data": {"value": "2"}}, "blue")
    writes = [request for request in server.requests if request.verb in ("create", "patch")]
    assert [request.query.get("fieldManager") for request in writes] == ["kitae", "kitae"]


def test_a_patch_of_an_old_version_changes_nothing(cluster: Cluster) -> None:
    version = cluster.create(CONFIG_MAP, config_map("a"), "blue")["metadata"]["resourceVersion"]
    first = {"metadata": {"resourceVersion": version}, "data": {"value": "first"}}
    cluster.patch(CONFIG_MAP, "a", first, "blue")
    with pytest.raises(ObjectChanged, match="modified"):
        cluster.patch(CONFIG_MAP, "a", first | {"data": {"value": "second"}}, "blue")
    found = cluster.get(CONFIG_MAP, "a", "blue")
    assert found is not None
    assert found["data"]["value"] == "first"


def test_a_list_spans_all_pages(server: FakeKubernetes, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = server.connect(page_size=3)
    for i in range(10):
        cluster.create(CONFIG_MAP, config_map(f"m{i}", team="blue" if i % 2 else "red"), f"ns{i % 3}")
    found = cluster.list(CONFIG_MAP)
    assert sorted(names(found)) == [f"m{i}" for i in range(10)]
    assert all((o["apiVersion"], o["kind"]) == ("v1", "ConfigMap") for o in found)
    assert len([r for r in server.requests if r.verb == "list"]) == 4
    assert names(cluster.list(CONFIG_MAP, "ns1")) == ["m1", "m4", "m7"]
    assert names(cluster.list(CONFIG_MAP, "ns1", labels={"team": "red"})) == ["m4"]


def test_an_expired_page_restarts_the_list(server: FakeKubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = server.connect(page_size=3)
    for i in range(7):
        cluster.create(CONFIG_MAP, config_map(f"m{i}"), "blue")
    whole = server.objects.list

    def list_and_forget(*given: Any) -> list[Object]:
        if len([r for r in server.requests if r.verb == "list"]) == 1:
            server.objects.create(CONFIG_MAP, config_map("m0-new"), "blue")
            server.objects.forget()
            server.objects.version -= 1  # the first page's version
            try:
                return whole(*given)
            finally:
                server.objects.version += 1
        return whole(*given)

    monkeypatch.setattr(server.objects, "list", list_and_forget)
    server.fail(410, when=lambda r: "continue" in r.query)
    assert len(cluster.list(CONFIG_MAP, "blue")) == 8
    assert [r.query.get("limit") for r in server.requests if r.verb == "list"] == ["3", "3", None]


def watched(cluster: Cluster, since: str, **given: Any) -> list[WatchEvent]:
    return list(cluster.watch(CONFIG_MAP, "blue", since=since, timeout_s=1, **given))


def test_a_watch_has_the_changes_and_the_next_version(server: FakeKubernetes, cluster: Cluster) -> None:
    server.watch_ends_when_idle = True
    cluster.create(CONFIG_MAP, config_map("before"), "blue")
    listing = cluster.listing(CONFIG_MAP, "blue")
    cluster.create(CONFIG_MAP, config_map("a", team="blue"), "blue")
    cluster.create(CONFIG_MAP, config_map("b"), "blue")
    cluster.create(CONFIG_MAP, config_map("c"), "red")
    cluster.patch(CONFIG_MAP, "a", {"metadata": {"labels": {"team": "red"}}}, "blue")
    cluster.patch(CONFIG_MAP, "a", {"metadata": {"labels": {"team": "red"}}}, "blue")  # changes nothing
    cluster.delete(CONFIG_MAP, "b", "blue")
    events = watched(cluster, listing.version)
    assert [(e.type, e.object["metadata"].get("name")) for e in events] == [
        ("ADDED", "a"), ("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b"), ("BOOKMARK", None),
    ]  # fmt: skip
    assert [e.type for e in watched(cluster, events[-1].version)] == ["BOOKMARK"]
    selected = watched(cluster, listing.version, labels={"team": "blue"})
    assert [e.type for e in selected] == ["ADDED", "DELETED", "BOOKMARK"]  # it left the selector


def test_a_watch_from_an_expired_version(server: FakeKubernetes, cluster: Cluster) -> None:
    version = cluster.listing(CONFIG_MAP, "blue").version
    cluster.create(CONFIG_MAP, config_map("a"), "blue")
    server.objects.forget()
    with pytest.raises(Expired):
        watched(cluster, version)
    server.fail(410)  # some servers answer before the stream begins
    with pytest.raises(Expired):
        watched(cluster, version)


def test_a_broken_watch_raises_after_the_received_events(server: FakeKubernetes, cluster: Cluster) -> None:
    version = cluster.listing(CONFIG_MAP, "blue").version
    cluster.create(CONFIG_MAP, config_map("a"), "blue")
    cluster.create(CONFIG_MAP, config_map("b"), "blue")
    server.drop(after=True, when=lambda r: r.verb == "watch")
    events = cluster.watch(CONFIG_MAP, "blue", since=version, timeout_s=5)
    assert next(events).object["metadata"]["name"] == "a"
    with pytest.raises(ClusterUnreachable, match="broke"):
        next(events)


def test_reads_are_retried_and_writes_are_not(server: FakeKubernetes, cluster: Cluster) -> None:
    server.drop(times=2)
    assert cluster.list(CONFIG_MAP, "blue") == []
    server.drop(after=True)
    with pytest.raises(ClusterUnreachable, match="does not answer"):
        cluster.create(CONFIG_MAP, config_map("a"), "blue")
    assert len([r for r in server.requests if r.verb == "create"]) == 1
    assert names(cluster.list(CONFIG_MAP, "blue")) == ["a"]  # and it was done
    server.down = True
    with pytest.raises(ClusterUnreachable, match=server.url):
        cluster.list(CONFIG_MAP, "blue")
    server.heal()
    server.fail(500)
    with pytest.raises(ClusterUnreachable, match="500"):
        cluster.get(CONFIG_MAP, "a", "blue")


def test_expired_credentials_are_read_again_once(server: FakeKubernetes) -> None:
    cluster = server.connect()
    server.expire_token()
    assert cluster.list(CONFIG_MAP, "blue") == []
    stuck = server.connect(token=lambda: "token-1")
    with pytest.raises(ClusterUnreachable, match="refuses these credentials"):
        stuck.list(CONFIG_MAP, "blue")


def test_a_missing_permission_names_the_command_that_grants_it(server: FakeKubernetes, cluster: Cluster) -> None:
    server.rules = [Rule(("get",), ("*",)), Rule(("*",), ("configmaps",), ("blue",))]
    cluster.create(CONFIG_MAP, config_map("a"), "blue")
    with pytest.raises(Forbidden) as caught:
        cluster.create(RAY_JOB, {}, "blue")
    assert "system:serviceaccount:kitae:kitae-endpoint may not create rayjobs.ray.io in namespace blue" in str(
        caught.value
    )
    assert caught.value.details == (
        "kubectl -n blue create role kitae-create-rayjobs --verb=create --resource=rayjobs.ray.io",
        "kubectl -n blue create rolebinding kitae-create-rayjobs --role=kitae-create-rayjobs "
        "--serviceaccount=kitae:kitae-endpoint",
    )
    with pytest.raises(Forbidden, match=r"may not list clusterqueues.kueue.x-k8s.io in all namespaces") as caught:
        cluster.list(CLUSTER_QUEUE)
    assert "clusterrolebinding" in caught.value.details[1]
    with pytest.raises(Forbidden, match="may not watch rayjobs"):
        list(cluster.watch(RAY_JOB, "blue", since="1", timeout_s=1))
    with pytest.raises(Forbidden, match="may not delete"):
        cluster.delete(CONFIG_MAP, "a", "red")


def test_a_missing_operator_and_another_version(server: FakeKubernetes, cluster: Cluster) -> None:
    from dataclasses import replace

    server.objects.kinds -= {RAY_JOB}
    assert cluster.list(WORKLOAD, "blue") == []
    server.objects.kinds = {kind for kind in server.objects.kinds if kind.group != "ray.io"}
    for act in (
        lambda: cluster.list(RAY_JOB, "blue"),
        lambda: cluster.get(RAY_JOB, "a", "blue"),
        lambda: cluster.create(RAY_JOB, {}, "blue"),
        lambda: cluster.delete(RAY_JOB, "a", "blue"),
    ):
        with pytest.raises(NoSuchKind, match=r"no rayjobs.ray.io in version v1: install KubeRay 1.7"):
            act()
    server.objects.kinds = {
        replace(kind, version="v1beta1") if kind == WORKLOAD else kind for kind in server.objects.kinds
    }
    server.objects.kinds = {kind for kind in server.objects.kinds if kind.version != "v1beta2"}
    with pytest.raises(
        NoSuchKind, match=r"serves kueue.x-k8s.io in v1beta1, and v1beta2 is needed: install Kueue 0.19"
    ):
        cluster.list(WORKLOAD, "blue")


def test_refusals_other_than_permissions(server: FakeKubernetes, cluster: Cluster) -> None:
    server.objects.namespaces = {"blue"}
    with pytest.raises(ObjectRefused, match='namespaces "red" not found'):
        cluster.create(CONFIG_MAP, config_map("a"), "red")
    with pytest.raises(ObjectRefused, match="no RFC 1123"):
        cluster.create(CONFIG_MAP, config_map("A b"), "blue")

    def webhook(*_: Any) -> None:
        message = 'configmaps "a" is forbidden: exceeded quota: pods=1'
        raise Refused(403, "Forbidden", message, name="a", kind="configmaps")

    server.objects.webhooks.append(webhook)
    with pytest.raises(ObjectRefused, match="exceeded quota"):
        cluster.create(CONFIG_MAP, config_map("a"), "blue")


def test_login_with_a_kubeconfig(server: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ClusterUnreachable, match="KUBECONFIG must name a file"):
        Cluster.connect()
    server.write_kubeconfig(tmp_path / "config")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    cluster = Cluster.connect()
    assert cluster.list(CONFIG_MAP, "blue") == []
    server.expire_token()
    server.write_kubeconfig(tmp_path / "config")
    assert cluster.list(CONFIG_MAP, "blue") == []


@pytest.mark.parametrize(
    ("selector", "has_it"),
    [
        ("a=1", True), ("a==1", True), ("a=2", False), ("a!=2", True), ("c!=2", True), ("a", True), ("c", False),
        ("!c", True), ("!a", False), ("a=1,b=2", True), ("a=1,b=3", False), ("a in (1,2)", True),
        ("a notin (1,2)", False), ("b=2,a in (2,1)", True), ("", True),
    ],
)  # fmt: skip
def test_the_fakes_label_selectors(selector: str, has_it: bool) -> None:
    assert selects(selector, {"metadata": {"labels": {"a": "1", "b": "2"}}}) is has_it


def test_the_fake_deletes_owned_objects_and_can_delay_a_deletion(server: FakeKubernetes, cluster: Cluster) -> None:
    owner = cluster.create(CONFIG_MAP, config_map("owner"), "blue")
    owned = config_map("owned")
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    owned["metadata"]["ownerReferences"] = [reference]
    cluster.create(CONFIG_MAP, owned, "blue")
    server.objects.deletion_lingers = True
    assert cluster.delete(CONFIG_MAP, "owner", "blue")
    found = cluster.get(CONFIG_MAP, "owner", "blue")
    assert found is not None
    assert found["metadata"]["deletionTimestamp"]
    with pytest.raises(AlreadyExists):
        cluster.create(CONFIG_MAP, config_map("owner"), "blue")
    server.objects.collect()
    assert cluster.list(CONFIG_MAP, "blue") == []
