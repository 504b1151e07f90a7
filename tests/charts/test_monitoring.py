"""Alerts, dashboard and scrape configuration of the chart kitae."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from serving.observability.metrics import FinishedRequest, Metrics
from tests.charts import chart_values, helm
from tests.charts.test_charts import environment, one, pods
from tests.repository import ROOT

MONITORED = chart_values.KITAE["monitoring"]


def series() -> dict[str, set[str]]:
    """Names of the endpoint's series, with their labels; each metric is counted once."""
    metrics = Metrics()
    metrics.observe(
        FinishedRequest(
            "r", "POST", "/v1/x", 200, True, 0.1, 0.1, 10, "blue", "k", "m", prompt_tokens=1, completion_tokens=1
        )
    )
    metrics.set_jobs({"queued": 1})
    metrics.webhook_delivery("delivered")
    metrics.stored_answer("stored")
    metrics.set_unreadable({"deployment record": 1})
    return {sample.name: set(sample.labels) for family in metrics.registry.collect() for sample in family.samples}


def expressions() -> Iterator[str]:
    documents = helm.render("kitae", MONITORED)
    for group in one(documents, "PrometheusRule")["spec"]["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    (text,) = one(documents, "ConfigMap", "-dashboard")["data"].values()
    for panel in json.loads(text)["panels"]:
        yield from (target["expr"] for target in panel["targets"])


def test_alerts_and_dashboard_query_existing_series() -> None:
    known, queries = series(), list(expressions())
    assert len(queries) > 20
    for expression in queries:
        names = re.findall(r"\bkitae_[a-z_]+", re.sub(r'"[^"]*"', '""', expression))
        assert names, expression
        for name in names:
            assert name in known, expression
        for name, inside in re.findall(r"(kitae_[a-z_]+)\{([^}]*)\}", expression):
            labels = set(re.findall(r'(\w+)(?:=~|!~|!=|=)"', inside))
            assert labels - {"namespace", "service"} <= known[name], expression


def test_alerts_link_to_the_runbook() -> None:
    (group,) = one(helm.render("kitae", MONITORED), "PrometheusRule")["spec"]["groups"]
    links = {rule["annotations"]["runbook_url"] for rule in group["rules"]}
    assert {f"docs/runbook.md#{part}" for part in ("stuck-job", "lost-head", "full-bucket", "revoked-key")} <= links
    for rule in group["rules"]:
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert "WHERE" not in rule["expr"]
    runbook = ROOT / "docs/runbook.md"
    headings = re.findall(r"^#+ (.+)$", runbook.read_text(), flags=re.MULTILINE) if runbook.exists() else None
    if headings is not None:
        anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert {link.partition("#")[2] for link in links} <= anchors


def test_prometheus_sends_the_operators_key_unless_metrics_are_open() -> None:
    closed = one(helm.render("kitae", MONITORED), "ServiceMonitor")["spec"]["endpoints"][0]
    assert closed["authorization"] == {"credentials": {"name": "an-api-key", "key": "KITAE_API_KEY"}}
    documents = helm.render("kitae", chart_values.KITAE["open metrics"])
    assert "authorization" not in one(documents, "ServiceMonitor")["spec"]["endpoints"][0]
    assert environment(pods(documents)["api"])["KITAE_METRICS_OPEN"] == "on"
