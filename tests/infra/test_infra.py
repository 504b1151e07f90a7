"""infra/ and the operator's documentation: values render, scripts parse, named files and commands exist."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from ray_jobs.__main__ import cli
from ray_jobs.cluster.quantities import parse
from ray_jobs.spec import load_spec
from ray_jobs.storage.workspace import TEAM_KINDS
from tests.charts import chart_values, helm
from tests.charts.manifests import Object, findings
from tests.repository import ROOT

INFRA = ROOT / "infra"
SCRIPTS = sorted(INFRA.rglob("*.sh"))
DOCUMENTS = sorted([*INFRA.rglob("*.md"), *(ROOT / "charts").rglob("*.md"), *(ROOT / "docs").rglob("*.md")])
DOCUMENTS += [ROOT / "README.md"]
PAGES = [
    ROOT / f"docs/{name}.md" for name in ("install", "upgrade", "backup", "runbook", "security", "decisions/image")
]
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def names_in_the_store() -> set[str]:
    """Prefixes of the store's keys, as docs/architecture.md lists them."""
    section = ARCHITECTURE.partition("## Keys in the store")[2].partition("\n## ")[0]
    return {
        name for block in section.split("```")[1::2] for name in re.findall(r"(?:^|; )([a-z-]+)/", block, re.MULTILINE)
    }


# --- values ----------------------------------------------------------------------------------------------------------

OWN = {"image": {"repository": "registry.example/kitae"}}
VALUES: dict[str, dict[str, Any]] = {
    name: chart_values.merged(chart_values.kitae() | {"teams": {}, "flavors": {}}, read(f"infra/{name}"))
    for name in ("quotas/small.yaml", "quotas/large.yaml", "monitoring/values.yaml")
}
VALUES["local/values.yaml"] = read("infra/local/values.yaml") | OWN
VALUES["local/fake-gpus.yaml"] = chart_values.merged(VALUES["local/values.yaml"], read("infra/local/fake-gpus.yaml"))


def of(documents: list[Object], kind: str) -> list[Object]:
    return [document for document in documents if document["kind"] == kind]


@pytest.mark.parametrize("major", helm.MAJORS)
@pytest.mark.parametrize("name", VALUES)
def test_manifests_of_the_values_are_valid(name: str, major: int) -> None:
    documents = helm.render("kitae", VALUES[name], major=major)
    assert [finding for document in documents for finding in findings(document)] == []


def nominal(queues: list[Object]) -> dict[tuple[str, str], float]:
    """Sum of nominal quotas by (flavor, resource)."""
    found: dict[tuple[str, str], float] = {}
    for queue in queues:
        for group in queue["spec"]["resourceGroups"]:
            for flavor in group["flavors"]:
                for resource in flavor["resources"]:
                    key = (flavor["name"], resource["name"])
                    found[key] = found.get(key, 0) + float(parse(resource["nominalQuota"]))
    return found


def test_the_total_quotas() -> None:
    small = nominal(of(helm.render("kitae", VALUES["quotas/small.yaml"]), "ClusterQueue"))
    assert small["gpu", "nvidia.com/gpu"] == 6
    large = nominal(of(helm.render("kitae", VALUES["quotas/large.yaml"]), "ClusterQueue"))
    gpus = {flavor: amount for (flavor, resource), amount in large.items() if resource == "nvidia.com/gpu"}
    assert gpus == {"cpu": 0, "h100": 56, "l40s": 16, "l40s-spot": 16}
    assert large["cpu", "cpu"] == 256


@pytest.mark.parametrize("name", ["quotas/small.yaml", "quotas/large.yaml"])
def test_each_gpu_has_the_cores_and_memory_of_a_worker(name: str) -> None:
    worker = read("charts/kitae/values.yaml")["profiles"]["gpu"]["jobWorker"]
    for team in read(f"infra/{name}")["teams"].values():
        for quota in team["quotas"].values():
            for limit in ("nominal", "borrowingLimit"):
                gpus = quota.get("gpu", {}).get(limit, 0)
                for resource in ("cpu", "memory"):
                    assert parse(str(quota[resource].get(limit, 0))) >= gpus * parse(worker[resource])


def test_one_job_fits_on_the_local_cluster_and_two_do_not() -> None:
    documents = helm.render("kitae", VALUES["local/fake-gpus.yaml"])
    sizes = VALUES["local/values.yaml"]["profiles"]["cpu"]
    job = {key: parse(sizes["jobHead"][key]) + parse(sizes["jobWorker"][key]) for key in ("cpu", "memory")}
    job = {"cpu": job["cpu"] + parse("500m"), "memory": job["memory"] + parse("200Mi")}  # the submitter
    queues = {queue["metadata"]["name"]: queue for queue in of(documents, "ClusterQueue")}
    total = nominal([queues["kitae-blue"], queues["kitae-green"]])
    for resource, needed in job.items():
        (flavor,) = queues["kitae-blue"]["spec"]["resourceGroups"][0]["flavors"]
        (own,) = (each for each in flavor["resources"] if each["name"] == resource)
        assert parse(own["nominalQuota"]) < needed, "each borrows, so that no job reclaims quota from the other"
        assert needed <= parse(own["nominalQuota"]) + parse(own["borrowingLimit"])
        assert float(needed) <= total["cpu", resource] < 2 * float(needed)
    (fake,) = queues["kitae-pretend"]["spec"]["resourceGroups"][0]["flavors"]
    assert {each.get("lendingLimit", "0") for each in fake["resources"] if each["name"] != "nvidia.com/gpu"} == {"0"}


def test_the_loss_of_one_api_pod_is_no_outage_on_the_local_cluster() -> None:
    documents = helm.render("kitae", VALUES["local/values.yaml"])
    (service,) = of(documents, "RayService")
    groups = {each["groupName"]: each for each in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]}
    assert groups["api"]["minReplicas"] == 2
    (budget,) = of(documents, "PodDisruptionBudget")
    assert budget["metadata"]["name"].endswith("-api")
    assert budget["spec"]["minAvailable"] == 1


def test_a_jobs_head_has_a_whole_core() -> None:
    """KubeRay waits 30 s for its dashboard at the job's end, and otherwise runs the finished job again."""
    sizes = [read("charts/kitae/values.yaml")["profiles"][name]["jobHead"] for name in ("gpu", "cpu")]
    sizes += [VALUES["local/values.yaml"]["profiles"]["cpu"]["jobHead"], read("infra/local/job-values.yaml")["head"]]
    assert [parse(each["cpu"]) >= 1 for each in sizes] == [True] * 4


@pytest.mark.parametrize("major", helm.MAJORS)
def test_the_demo_job_has_the_sizes_of_the_endpoints_jobs(major: int, tmp_path: Path) -> None:
    text = (INFRA / "local/job.yaml").read_text(encoding="utf-8").replace("TEAM", "blue")
    file = tmp_path / "job.yaml"
    file.write_text(text, encoding="utf-8")
    assert load_spec(file).team == "blue"
    values = read("infra/local/job-values.yaml") | {"image": {"repository": "kitae", "tag": "0.2.0-cpu"}}
    documents = helm.render("finetune-job", values, major=major, namespace="kitae-blue", files={"job.spec": file})
    assert [finding for document in documents for finding in findings(document)] == []
    sizes = VALUES["local/values.yaml"]["profiles"]["cpu"]
    for own, theirs in (("head", "jobHead"), ("worker", "jobWorker")):
        assert values[own].items() <= sizes[theirs].items()
    assert values["store"].items() <= (VALUES["local/values.yaml"]["store"] | {"existingSecret": "kitae-store"}).items()


def test_the_operators_configuration_is_what_the_charts_need() -> None:
    kuberay, kueue = read("infra/operators/kuberay.yaml"), read("infra/operators/kueue.yaml")
    assert kuberay["replicas"] > 1
    assert kuberay["leaderElectionEnabled"] is True
    assert kueue["controllerManager"]["replicas"] > 1
    configuration = yaml.safe_load(kueue["managerConfig"]["controllerManagerConfigYaml"])
    assert configuration["integrations"]["frameworks"] == ["ray.io/rayjob"]
    assert configuration["manageJobsWithoutQueueName"] is False
    (wanted,) = configuration["managedJobsNamespaceSelector"]["matchExpressions"]
    assert wanted == {"key": "kitae.dev/team", "operator": "Exists"}
    namespaces = [each["metadata"] for each in of(helm.render("kitae", chart_values.kitae()), "Namespace")]
    assert {each["name"] for each in namespaces if wanted["key"] in each["labels"]} == {"kitae-blue", "kitae-green"}
    assert configuration["resources"]["excludeResourcePrefixes"] == ["ephemeral-storage"], "jobs request it"
    assert {"waitForPodsReady", "fairSharing"} <= set(configuration)
    assert configuration["leaderElection"]["leaderElect"] is True


def test_versions_are_the_same_everywhere() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in [*DOCUMENTS, *SCRIPTS, INFRA / "operators/kueue.yaml"]}
    named = {name: set() for name in ("1.7", "0.19")}  # type: dict[str, set[str]]
    del texts[ROOT / "docs/clients.md"]  # versions of other programs
    for text in texts.values():
        for version in named:
            named[version] |= set(re.findall(rf"(?<![\d.])({re.escape(version)}\.\d+)(?![\d.]*\d)", text))
    assert named == {"1.7": {"1.7.0"}, "0.19": {"0.19.2"}}


def test_prometheus_without_its_operator_scrapes_the_charts_service() -> None:
    (scrape,) = read("infra/monitoring/prometheus.yaml")["scrape_configs"]
    (service,) = of(helm.render("kitae", VALUES["monitoring/values.yaml"]), "Service")
    kept = {
        rule["source_labels"][0]: rule["regex"] for rule in scrape["relabel_configs"] if rule.get("action") == "keep"
    }
    assert kept == {
        "__meta_kubernetes_service_name": service["metadata"]["name"],
        # The pod also has Ray's own port 8080.
        "__meta_kubernetes_endpointslice_port_name": service["spec"]["ports"][0]["name"],
    }
    assert scrape["kubernetes_sd_configs"][0]["namespaces"]["names"] == [service["metadata"]["namespace"]]
    labels = {rule["target_label"] for rule in scrape["relabel_configs"] if "target_label" in rule}
    assert {"namespace", "service"} <= labels, "the alerts select by them"


# --- the store -------------------------------------------------------------------------------------------------------


def resources(policy: str) -> dict[str, set[str]]:
    """Allowed key prefixes by action."""
    document = json.loads((INFRA / f"object-store/policy-{policy}.json").read_text(encoding="utf-8"))
    found: dict[str, set[str]] = {}
    for statement in document["Statement"]:
        assert statement["Effect"] == "Allow"
        assert not any("*" in action for action in statement["Action"])
        places = statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]]
        for place in places:
            prefix = place.removeprefix("arn:aws:s3:::BUCKET").removeprefix("/PREFIX/").partition("/")[0]
            for action in statement["Action"]:
                found.setdefault(action.removeprefix("s3:"), set()).add(prefix)
    return found


def test_a_teams_policy_allows_only_what_its_jobs_need() -> None:
    found, known = resources("team"), names_in_the_store() | {".probe", "layout.json"}
    assert len(known) > 12
    written = {"bases", "datasets", "dataset-versions", "jobs", "models", "aliases", "deployments", "runs", ".probe"}
    assert found["PutObject"] == written | {"owners"}
    assert found["GetObject"] == written | {"files", "catalogue", "catalogue-bases", "owners", "layout.json"}
    statements = json.loads((INFRA / "object-store/policy-team.json").read_text(encoding="utf-8"))["Statement"]
    places = [place for each in statements if isinstance(each["Resource"], list) for place in each["Resource"]]
    assert all(place.split("/")[3:] == ["TEAM", "*"] for place in places if place.split("/")[2] in TEAM_KINDS)
    claims = [each for each in statements if "PutObject" in str(each["Action"]) and "owners/" in str(each["Resource"])]
    assert [each["Condition"] for each in claims] == [{"Null": {"s3:if-none-match": "false"}}], "written once"
    assert found["DeleteObject"] == {"jobs", ".probe"}
    assert found["GetObject"] <= known
    checked = runpy.run_path(str(INFRA / "object-store/check.py"))
    assert {prefix.rstrip("/") for prefix in checked["FORBIDDEN"]} == known - found["GetObject"]
    shared = {place.split("PREFIX/")[1] for place in places if not place.endswith("TEAM/*") and ".probe" not in place}
    assert {f"{prefix}*" for prefix in checked["SHARED"]} | {"layout.json"} == shared
    assert resources("endpoint")["DeleteObject"] == {"*"}


def test_no_record_expires() -> None:
    rules = json.loads((INFRA / "object-store/lifecycle.json").read_text(encoding="utf-8"))["Rules"]
    expires = {rule["Filter"]["Prefix"] for rule in rules if "Days" in rule.get("Expiration", {})}
    assert expires == {"PREFIX/.probe/", "PREFIX/uploads/"}
    assert any("AbortIncompleteMultipartUpload" in rule for rule in rules)
    assert len({rule["ID"] for rule in rules}) == len(rules)


def test_the_store_in_the_cluster_is_restricted_and_has_the_address_of_the_values() -> None:
    documents = list(yaml.safe_load_all((INFRA / "object-store/seaweedfs.yaml").read_text(encoding="utf-8")))
    assert [finding for document in documents for finding in findings(document)] == []
    (service,) = of(documents, "Service")
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    port = service["spec"]["ports"][0]["port"]
    values = VALUES["local/values.yaml"]
    assert values["store"]["endpointUrl"] == f"http://{name}.{namespace}.svc:{port}"
    (deployment,) = of(documents, "Deployment")
    place = values["networkPolicy"]["store"]
    assert place["namespaceLabels"] == {"kubernetes.io/metadata.name": namespace}
    assert place["podLabels"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert place["ports"] == [port]
    settings = (INFRA / "local/settings.sh").read_text(encoding="utf-8")
    assert f"\nstore_uri={values['store']['uri']}\n" in settings


def test_the_store_in_the_cluster_reads_the_teams_identities_from_a_secret() -> None:
    text = (INFRA / "object-store/seaweedfs.yaml").read_text(encoding="utf-8")
    template = of(list(yaml.safe_load_all(text)), "Deployment")[0]["spec"]["template"]
    (container,) = template["spec"]["containers"]
    (option,) = (word for word in container["args"] if word.startswith("-s3.config="))
    (volume,) = (each for each in template["spec"]["volumes"] if "secret" in each)
    (mount,) = (each for each in container["volumeMounts"] if each["name"] == volume["name"])
    assert option == f"-s3.config={mount['mountPath']}/s3.json"
    assert mount["readOnly"] is True
    assert volume["secret"] == {"secretName": "seaweedfs-identities"}, "not optional: without it the pod does not start"
    # up.sh changes it with the Secret, so that SeaweedFS is restarted.
    assert list(template["metadata"]["annotations"]) == ["kitae.dev/identities"]
    assert "kitae.dev/identities: .*|" in (INFRA / "local/up.sh").read_text(encoding="utf-8")


def test_the_store_in_the_cluster_takes_a_base_of_540_mb() -> None:
    """977 MB resident at such an upload: with 1 GiB it thrashed, and a probe of one second ended it."""
    documents = list(yaml.safe_load_all((INFRA / "object-store/seaweedfs.yaml").read_text(encoding="utf-8")))
    (container,) = of(documents, "Deployment")[0]["spec"]["template"]["spec"]["containers"]
    assert parse(container["resources"]["limits"]["memory"]) >= 4 * 2**30
    assert parse(container["resources"]["requests"]["memory"]) >= 2**30
    assert {container[probe]["timeoutSeconds"] for probe in ("readinessProbe", "livenessProbe")} == {5}


# --- scripts and documents -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_parse_and_name_existing_files(script: Path) -> None:
    assert len(SCRIPTS) >= 6
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text(encoding="utf-8")
    assert "set -euo pipefail" in text or script.name == "settings.sh"
    assert os.access(script, os.X_OK) == (script.name != "settings.sh")
    for named in re.findall(r"(?<![\w/.])(?:infra|charts|examples|docs)/[A-Za-z0-9_./-]+[A-Za-z0-9]", text):
        assert (ROOT / named).exists(), f"{script.name} names {named}"


def test_missing_tools_and_wrong_settings_are_reported_at_once(tmp_path: Path) -> None:
    for tool in ("bash", "dirname", "cat"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    wrong = {"KITAE_LOCAL_IMAGE": "kitae:latest", "KITAE_LOCAL_OPERATORS": "maybe", "KITAE_LOCAL_VALUES": "/none.yaml"}
    done = subprocess.run(
        ["/usr/bin/bash", str(INFRA / "local/up.sh")],
        env={"PATH": str(tmp_path)} | wrong,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "7 thing(s)" in done.stderr
    for part in ("kubectl", "helm", "kind", "docker", "kitae:latest", "'maybe'", "/none.yaml"):
        assert part in done.stderr


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_in_documents_lead_to_existing_targets(document: Path) -> None:
    assert len(DOCUMENTS) > 20
    text = document.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+://", link):
            continue
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize(
    "document", [*sorted(INFRA.rglob("*.md")), *PAGES], ids=lambda path: str(path.relative_to(ROOT))
)
def test_files_and_commands_in_operators_documents_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for named in re.findall(r"(?<![\w/.])(?:infra|charts|docs|tests|requirements)/[A-Za-z0-9_./-]*[A-Za-z0-9]", text):
        assert (ROOT / named).exists(), named
    for line in re.findall(r"`(kitae [a-z][^`\n]*)`|^\$ (?:.*-- )?(kitae [a-z][^\n]*)", text, flags=re.MULTILINE):
        command(next(filter(None, line)))


def command(line: str) -> None:
    """Assert that a command exists and has the given options."""
    words = line.split("#")[0].split()[1:]
    found: click.Command = cli.commands[words[0]]
    options = {option for parameter in found.params for option in parameter.opts}
    if isinstance(found, click.Group) and len(words) > 1 and words[1] in found.commands:
        found = found.commands[words[1]]
        options |= {option for parameter in found.params for option in parameter.opts}
    for word in words:
        if word.startswith("--") and len(word) > 2:
            assert word.split("=")[0] in options, line


def test_the_runbook_has_a_section_for_every_alert() -> None:
    wanted = {rule["runbook"] for rule in read("charts/kitae/rules.yaml")["rules"]}
    parts = (ROOT / "docs/runbook.md").read_text(encoding="utf-8").split("\n## ")[1:]
    found = {part.partition("\n")[0].lower().replace(" ", "-"): part for part in parts}
    assert set(found) == wanted
    for part in found.values():
        for word in ("**You see**", "**Why**", "**Do**", "**Over**"):
            assert word in part
    for rule in read("charts/kitae/rules.yaml")["rules"]:
        assert f"`{rule['alert']}`" in found[rule["runbook"]]


def test_the_installation_has_ten_commands() -> None:
    block = (ROOT / "docs/install.md").read_text(encoding="utf-8").split("```")[1]
    assert len(re.findall(r"^\$ ", block, flags=re.MULTILINE)) == 10
