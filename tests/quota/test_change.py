"""Quota changes: checks, diff, warnings and undo. Quota files and settings."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_jobs.errors import SpecError
from ray_jobs.kueue.pool import Pool, QuotaLimits, TeamQuota
from ray_jobs.quota import quota_file
from ray_jobs.quota.change import Change, capacity_of, plan
from tests.quota.builders import GPU, make_queue
from tests.repository import ROOT


def queues(**blue: Any) -> list[dict[str, Any]]:
    return [
        make_queue("blue", {"nominalQuota": "4", "borrowingLimit": "2", **blue}, used=5, borrowed=1),
        make_queue("red", {"nominalQuota": "4"}, used=1),
    ]


def changed(**given: Any) -> Change:
    fields: Any = given
    return plan(queues(), "blue", "h100", fields)


def test_the_diff_has_only_the_changed_lines_under_their_flavor() -> None:
    change = changed(nominal="8", borrow="none", lend="2")
    lines = change.diff.splitlines()
    assert lines[:2] == ["--- ClusterQueue/kitae-blue (now)", "+++ ClusterQueue/kitae-blue (proposed)"]
    assert [line for line in lines[2:] if line[0] in "+-"] == [
        "-        nominalQuota: '4'",
        "-        borrowingLimit: '2'",
        "+        nominalQuota: '8'",
        "+        lendingLimit: '2'",
    ]
    assert change.before == QuotaLimits(Decimal(4), Decimal(2))
    assert change.after == QuotaLimits(Decimal(8), None, Decimal(2))


def test_unchanged_lines_keep_their_place_and_spelling() -> None:
    """An API server returns fields in alphabetical order."""
    found = queues(lendingLimit=4)
    for group in found[0]["spec"]["resourceGroups"]:
        for flavor in group["flavors"]:
            flavor["resources"] = [dict(sorted(resource.items())) for resource in flavor["resources"]]
    change = plan(found, "blue", "h100", {"nominal": "8"})
    assert [line for line in change.diff.splitlines()[2:] if line[0] in "+-"] == [
        "-        nominalQuota: '4'",
        "+        nominalQuota: '8'",
    ]


def test_the_patch_has_the_resource_version_and_every_flavor() -> None:
    found = queues()
    found[0]["metadata"]["resourceVersion"] = "17"
    change = plan(found, "blue", "h100", {"nominal": "8"})
    assert change.patch["metadata"] == {"resourceVersion": "17"}
    (group,) = change.patch["spec"]["resourceGroups"]
    quotas = {f["name"]: {r["name"]: r for r in f["resources"]} for f in group["flavors"]}
    assert quotas["h100"][GPU] == {"name": GPU, "nominalQuota": "8", "borrowingLimit": "2"}
    assert quotas["h100"]["memory"] == {"name": "memory", "nominalQuota": "64Gi"}
    assert quotas["cpu"][GPU]["nominalQuota"] == "0"
    assert found[0] == queues()[0] | {"metadata": found[0]["metadata"]}  # the object read is unchanged


def test_undo_and_chart_values() -> None:
    change = changed(nominal="8", borrow="none")
    assert change.undo == "kitae quota set blue --flavor h100 --nominal 4 --borrow 2 --lend none --apply"
    assert yaml.safe_load(change.values) == {"teams": {"blue": {"quotas": {"h100": {"gpu": {"nominal": 8}}}}}}
    memory = plan(queues(), "blue", "h100", {"nominal": "128Gi"}, resource="memory")
    assert memory.undo.endswith("--flavor h100 --resource memory --nominal 64Gi --borrow none --lend none --apply")
    assert yaml.safe_load(memory.values)["teams"]["blue"]["quotas"]["h100"] == {"memory": {"nominal": "128Gi"}}
    cpu = plan(queues(), "blue", "cpu", {"lend": "500m"})
    assert cpu.resource == "cpu"
    quotas = yaml.safe_load(cpu.values)["teams"]["blue"]["quotas"]
    assert quotas == {"cpu": {"cpu": {"nominal": 16, "lendingLimit": "500m"}}}


def test_another_spelling_of_the_same_quota_is_no_change() -> None:
    assert changed(nominal="4000m").diff == ""


@pytest.mark.parametrize(
    ("team", "flavor", "given", "resource", "findings"),
    [
        ("green", "h100", {"nominal": "1"}, None, ["no team 'green'; known: blue, red"]),
        ("bleu", "h100", {"nominal": "1"}, None, ["no team 'bleu'; did you mean 'blue'?"]),
        ("blue", "h200", {"nominal": "1"}, None, ["no flavor 'h200'; did you mean 'h100'?"]),
        ("blue", "gb200x", {"nominal": "1"}, None, ["no flavor 'gb200x'; known: cpu, h100"]),
        ("blue", "h100", {}, None, ["no change: give --nominal"]),
        ("blue", "h100", {"nominal": "1"}, "disk", ["no resource 'disk'; known: cpu, memory, nvidia.com/gpu"]),
        (
            "green",
            "h200",
            {"nominal": "many", "borrow": "-1", "lend": "-2"},
            None,
            ["no team 'green'", "no flavor 'h200'", "--nominal: 'many'", "borrow is -1", "lend is -2"],
        ),
        ("blue", "h100", {"lend": "5"}, None, ["lend is 5, more than nominal 4: lower lend or raise nominal"]),
    ],
)
def test_every_problem_is_reported_at_once(
    team: str, flavor: str, given: Any, resource: str | None, findings: list[str]
) -> None:
    with pytest.raises(SpecError) as caught:
        plan(queues(), team, flavor, given, resource=resource)
    assert len(caught.value.details) == len(findings)
    for finding, detail in zip(findings, caught.value.details, strict=True):
        assert finding in detail


def test_a_flavor_of_another_team_and_a_queue_without_a_cohort() -> None:
    found = [*queues(), make_queue("solo", {"nominalQuota": "1"}, cohort=None, flavor="a100")]
    with pytest.raises(SpecError, match=r"no quota of a100 yet.*teams\.blue\.quotas\.a100"):
        plan(found, "blue", "a100", {"nominal": "1"})
    with pytest.raises(SpecError, match="--borrow and --lend: the queue of team solo is in no cohort"):
        plan(found, "solo", "a100", {"borrow": "1", "lend": "1"})


def warned(given: Any, *, capacity: int | None = None, found: Any = None) -> str:
    limit = None if capacity is None else Decimal(capacity)
    return "\n".join(plan(found or queues(), "blue", "h100", given, capacity=limit).warnings)


def test_warnings_about_the_effects_of_a_change() -> None:
    assert "together would have 12 of h100 nvidia.com/gpu, and its nodes have 8" in warned({"nominal": "8"}, capacity=8)
    assert "its nodes have" not in warned({"nominal": "8"}, capacity=12)
    less = warned({"nominal": "1"})
    assert "running jobs of blue use 5, more than its new maximum of 3" in less
    assert "4 of the quota that running jobs of blue use would be borrowed" in less
    assert "running jobs" not in warned({"nominal": "6"})
    assert "cpu 16, memory 64Gi of h100 stay unchanged" in less
    assert "stay unchanged" not in warned({"borrow": "3"})
    borrower = [make_queue("blue", {"nominalQuota": "4"}), make_queue("red", {"nominalQuota": "1"}, used=4, borrowed=3)]
    assert "red borrows 3 now, and blue would lend less" in warned({"lend": "1"}, found=borrower)
    helm = queues()
    helm[0]["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "Helm"
    assert "`helm upgrade` undoes the change" in warned({"nominal": "6"}, found=helm)


def test_the_capacity_of_a_flavors_nodes() -> None:
    flavor = {"spec": {"nodeLabels": {"gpu": "h100"}}}
    nodes: list[dict[str, Any]] = [
        {"metadata": {"labels": {"gpu": "h100", "zone": "a"}}, "status": {"allocatable": {GPU: "8", "cpu": "64"}}},
        {"metadata": {"labels": {"gpu": "h100"}}, "status": {"allocatable": {GPU: "4"}}},
        {"metadata": {"labels": {"gpu": "a100"}}, "status": {"allocatable": {GPU: "8"}}},
        {"metadata": {}},
    ]
    assert capacity_of(nodes, flavor, GPU) == 12
    assert capacity_of(nodes, flavor, "cpu") == 64
    assert capacity_of(nodes, {"spec": {}}, GPU) == 20
    assert capacity_of(nodes, None, GPU) is None


# ---- files and settings

VALUES = """
image: {repository: r}
queues: {cohort: kitae, preemption: {withinClusterQueue: LowerPriority, reclaimWithinCohort: Any}}
flavors:
  h100: {resource: nvidia.com/gpu, pricePerHour: 3.2, nodeLabels: {gpu: h100}}
  cpu: {}
teams:
  blue:
    weight: 2
    quotas:
      cpu: {cpu: {nominal: 16}, memory: {nominal: 64Gi}}
      h100: {cpu: {nominal: 32}, memory: {nominal: 1Ti}, gpu: {nominal: 8, borrowingLimit: 4, lendingLimit: 2}}
  red:
    quotas:
      h100: {gpu: {nominal: 4}}
"""


def read(tmp_path: Path, text: str) -> quota_file.QuotaFile:
    path = tmp_path / "values.yaml"
    path.write_text(text)
    return quota_file.load(path)


def test_the_charts_values_are_a_quota_file(tmp_path: Path) -> None:
    found = quota_file.pool_of(read(tmp_path, VALUES), source="values.yaml")
    assert found.teams["blue"] == TeamQuota(
        {"cpu": QuotaLimits(Decimal(16)), "h100": QuotaLimits(Decimal(8), Decimal(4), Decimal(2))},
        within="LowerPriority",
        reclaim="Any",
    )
    assert (found.kinds, found.prices) == ({"h100": "gpu", "cpu": "cpu"}, {"h100": 3.2})


def test_policies_missing_in_a_file_are_the_charts_defaults(tmp_path: Path) -> None:
    file = read(tmp_path, "teams: {blue: {quotas: {h100: {gpu: {nominal: 1}}}}}")
    team = quota_file.pool_of(file, source="values.yaml").teams["blue"]
    assert (team.cohort, team.within, team.reclaim) == ("kitae", "LowerPriority", "Any")
    values = ROOT / "charts/kitae/values.yaml"
    if values.is_file():
        queues = yaml.safe_load(values.read_text(encoding="utf-8"))["queues"]
        assert (queues["cohort"], queues["preemption"]) == (
            "kitae",
            {"withinClusterQueue": "LowerPriority", "reclaimWithinCohort": "Any"},
        )


def test_the_values_of_a_change_are_a_proposal_that_leaves_the_rest_unchanged(tmp_path: Path) -> None:
    present = quota_file.pool_of(read(tmp_path, VALUES), source="v")
    proposal = read(tmp_path, changed(nominal="16").values)
    proposed = quota_file.with_file(present, proposal, source="v")
    assert proposed.teams["blue"].limits["h100"] == QuotaLimits(Decimal(16), Decimal(2), Decimal(2))
    assert proposed.teams["red"] == present.teams["red"]
    assert proposed.prices == present.prices


@pytest.mark.parametrize(
    ("text", "findings"),
    [
        ("a: 1", ["no mapping `teams:`"]),
        ("[", ["not readable YAML"]),
        ("teams: {blue: {quotas: {h100: {gpus: {nominal: 1}}}}}", ["teams.blue.quotas.h100.gpus"]),
        (
            "teams: {blue: {quotas: {h100: {gpu: {nominal: -1}}, cpu: {cpu: {nominal: many}}}}}",
            ["teams.blue.quotas.h100.gpu.nominal", "teams.blue.quotas.cpu.cpu.nominal"],
        ),
        (
            "teams: {blue: {quotas: {h100: {gpu: {lendingLimit: 1}}, cpu: {cpu: {nominal: 1, lendingLimit: 2}}}}}",
            ["h100: nominal is required", "cpu: lend is 2, more than nominal 1"],
        ),
    ],
)
def test_every_problem_of_a_file_is_reported(tmp_path: Path, text: str, findings: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        quota_file.pool_of(read(tmp_path, text), source="values.yaml")
    assert all(finding in str(caught.value) for finding in findings)
    assert len(caught.value.details) in (0, len(findings))


def test_settings_on_the_command_line() -> None:
    present = Pool(
        {"blue": TeamQuota({"h100": QuotaLimits(Decimal(4), Decimal(1))}), "team.b": TeamQuota({})}, {"h100": "gpu"}
    )
    found = quota_file.with_settings(present, ["blue.h100=8,borrow=none,lend=2", "team.b.h100=1"])
    assert found.teams["blue"].limits["h100"] == QuotaLimits(Decimal(8), None, Decimal(2))
    assert found.teams["team.b"].limits["h100"] == QuotaLimits(Decimal(1))
    assert quota_file.with_settings(present, ["blue.h100=borrow=3"]).teams["blue"].limits["h100"].borrow == 3
    wrong = {
        "blue": "'blue' is not TEAM",
        "green.h100=1": "no team 'green'",
        "blue.h200=1": "did you mean 'h100'",
        "blue.h100=x": "'x'",
        "blue.h100=1,lent=2": "'lent=2'",
        "blue.h100=1,lend=3": "lend is 3",
        "blue.h100=-1": "nominal is -1",
    }
    with pytest.raises(SpecError) as caught:
        quota_file.with_settings(present, wrong)
    for finding, detail in zip(wrong.values(), caught.value.details, strict=True):
        assert finding in detail
