"""`kitae quota` on the fake cluster: what it prints, writes and refuses."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner, Result

from ray_jobs.__main__ import cli
from ray_jobs.cli import quota, session
from ray_jobs.cluster.kinds import CLUSTER_QUEUE, LOCAL_QUEUE, NODE, RESOURCE_FLAVOR, WORKLOAD
from ray_jobs.errors import ClusterUnreachable, Forbidden, KitaeError, NoSuchKind, ObjectChanged, SpecError
from ray_jobs.storage import Workspace
from ray_jobs.tenancy import audit
from tests.cluster.fake_kubernetes import FakeKubernetes, Rule, fake_kubernetes
from tests.quota.builders import GPU, NOW, make_local, make_queue, make_record, make_workload, put
from tests.repository import ROOT

Kitae = Callable[..., Result]
DAYS = ("--since", "2026-11-01", "--until", "2026-11-30")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    """Blue has 4 GPUs and uses 6; red has 4 of which 2 are in use, and a job that waits for 3."""
    with fake_kubernetes() as server:
        server.write_kubeconfig(tmp_path / "kubeconfig")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        monkeypatch.delenv("KITAE_CLUSTER", raising=False)
        objects = server.objects
        for team, used, borrowed in (("blue", 6, 2), ("red", 2, 0)):
            made = make_queue(team, {"nominalQuota": "4"}, used=used, borrowed=borrowed)
            objects.create(CLUSTER_QUEUE, made)
            objects.set_status(CLUSTER_QUEUE, f"kitae-{team}", None, made["status"])
            objects.create(LOCAL_QUEUE, make_local(team), f"kitae-{team}")
        for made in (make_workload("r-waits", "red", 3), make_workload("b-runs", "blue", 6, running=True)):
            place = made["metadata"]["namespace"]
            objects.create(WORKLOAD, made, place)
            objects.set_status(WORKLOAD, made["metadata"]["name"], place, made["status"])
        flavor = {"metadata": {"name": "h100"}, "spec": {"nodeLabels": {"gpu": "h100"}}}
        objects.create(RESOURCE_FLAVOR, {"apiVersion": RESOURCE_FLAVOR.api_version, "kind": "ResourceFlavor", **flavor})
        node: dict[str, Any] = {
            "metadata": {"name": "n1", "labels": {"gpu": "h100"}},
            "status": {"allocatable": {GPU: "8"}},
        }
        objects.create(NODE, {"apiVersion": "v1", "kind": "Node", **node})
        objects.set_status(NODE, "n1", None, node["status"])
        yield server


@pytest.fixture
def kitae(store: Workspace, monkeypatch: pytest.MonkeyPatch) -> Kitae:
    """Run a command; a KitaeError is raised."""
    monkeypatch.setattr(session, "open_store", lambda **_: store)

    def run(*arguments: str, code: int = 0) -> Result:
        shown = CliRunner().invoke(cli, ["quota", *arguments], prog_name="kitae")
        if isinstance(shown.exception, KitaeError):
            raise shown.exception
        assert shown.exit_code == code, shown.output + repr(shown.exception)
        return shown

    return run


def line_of(output: str, *words: str) -> list[str]:
    (found,) = [line.split() for line in output.splitlines() if all(word in line.split() for word in words)]
    return found


def test_show(cluster: FakeKubernetes, kitae: Kitae) -> None:
    out = kitae("show").output
    quotas, _, waiting = out.partition("\n\n")
    assert " ".join(line_of(quotas, "blue", "h100")) == f"blue h100 {GPU} 4 6 2 0 no limit 0 0"
    assert " ".join(line_of(quotas, "red", "h100")) == f"red h100 {GPU} 4 2 0 2 no limit 0 3 (1)"
    assert "memory" not in out
    waits = line_of(waiting, "r-waits")
    assert waits[:4] == ["r-waits", "red", "3", GPU]
    assert "insufficient unused quota" in out
    assert "64Gi" in kitae("show", "--all").output
    assert "blue" not in kitae("show", "--team", "red").output
    with pytest.raises(SpecError, match="no team 'green' in this cluster; known: blue, red"):
        kitae("show", "--team", "green")
    assert {request.method for request in cluster.requests} == {"GET"}


def test_show_json_has_an_estimate_from_past_jobs(cluster: FakeKubernetes, kitae: Kitae, store: Workspace) -> None:
    now = datetime.now(UTC)
    hours_ago = {n: now - timedelta(hours=n) for n in (3, 4, 5)}
    put(store, make_record("a", created_at=hours_ago[5], started_at=hours_ago[4], finished_at=hours_ago[3]))
    document = json.loads(kitae("show", "--json").output)
    quotas = {(row["team"], row["flavor"], row["resource"]): row for row in document["quotas"]}
    red = quotas["red", "h100", GPU]
    assert (red["nominal"], red["borrow"], red["used"], red["waiting"], red["waiting_jobs"]) == (4, None, 2, 3, 1)
    (waits,) = document["waiting"]
    assert (waits["name"], waits["asks"][GPU]) == ("r-waits", 3)
    assert datetime.fromisoformat(waits["starts_at"]) > now


def test_set_prints_a_diff_and_changes_nothing(cluster: FakeKubernetes, kitae: Kitae) -> None:
    before = cluster.objects.get(CLUSTER_QUEUE, "kitae-blue")
    shown = kitae("set", "blue", "--flavor", "h100", "--nominal", "8", "--lend", "2")
    assert "+        nominalQuota: '8'" in shown.output
    assert "nothing was changed" in shown.output
    assert "together would have 12 of h100" in shown.stderr
    values = kitae("set", "blue", "--flavor", "h100", "--nominal", "8", "--values").stdout
    assert yaml.safe_load(values) == {"teams": {"blue": {"quotas": {"h100": {"gpu": {"nominal": 8}}}}}}
    assert cluster.objects.get(CLUSTER_QUEUE, "kitae-blue") == before
    assert {request.method for request in cluster.requests} == {"GET"}


def test_set_apply_changes_the_queue_and_prints_the_undo(
    cluster: FakeKubernetes, kitae: Kitae, store: Workspace
) -> None:
    before = cluster.objects.get(CLUSTER_QUEUE, "kitae-blue")["spec"]
    shown = kitae("set", "blue", "--flavor", "h100", "--nominal", "8", "--borrow", "4", "--apply")
    today = datetime.now(UTC).date()
    (entry,) = audit.read(store, today, today)
    assert (entry.action, entry.team, entry.details) == ("quota.set", "blue", {"changes": ["nominal 8", "borrow 4"]})
    assert quota_of(cluster) == {"name": GPU, "nominalQuota": "8", "borrowingLimit": "4"}
    undo = shown.output.splitlines()[-1].partition("kitae quota ")[2]
    kitae(*undo.split())
    assert cluster.objects.get(CLUSTER_QUEUE, "kitae-blue")["spec"] == before
    assert "nothing to change" in kitae("set", "blue", "--flavor", "h100", "--nominal", "4", "--apply").output


def quota_of(cluster: FakeKubernetes) -> Any:
    (group,) = cluster.objects.get(CLUSTER_QUEUE, "kitae-blue")["spec"]["resourceGroups"]
    return next(r for f in group["flavors"] if f["name"] == "h100" for r in f["resources"] if r["name"] == GPU)


def test_a_concurrent_change_is_not_overwritten(
    cluster: FakeKubernetes, kitae: Kitae, monkeypatch: pytest.MonkeyPatch
) -> None:
    def list_and_interfere(listed: Any, kind: Any) -> Any:
        if kind == NODE:  # after the queues were read
            cluster.objects.patch(CLUSTER_QUEUE, "kitae-blue", {"spec": {"stopPolicy": "Hold"}})
        return listed.list(kind)

    monkeypatch.setattr(session, "list_if_allowed", list_and_interfere)
    with pytest.raises(ObjectChanged, match="nothing was changed: run the command again"):
        kitae("set", "blue", "--flavor", "h100", "--nominal", "8", "--apply")
    assert quota_of(cluster)["nominalQuota"] == "4"
    assert cluster.objects.get(CLUSTER_QUEUE, "kitae-blue")["spec"]["stopPolicy"] == "Hold"


def test_a_missing_permission_is_reported_with_verb_and_resource(cluster: FakeKubernetes, kitae: Kitae) -> None:
    cluster.rules = [Rule(("list", "get"), ("clusterqueues", "resourceflavors"))]
    with pytest.raises(Forbidden, match=r"may not patch clusterqueues\.kueue\.x-k8s\.io"):
        kitae("set", "blue", "--flavor", "h100", "--nominal", "5", "--apply")
    # Nodes cannot be listed: the diff is printed without a warning about their capacity.
    shown = kitae("set", "blue", "--flavor", "h100", "--nominal", "9")
    assert "may not list nodes" in shown.stderr
    assert "its nodes have" not in shown.stderr
    with pytest.raises(Forbidden, match=r"may not list localqueues\.kueue\.x-k8s\.io"):
        kitae("show")


def test_no_cluster_and_no_kueue(cluster: FakeKubernetes, kitae: Kitae, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.objects.kinds.discard(CLUSTER_QUEUE)
    with pytest.raises(NoSuchKind, match="Kueue"):
        kitae("show")
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    with pytest.raises(ClusterUnreachable, match="KUBECONFIG"):
        kitae("show")
    with pytest.raises(ClusterUnreachable, match=r"--quota values\.yaml"):
        kitae("simulate", "--set", "blue.h100=1")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("set", "blue", "--flavor", "h100", "--apply", "--values"), "leave one out"),
        (("simulate",), "--proposal FILE or --set"),
        (("report", "--csv", "-", "--json"), "exclude each other"),
        (("report", "--since", "2026-11-02", "--until", "2026-11-01"), "after the last day"),
    ],
)
def test_wrong_calls(kitae: Kitae, arguments: tuple[str, ...], says: str) -> None:
    assert says in kitae(*arguments, code=2).output


def test_simulate(cluster: FakeKubernetes, kitae: Kitae, store: Workspace, tmp_path: Path) -> None:
    later = [make_record(f"j{i}", started_at=NOW, finished_at=NOW + timedelta(hours=1)) for i in range(6)]
    put(store, *later, make_record("green", spec_fields={"team": "green"}), make_record("runs", finished_at=None))
    page = tmp_path / "quota.html"
    shown = kitae("simulate", "--set", "blue.h100=2,borrow=0", *DAYS, "--html", str(page))
    assert " ".join(line_of(shown.output, "blue")).startswith("blue 6 0s → 2h30m")
    assert "jobs of teams without a quota left out: green (1)" in shown.stderr
    assert "1 job(s) left out: still runs or waits" in shown.stderr
    assert page.read_text().count("Plotly.newPlot(") >= 2
    document = json.loads(kitae("simulate", "--set", "blue.h100=2,borrow=0", *DAYS, "--json").stdout)
    (before,), (after,) = document["present"]["teams"], document["proposed"]["teams"]
    # At present blue has 4 and borrows 4: four jobs of two GPUs at once. Then one at a time.
    assert (before["jobs"], before["p50_s"], before["mean_s"]) == (6, 0, 1200)
    assert (after["p50_s"], after["mean_s"]) == (2.5 * 3600, 2.5 * 3600)
    values = kitae("set", "blue", "--flavor", "h100", "--nominal", "2", "--borrow", "0", "--values").stdout
    (tmp_path / "values.yaml").write_text(values)
    again = kitae("simulate", "--proposal", str(tmp_path / "values.yaml"), *DAYS, "--json").stdout
    assert json.loads(again)["proposed"] == document["proposed"]


def test_simulate_and_report_without_a_cluster(
    kitae: Kitae, store: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    put(store, make_record("a"))
    values = tmp_path / "values.yaml"
    values.write_text(
        "flavors: {h100: {resource: nvidia.com/gpu, pricePerHour: 3.0}}\n"
        "teams: {blue: {quotas: {h100: {gpu: {nominal: 4}}}}}\n"
    )
    shown = kitae("simulate", "--quota", str(values), "--set", "blue.h100=2", *DAYS).output
    assert line_of(shown, "h100")[1:4] == ["4", "→", "2"]
    day = ("--since", "2026-11-24", "--until", "2026-11-24")
    table, page, lines = kitae("report", "--quota", str(values), *day), tmp_path / "r.html", tmp_path / "r.csv"
    row = line_of(table.output, "blue")  # jobs, GPU h, idle GPU h, cost, idle cost
    assert (row[1], row[2], row[4]) == ("1", "2.00", "6.00")
    assert float(row[3]) == pytest.approx(float(row[5].replace(",", "")) / 3, rel=0.01)
    kitae("report", "--quota", str(values), *day, "--by", "model", "--csv", str(lines), "--html", str(page))
    assert lines.read_text().splitlines()[1].startswith("a,1,2,,0,,6,")
    assert "Plotly.newPlot(" in page.read_text()
    assert kitae("report", "--quota", str(values), *day, "--csv", "-").stdout.startswith("team,jobs,gpu_hours")
    document = json.loads(kitae("report", *day, "--json").stdout)
    assert document["total"]["gpu_hours"] == 2
    assert document["total"]["idle_gpu_hours"] is None
    assert any("--quota" in note for note in document["notes"])


def test_names_are_completed_from_the_settings_or_the_cluster(
    cluster: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, parameter = click.Context(quota.show), quota.show.params[0]

    def completed(complete: Any, text: str) -> list[str]:
        return [item.value for item in complete(context, parameter, text)]

    assert completed(quota.team_names, "") == ["blue", "red"]
    assert completed(quota.flavor_names, "h") == ["h100"]
    settings = {"image": "i", "teams": {}, "flavors": {"a100": {}, "h200": {}}}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setenv("KITAE_CLUSTER", str(tmp_path / "cluster.yaml"))
    assert completed(quota.flavor_names, "h") == ["h200"]
    monkeypatch.setenv("KITAE_CLUSTER", "/nowhere")
    assert completed(quota.flavor_names, "") == []


def test_the_commands_in_the_documentation_run(
    cluster: FakeKubernetes, kitae: Kitae, store: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs/quota.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\$ kitae quota (.+)$", text, flags=re.MULTILINE)
    (proposal,) = re.findall(r"^```yaml\n(.+?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert len(commands) > 9
    monkeypatch.chdir(tmp_path)
    Path("values.yaml").write_text(proposal)
    put(store, make_record("a"), make_record("b", spec_fields={"team": "red", "compute": {"gpus_per_worker": 1}}))
    for command in commands:
        assert kitae(*shlex.split(command)).output, command
    assert quota_of(cluster) == {"name": GPU, "nominalQuota": "8", "borrowingLimit": "4"}
    assert {path.name for path in tmp_path.iterdir()} >= {"quota.html", "models.html", "models.csv"}
    columns = re.findall(r"^\| ([a-z ]+) \| ", text, flags=re.MULTILINE)[1:]
    assert set(columns) <= set(re.split(r"\s{2,}", kitae("show").output.splitlines()[0].strip()))
