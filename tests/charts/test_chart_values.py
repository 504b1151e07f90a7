"""Values of the charts: invalid ones are rejected with a message, each is documented, and the READMEs list them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.values_table import charts, readme, table
from tests.charts import chart_values, helm

CHARTS = {chart.name: chart for chart in charts()}


def _external(teams: dict[str, Any]) -> dict[str, Any]:
    external = chart_values.KITAE["external secrets"]["secrets"]["externalSecrets"]
    secrets = {"apiKey": {"existingSecret": ""}, "store": {"existingSecret": ""}, "externalSecrets": external}
    return {"secrets": secrets, "teams": teams}


REFUSED_KITAE: list[tuple[dict[str, Any], str]] = [
    ({"profil": "cpu"}, "profil"),
    ({"profile": "tpu"}, "profile.*(gpu|cpu)"),
    ({"api": {"minReplicas": 0}}, "minReplicas.*1"),
    ({"api": {"minReplicas": 9}}, r"api\.minReplicas is 9, more than maxReplicas 6"),
    ({"image": {"tag": "latest"}}, r"image\.tag is latest, which changes over time"),
    ({"image": {"repository": ""}}, r"image\.repository is empty"),
    ({"image": {"repository": "kitae:1"}}, "repository.*pattern"),
    ({"image": {"digest": "abc"}}, "digest.*pattern"),
    ({"store": {"uri": "http://bucket"}}, "uri.*pattern"),
    ({"store": {"endpointUrl": ""}}, r"store\.endpointUrl is empty"),
    ({"store": {"ca": {"existingConfigMap": "a", "pem": "b"}}}, "both existingConfigMap and pem"),
    ({"secrets": {"apiKey": {"existingSecret": ""}}}, "there is no default key"),
    ({"secrets": {"store": {"existingSecret": ""}}}, "there are no default credentials"),
    ({"secrets": {"apiKey": {"value": "hunter2"}}}, "value"),
    ({"secrets": {"externalSecrets": {"enabled": True}}}, r"externalSecrets\.storeName is empty"),
    (_external({}), r"teams\.blue\.storeSecretEntry is empty: a team's jobs do not get the endpoint's credentials"),
    (
        _external({"green": {"storeSecretEntry": "kitae/store"}}),
        r"teams\.green\.storeSecretEntry is kitae/store, the entry of the endpoint's credentials",
    ),
    ({"teams": {"blue": {"maxPriority": 101}}}, "maxPriority.*100"),
    ({"gcsFaultTolerance": {"enabled": True, "redisAddress": "r:6379"}}, "there is no default password"),
    ({"gcsFaultTolerance": {"enabled": True}}, r"gcsFaultTolerance\.egress is empty"),
    ({"networkPolicy": {"store": {"cidrs": []}}}, r"networkPolicy\.store is empty"),
    ({"networkPolicy": {"store": {"cidrs": ["10.0.0.0"]}}}, "cidrs.*pattern"),
    ({"networkPolicy": {"store": {"ports": [0]}}}, "ports.*1"),
    ({"tracking": {"wandb": True}}, r"tracking\.existingSecret is empty: name the Secret with WANDB_API_KEY"),
    ({"tracking": {"wandb": True, "existingSecret": "a"}}, r"networkPolicy\.tracking is empty.*give it the cidrs"),
    ({"tracking": {"apiKey": "hunter2"}}, "apiKey"),
    ({"networkPolicy": {"tracking": {"cidrs": ["mlflow.example"]}}}, "cidrs.*pattern"),
    ({"ingress": {"enabled": True, "host": "a.example"}}, r"ingress\.tlsSecret is empty"),
    ({"gateway": {"enabled": True, "host": "a.example"}}, "gateway needs parent.name, or className and tlsSecret"),
    ({"ray": {"version": "two"}}, "version.*pattern"),
    ({"ray": {"upgradeStrategy": "Recreate"}}, "upgradeStrategy"),
    ({"teams": {"blue": {"quota": {}}}}, "quota"),
    ({"teams": {"blue": {"quotas": {"cpu": {"memory": None, "cpu": {"nominal": "1"}}}}}}, "memory"),
    (
        {"teams": {"blue": {"quotas": {"h200": {"cpu": {"nominal": 1}, "memory": {"nominal": "1Gi"}}}}}},
        r"teams\.blue\.quotas\.h200: no such flavor; flavors has cpu, h100",
    ),
    ({"teams": {"green": {"quotas": {"cpu": {"gpu": {"nominal": 1}}}}}}, r"flavors\.cpu\.resource names no GPU"),
    ({"teams": {"blue": {"quotas": {"h100": {"gpu": {"lendingLimit": 9}}}}}}, "lendingLimit is 9, more than nominal 8"),
    ({"teams": {"green": {"namespace": "kitae-blue"}}}, "kitae-blue is also that of team blue"),
    ({"teams": {"green": {"namespace": "kitae"}}}, "kitae is also that of the release"),
    ({"teams": {"Blue": {"quotas": {}}}}, "Blue"),
    ({"priorityClasses": {"kitae-top": 1000}}, "kitae-top.*100"),
    ({"podSecurity": {"runAsUser": 0}}, "runAsUser.*1"),
    ({"environment": {"A": 1}}, "A.*string"),
]

REFUSED_JOB: list[tuple[dict[str, Any], str]] = [
    ({"job": {"spec": None}}, r"job\.spec is empty: give the job file, with --set-file"),
    ({"job": {"spec": "[a"}}, r"job\.spec is not a YAML mapping"),
    ({"job": {"spec": "- a"}}, r"job\.spec is not a YAML mapping"),
    ({"job": {"file": "a"}}, "file"),
    ({"worker": {"cpu": "500m"}}, "worker.cpu is 500m, and the job file requests 1 CPUs a worker"),
    ({"job": {"spec": {"compute": {"cpus_per_worker": 8}}}}, "worker.cpu is 4, and the job file requests 8 CPUs"),
    ({"endpointUrl": ""}, "endpointUrl is empty, and the job deploys its model"),
    ({"store": {"existingSecret": ""}}, "there are no default credentials"),
    ({"tracking": {"apiKey": "hunter2"}}, "apiKey"),
    ({"image": {"tag": "latest"}}, r"image\.tag is latest"),
    ({"retries": -1}, "retries.*0"),
    ({"deadlineSeconds": "1h"}, "deadlineSeconds"),
    ({"ttlSeconds": 86400}, "ttlSeconds.*3,?600"),
    ({"nccl": {"DEBUG": "INFO"}}, "DEBUG"),
    ({"worker": {"memory": "16 GB"}}, "memory.*pattern"),
    ({"worker": {"gpus": 2}}, "gpus"),
]


@pytest.mark.parametrize("major", helm.MAJORS)
@pytest.mark.parametrize(("change", "message"), REFUSED_KITAE, ids=[json.dumps(each[0]) for each in REFUSED_KITAE])
def test_wrong_values_of_kitae_are_refused(change: dict[str, Any], message: str, major: int) -> None:
    with pytest.raises(helm.Refused, match=f"(?s){message}"):
        helm.render("kitae", chart_values.kitae(**change), major=major)


@pytest.mark.parametrize("major", helm.MAJORS)
@pytest.mark.parametrize(("change", "message"), REFUSED_JOB, ids=[json.dumps(each[0]) for each in REFUSED_JOB])
def test_wrong_values_of_a_job_are_refused(change: dict[str, Any], message: str, major: int) -> None:
    with pytest.raises(helm.Refused, match=f"(?s){message}"):
        helm.render("finetune-job", chart_values.job(**change), major=major)


@pytest.mark.parametrize("major", helm.MAJORS)
@pytest.mark.parametrize(("chart", "count"), [("kitae", 6), ("finetune-job", 5)])
def test_every_missing_value_is_reported_at_once(chart: str, count: int, major: int) -> None:
    with pytest.raises(helm.Refused, match=rf"{count} value\(s\) are wrong"):
        helm.render(chart, {"job": {"spec": {"name": "a"}}} if chart == "finetune-job" else {}, major=major)


def open_objects(schema: Any, where: str = "") -> Iterator[str]:
    """Objects of a schema that accept unknown names."""
    if isinstance(schema, dict):
        if "properties" in schema and schema.get("additionalProperties") is not False:
            yield where
        for key, value in schema.items():
            yield from open_objects(value, f"{where}.{key}")


@pytest.mark.parametrize("chart", CHARTS)
def test_the_schema_accepts_only_known_values(chart: str) -> None:
    schema = json.loads((CHARTS[chart] / "values.schema.json").read_text(encoding="utf-8"))
    assert list(open_objects(schema)) == []
    assert len(schema["properties"]) > 10


@pytest.mark.parametrize("chart", CHARTS)
def test_the_readme_lists_the_values(chart: str) -> None:
    text = (CHARTS[chart] / "README.md").read_text(encoding="utf-8")
    values = (CHARTS[chart] / "values.yaml").read_text(encoding="utf-8")
    assert text == readme(text, values), "run: python charts/values_table.py"
    assert len(table(values).splitlines()) > 20


def test_a_value_without_a_comment_is_an_error() -> None:
    assert table("# -- An a.\na: {b: 1}\n").splitlines()[2] == '| `a` | `{"b": 1}` | An a. |'
    with pytest.raises(ValueError, match=r"above b\.c, nor above"):
        table("# -- An a.\na: 1\nb:\n  c: 2\n")


def test_the_examples_in_the_readmes_render() -> None:
    for chart, more in (("kitae", {}), ("finetune-job", {"job": {"spec": {"name": "a"}}})):
        text = (CHARTS[chart] / "README.md").read_text(encoding="utf-8")
        block = text.split("```yaml\n")[1].split("```")[0]
        assert helm.render(chart, yaml.safe_load(block) | more)


def test_both_charts_are_found() -> None:
    assert set(CHARTS) == {"kitae", "finetune-job"}
    assert all(isinstance(path, Path) for path in CHARTS.values())
