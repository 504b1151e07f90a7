"""The chart kitae: its manifests are valid, match the endpoint's settings, and grant no more than it needs.

Over 400 lines: every test reads manifests of the same renderings.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_jobs import __version__
from ray_jobs.cluster import settings
from ray_jobs.deploy import ServeSettings
from ray_jobs.deploy.serve_api import serve_config
from ray_jobs.launch import sidecar
from serving.http import serve_proxy
from serving.settings import EndpointSettings
from tests.charts import chart_values, helm
from tests.charts.manifests import Object, containers, findings, pod_templates, unbounded
from tests.repository import ROOT

CASES = [pytest.param(major, name, id=f"{name} (Helm {major})") for major in helm.MAJORS for name in chart_values.KITAE]
TEAM_NAMESPACES = {"blue": "kitae-blue", "green": "kitae-green"}


def of(documents: list[Object], kind: str) -> list[Object]:
    return [document for document in documents if document["kind"] == kind]


def one(documents: list[Object], kind: str, suffix: str = "") -> Object:
    (found,) = (document for document in of(documents, kind) if document["metadata"]["name"].endswith(suffix))
    return found


def pods(documents: list[Object]) -> dict[str, Object]:
    """Pod templates by component."""
    (service,) = of(documents, "RayService")
    found = [template for _, template in pod_templates(service)]
    return {template["metadata"]["labels"]["app.kubernetes.io/component"]: template for template in found}


def environment(template: Object) -> dict[str, str]:
    return {each["name"]: each.get("value", "from another object") for each in template["spec"]["containers"][0]["env"]}


def selects(selector: Object, labels: dict[str, str]) -> bool:
    for wanted in selector.get("matchExpressions", []):
        assert wanted["operator"] == "In"
        if labels.get(wanted["key"]) not in wanted["values"]:
            return False
    wanted_labels: dict[str, str] = selector.get("matchLabels", {})
    return wanted_labels.items() <= labels.items()


@pytest.mark.parametrize(("major", "case"), CASES)
def test_every_document_is_valid(major: int, case: str) -> None:
    documents = helm.render("kitae", chart_values.KITAE[case], major=major)
    assert len(documents) > 8
    assert [finding for document in documents for finding in findings(document)] == []
    for document in documents:
        labels = document["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == labels["app.kubernetes.io/name"] == "kitae"
        assert {"app.kubernetes.io/instance", "app.kubernetes.io/managed-by"} <= set(labels)
    keys = [(d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]) for d in documents]
    assert len(keys) == len(set(keys))
    assert ":latest" not in json.dumps(documents)


@pytest.mark.parametrize("case", chart_values.KITAE)
def test_both_majors_render_the_same(case: str) -> None:
    three, four = (helm.render("kitae", chart_values.KITAE[case], major=major) for major in helm.MAJORS)
    assert three == four


@pytest.mark.parametrize("major", helm.MAJORS)
@pytest.mark.parametrize("case", ["gpu", "cpu", "monitoring"])
def test_lint(major: int, case: str) -> None:
    assert "0 chart(s) failed" in helm.lint(major, "kitae", chart_values.KITAE[case])


def test_optional_kinds_need_their_options() -> None:
    optional = {"ServiceMonitor", "PrometheusRule", "ExternalSecret", "Gateway", "HTTPRoute", "Ingress"}
    kinds = {name: {d["kind"] for d in helm.render("kitae", values)} for name, values in chart_values.KITAE.items()}
    assert kinds["gpu"] & optional == set()
    assert set().union(*kinds.values()) >= optional
    assert "NetworkPolicy" not in kinds["no network policy"]
    assert "PodDisruptionBudget" not in kinds["no budgets"] | kinds["small"]
    assert not kinds["queues elsewhere"] & {"ClusterQueue", "LocalQueue", "ResourceFlavor", "WorkloadPriorityClass"}


def test_no_secret_is_in_the_chart() -> None:
    for values in chart_values.KITAE.values():
        assert of(helm.render("kitae", values), "Secret") == []


# --- the endpoint ----------------------------------------------------------------------------------------------------


def cluster_file(documents: list[Object], directory: Path) -> str:
    """The rendered `cluster.yaml` as the file that pods mount."""
    path = directory / "cluster.yaml"
    path.write_text(one(documents, "ConfigMap", "-cluster")["data"]["cluster.yaml"], encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("component", ["head", "api", "inference"])
def test_the_chart_and_the_endpoint_give_serve_the_same_configuration(
    component: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    documents = helm.render("kitae", chart_values.KITAE["gpu"])
    monkeypatch.delenv("KITAE_API_KEY", raising=False)
    for name, value in environment(pods(documents)[component]).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KITAE_CLUSTER", cluster_file(documents, tmp_path))
    document = yaml.safe_load(one(documents, "RayService")["spec"]["serveConfigV2"])
    assert document == serve_config([], ServeSettings.from_env()), "otherwise each undoes the other's changes"
    assert ("KITAE_API_KEY" in os.environ) == (component == "api")
    monkeypatch.setenv("KITAE_API_KEY", "k" * 16)
    endpoint = EndpointSettings.from_env(os.environ)
    assert endpoint.reconcile_deployments
    assert endpoint.job_defaults == {"compute": {"gpus_per_worker": 1, "cpus_per_worker": 8}}
    assert (endpoint.max_body_bytes, endpoint.max_file_bytes, endpoint.max_ongoing_requests) == (2**22, 2**29, 1000)
    assert endpoint.key_limits.concurrent_requests == 256


def test_each_ingress_process_has_a_pod_of_the_api_group() -> None:
    service = one(helm.render("kitae", chart_values.KITAE["gpu"]), "RayService")["spec"]
    document = yaml.safe_load(service["serveConfigV2"])["applications"][0]["deployments"][0]
    groups = {group["groupName"]: group for group in service["rayClusterConfig"]["workerGroupSpecs"]}
    (resource,) = document["ray_actor_options"]["resources"].items()
    # Ray's autoscaler removes the outer quotes and the backslashes (`autoscaling_config.py`).
    offered = json.loads(groups["api"]["rayStartParams"]["resources"][1:-1].replace("\\", ""))
    assert offered == dict([resource]) == {"kitae_api": 1}
    assert "resources" not in groups["inference"]["rayStartParams"]
    scaling = document["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (
        groups["api"]["minReplicas"],
        groups["api"]["maxReplicas"],
    )
    assert groups["api"]["rayStartParams"]["num-cpus"] == "0", "no engine beside the Kubernetes token"


def test_every_proxy_refuses_requests_while_no_ingress_process_answers() -> None:
    for template in pods(helm.render("kitae", chart_values.KITAE["gpu"])).values():
        module, _, name = environment(template)["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].partition(":")
        assert getattr(importlib.import_module(module), name) is serve_proxy.middlewares


def test_pods_of_the_profiles() -> None:
    gpu, cpu = (pods(helm.render("kitae", chart_values.KITAE[case])) for case in ("gpu", "cpu"))
    limits = {name: pod["spec"]["containers"][0]["resources"]["limits"] for name, pod in gpu.items()}
    assert {name for name, limit in limits.items() if "nvidia.com/gpu" in limit} == {"inference"}
    assert "nvidia.com/gpu" not in json.dumps(cpu)
    for pod in [*gpu.values(), *cpu.values()]:
        assert "app.kubernetes.io/name" not in pod["metadata"]["labels"], "KubeRay selects its head by it"


@pytest.mark.parametrize("profile", ["gpu", "cpu"])
def test_rays_object_store_fits_the_shared_memory(profile: str) -> None:
    sizes = yaml.safe_load((helm.CHARTS / "kitae/values.yaml").read_text())["profiles"][profile]
    for name in ("inference", "jobWorker"):
        shared_gib, memory_gib = (float(sizes[name][key].removesuffix("Gi")) for key in ("sharedMemory", "memory"))
        assert shared_gib >= 0.3 * memory_gib, "Ray uses 30 % of the memory, and the disk beyond /dev/shm"


TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"


def test_no_container_of_the_ray_cluster_has_a_kubernetes_token() -> None:
    """A task of the Ray cluster may run in any of its containers; only the launcher and the autoscaler have a token."""
    documents = helm.render("kitae", chart_values.KITAE["gpu"])
    found = pods(documents)
    assert len({pod["spec"]["serviceAccountName"] for pod in found.values()}) == 3
    assert [pod["spec"]["automountServiceAccountToken"] for pod in found.values()] == [False] * 3
    volumes = {
        name: [each["name"] for each in pod["spec"]["volumes"] if "serviceAccountToken" in json.dumps(each)]
        for name, pod in found.items()
    }
    assert volumes == {"head": ["kubernetes-token"], "api": ["kubernetes-token"], "inference": []}
    mounted = [
        (name, container["name"], mount["mountPath"])
        for name, pod in found.items()
        for container in containers(pod["spec"])
        for mount in container["volumeMounts"]
        if mount["name"] in volumes[name]
    ]
    assert mounted == [("api", "launcher", TOKEN)]
    (mount,) = one(documents, "RayService")["spec"]["rayClusterConfig"]["autoscalerOptions"]["volumeMounts"]
    assert (mount["name"], mount["mountPath"]) == ("kubernetes-token", TOKEN)


def test_the_launcher_has_no_credentials_but_its_token() -> None:
    """Its socket is all that the endpoint's process reaches of it."""
    api = pods(helm.render("kitae", chart_values.KITAE["gpu"]))["api"]["spec"]
    (launcher,) = api["initContainers"]
    assert launcher["restartPolicy"] == "Always", "a sidecar; it is also restarted where the pod's containers are not"
    (socket,) = launcher["command"][3:]
    assert launcher["command"][:3] == ["python", "-m", sidecar.__name__]
    assert {each["name"] for each in launcher["env"]} == {"KITAE_CLUSTER", "HOME", "PYTHONDONTWRITEBYTECODE"}
    assert "envFrom" not in launcher
    (ray,) = api["containers"]
    assert {"name": "KITAE_LAUNCHER", "value": socket} in ray["env"]
    shared = {each["name"] for each in ray["volumeMounts"]} & {each["name"] for each in launcher["volumeMounts"]}
    assert shared == {"cluster", "launcher"}


def test_the_operators_key_is_in_the_api_pods_alone() -> None:
    found = pods(helm.render("kitae", chart_values.KITAE["gpu"]))
    assert [name for name, pod in found.items() if "an-api-key" in json.dumps(pod)] == ["api"]


@pytest.mark.parametrize("case", ["gpu", "cpu", "small"])
def test_no_pod_may_fill_its_nodes_disk(case: str) -> None:
    documents = helm.render("kitae", chart_values.KITAE[case])
    documents += helm.render("finetune-job", chart_values.JOB["gpu"], namespace="kitae-blue")
    templates = [template["spec"] for document in documents for _, template in pod_templates(document)]
    assert len(templates) == 6
    assert [unbounded(spec) for spec in templates] == [[]] * 6
    autoscaler = one(documents, "RayService")["spec"]["rayClusterConfig"]["autoscalerOptions"]
    assert "ephemeral-storage" in autoscaler["resources"]["limits"]


def test_versions_match_the_project() -> None:
    lock = (ROOT / "requirements/lock.txt").read_text()
    for chart in ("kitae", "finetune-job"):
        described = yaml.safe_load((helm.CHARTS / chart / "Chart.yaml").read_text())
        assert described["appVersion"] == __version__
        version = yaml.safe_load((helm.CHARTS / chart / "values.yaml").read_text())["ray"]["version"]
        assert f"\nray=={version}\n" in lock


# KubeRay adds these to every Ray container, even if the manifest already sets them.
FROM_KUBERAY = {
    "FQ_RAY_IP",
    "KUBERAY_GEN_RAY_START_CMD",
    "RAY_CLOUD_INSTANCE_ID",
    "RAY_CLUSTER_NAME",
    "RAY_CLUSTER_NAMESPACE",
    "RAY_IP",
    "RAY_NODE_TYPE_NAME",
    "RAY_USAGE_STATS_EXTRA_TAGS",
}


def test_no_pod_sets_the_variables_that_kuberay_adds() -> None:
    documents = [*helm.render("kitae", chart_values.KITAE["gpu"])]
    documents += helm.render("finetune-job", chart_values.JOB["gpu"], namespace="kitae-blue")
    templates = [template for document in documents for _, template in pod_templates(document)]
    assert len(templates) == 6
    for template in templates:
        assert FROM_KUBERAY.isdisjoint(environment(template))


def test_the_dashboard_address_is_the_head_service_of_the_pods_cluster() -> None:
    for template in pods(helm.render("kitae", chart_values.KITAE["gpu"])).values():
        env = template["spec"]["containers"][0]["env"]
        names = [each["name"] for each in env]
        address = env[names.index("RAY_DASHBOARD_ADDRESS")]["value"]
        assert address == "http://$(POD_RAY_CLUSTER)-head-svc.$(POD_NAMESPACE).svc:8265"
        for name in ("POD_RAY_CLUSTER", "POD_NAMESPACE"):
            assert names.index(name) < names.index("RAY_DASHBOARD_ADDRESS"), "a reference needs an earlier variable"


def test_selectors_match_the_pods() -> None:
    documents = helm.render("kitae", chart_values.KITAE["redis"])
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(documents).items()}
    for budget in of(documents, "PodDisruptionBudget"):
        (group,) = (name for name, found in labels.items() if selects(budget["spec"]["selector"], found))
        assert budget["metadata"]["name"].endswith(group)
        assert "maxUnavailable" not in budget["spec"], "not allowed for pods of a RayCluster"
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow", "pods without a model are never ready"
    (metrics,) = of(documents, "Service")
    assert [name for name, found in labels.items() if metrics["spec"]["selector"].items() <= found.items()] == ["api"]
    for name, pod in pods(documents).items():
        for spread in pod["spec"].get("topologySpreadConstraints", []):
            assert [each for each in labels if selects(spread["labelSelector"], labels[each])] == [name]


# --- the teams -------------------------------------------------------------------------------------------------------


def test_cluster_yaml_matches_the_other_manifests() -> None:
    documents = helm.render("kitae", chart_values.KITAE["existing authority"])
    document = yaml.safe_load(one(documents, "ConfigMap", "-cluster")["data"]["cluster.yaml"])
    keys = "image image_pull_policy image_pull_secrets service_account store store_secret store_ca teams flavors "
    keys += "priority_classes worker head cache disk environment scheduling pod_security"
    assert set(document) == set(keys.split())
    queues = {queue["metadata"]["namespace"]: queue for queue in of(documents, "LocalQueue")}
    assert set(document["teams"]) == {"blue", "green"}
    for team in document["teams"].values():
        queue = queues[team["namespace"]]
        assert (queue["metadata"]["name"], queue["spec"]["clusterQueue"]) == (team["queue"], team["cluster_queue"])
        assert one(documents, "ClusterQueue", team["cluster_queue"])["spec"]["cohortName"] == team["cohort"]
    flavors = {flavor["metadata"]["name"]: flavor["spec"] for flavor in of(documents, "ResourceFlavor")}
    assert {name: flavor["node_labels"] for name, flavor in document["flavors"].items()} == {
        name: flavor["nodeLabels"] for name, flavor in flavors.items()
    }
    classes = {each["metadata"]["name"]: each["value"] for each in of(documents, "WorkloadPriorityClass")}
    assert document["priority_classes"] == classes
    assert document["store_ca"] == {"config_map": "company-ca", "key": "root.pem"}
    assert document["store_secret"] == "a-store"
    accounts = {(each["metadata"]["namespace"], each["metadata"]["name"]) for each in of(documents, "ServiceAccount")}
    assert {(team["namespace"], document["service_account"]) for team in document["teams"].values()} <= accounts
    assert document["image"] == pods(documents)["api"]["spec"]["containers"][0]["image"]


@pytest.mark.parametrize("case", chart_values.KITAE)
def test_the_launcher_reads_cluster_yaml(case: str) -> None:
    text = one(helm.render("kitae", chart_values.KITAE[case]), "ConfigMap", "-cluster")["data"]["cluster.yaml"]
    settings.parse(yaml.safe_load(text))


def test_jobs_get_the_trackers_credentials_by_name_and_the_way_to_them(tmp_path: Path) -> None:
    documents = helm.render("kitae", chart_values.KITAE["tracking"])
    cluster = yaml.safe_load(one(documents, "ConfigMap", "-cluster")["data"]["cluster.yaml"])
    assert settings.parse(cluster).tracking_secret == "trackers"
    given = {"KITAE_API_KEY": "k" * 16, "KITAE_CLUSTER": cluster_file(documents, tmp_path)}
    endpoint = EndpointSettings.from_env({**environment(pods(documents)["api"]), **given})
    assert endpoint.offers_wandb
    assert endpoint.job_defaults["tracking"] == {"wandb": {"project": "p", "entity": "ours"}}
    assert "WANDB_API_KEY" not in json.dumps(documents), "the endpoint has no key; jobs get it by the Secret's name"
    rule = {
        "to": [{"ipBlock": {"cidr": "10.40.0.7/32"}}],
        "ports": [{"protocol": "TCP", "port": 443}, {"protocol": "TCP", "port": 5000}],
    }
    policies = {each["metadata"]["namespace"]: each for each in of(documents, "NetworkPolicy")}
    assert rule in policies["kitae-blue"]["spec"]["egress"]
    assert rule not in policies["kitae"]["spec"]["egress"]
    without = helm.render("kitae", chart_values.KITAE["gpu"])
    assert "tracking_secret" not in one(without, "ConfigMap", "-cluster")["data"]["cluster.yaml"]
    (policy,) = [each for each in of(without, "NetworkPolicy") if each["metadata"]["namespace"] == "kitae-blue"]
    assert len(policy["spec"]["egress"]) == 3


def test_the_endpoint_restarts_when_its_settings_change() -> None:
    def annotation(**changes: Any) -> str:
        (digest,) = pods(helm.render("kitae", chart_values.kitae(**changes)))["api"]["metadata"]["annotations"].values()
        return str(digest)

    quota = {"cpu": {"nominal": "17"}, "memory": {"nominal": "64Gi"}}
    assert annotation() == annotation(teams={"green": {"weight": 3, "quotas": {"cpu": quota}}})
    assert annotation() != annotation(teams={"red": {"quotas": {"cpu": quota}}})
    assert annotation() != annotation(jobs={"backoffLimit": 1})


def test_every_flavor_has_a_quota_of_every_resource() -> None:
    queue = one(helm.render("kitae", chart_values.KITAE["gpu"]), "ClusterQueue", "blue")["spec"]
    (group,) = queue["resourceGroups"]
    assert group["coveredResources"] == ["cpu", "memory", "nvidia.com/gpu"]
    for flavor in group["flavors"]:
        assert [resource["name"] for resource in flavor["resources"]] == group["coveredResources"]
    assert [flavor["name"] for flavor in group["flavors"]] == ["cpu", "h100"], "heads need no GPU node"
    gpus = {flavor["name"]: flavor["resources"][2] for flavor in group["flavors"]}
    assert gpus["cpu"]["nominalQuota"] == "0"
    assert gpus["h100"] == {"name": "nvidia.com/gpu", "nominalQuota": "8", "lendingLimit": "4"}
    assert queue["fairSharing"] == {"weight": "2"}
    assert queue["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "kitae-blue"}}


def test_permissions_are_minimal() -> None:
    documents = helm.render("kitae", chart_values.KITAE["gpu"])
    rules = [rule for kind in ("Role", "ClusterRole") for role in of(documents, kind) for rule in role["rules"]]
    assert len(rules) >= 8
    assert not [rule for rule in rules for part in ("apiGroups", "resources", "verbs") if "*" in rule[part]]
    assert not [rule for rule in rules if set(rule["resources"]) & {"secrets", "pods/exec", "roles", "nodes"}]
    writing = {"create", "patch", "delete", "update"}
    assert {tuple(rule["resources"]) for rule in rules if set(rule["verbs"]) & writing} == {("rayjobs",)}
    assert not [rule for role in of(documents, "ClusterRole") for rule in role["rules"] if set(rule["verbs"]) & writing]
    assert {role["metadata"]["namespace"] for role in of(documents, "Role")} == set(TEAM_NAMESPACES.values())
    for binding in [*of(documents, "RoleBinding"), *of(documents, "ClusterRoleBinding")]:
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "kitae-api", "namespace": "kitae"}]
    assert all(account["automountServiceAccountToken"] is False for account in of(documents, "ServiceAccount"))


def test_a_teams_pods_reach_the_store_and_no_other_team() -> None:
    documents = helm.render("kitae", chart_values.KITAE["gpu"])
    policies = {policy["metadata"]["namespace"]: policy["spec"] for policy in of(documents, "NetworkPolicy")}
    for namespace in TEAM_NAMESPACES.values():
        policy = policies[namespace]
        assert policy["podSelector"] == {}
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        peers = [peer for rule in policy["egress"] for peer in rule["to"]]
        assert peers == [
            {"podSelector": {}},
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}},
            {"ipBlock": {"cidr": "10.20.0.0/16"}},
        ]
        callers = [peer for rule in policy["ingress"] for peer in rule["from"]]
        names = [peer["namespaceSelector"]["matchLabels"] for peer in callers if "namespaceSelector" in peer]
        assert names == [{"kubernetes.io/metadata.name": name} for name in ("kuberay-system", "monitoring")]
    restricted = {space["metadata"]["name"]: space["metadata"]["labels"] for space in of(documents, "Namespace")}
    assert set(restricted) == set(TEAM_NAMESPACES.values())
    assert {labels["pod-security.kubernetes.io/enforce"] for labels in restricted.values()} == {"restricted"}


def test_the_endpoints_pods_have_closed_network_policies() -> None:
    documents = helm.render("kitae", chart_values.KITAE["redis"])
    policies = [p["spec"] for p in of(documents, "NetworkPolicy") if p["metadata"]["namespace"] == "kitae"]
    for name, pod in pods(documents).items():
        labels = pod["metadata"]["labels"] | {"ray.io/node-type": "head" if name == "head" else "worker"}
        chosen = [policy for policy in policies if selects(policy["podSelector"], labels)]
        assert {kind for policy in chosen for kind in policy["policyTypes"]} == {"Ingress", "Egress"}
        anywhere = [rule["ports"] for policy in chosen for rule in policy["egress"] if "to" not in rule]
        assert [[port["port"] for port in ports] for ports in anywhere] == (
            [] if name == "inference" else [[443, 6443]]
        )


def test_two_releases_do_not_collide() -> None:
    first = helm.render("kitae", chart_values.kitae(), release="one", namespace="a")
    values = chart_values.kitae() | {"flavors": {}, "teams": {}, "queues": {"enabled": False}}
    for release, namespace in (("two", "a"), ("one", "b")):
        second = helm.render("kitae", values, release=release, namespace=namespace)
        shared = {(d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]) for d in first} & {
            (d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]) for d in second
        }
        assert shared == set()


def test_ingress_and_gateway_route_to_the_serve_service() -> None:
    for case, release in (("ingress", "kitae"), ("own gateway", "other")):
        documents = helm.render("kitae", chart_values.KITAE[case], release=release)
        assert f'"{one(documents, "RayService")["metadata"]["name"]}-serve-svc"' in json.dumps(
            of(documents, "Ingress") + of(documents, "HTTPRoute")
        )


def test_a_long_name_is_refused() -> None:
    with pytest.raises(helm.Refused, match="has 26 characters; at most 24"):
        helm.render("kitae", chart_values.kitae(), release="a" * 20)
