"""The scripts of infra/, run with fakes of kubectl, helm, kind and docker: the commands they run and their output."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.charts import helm
from tests.repository import ROOT

INFRA = ROOT / "infra"

RIGHT = {
    "kubectl version": '{"serverVersion": {"major": "1", "minor": "33+"}}',
    "kubectl get crd .*ray.io": "v1 v1alpha1",
    "kubectl get crd .*kueue": "v1beta1 v1beta2",
    "kubectl -n kuberay-system get deployments": "kuberay-operator|quay.io/kuberay/operator:v1.7.0|2|2",
    "kubectl -n kueue-system get deployments": "kueue|registry.k8s.io/kueue/kueue:v0.19.2|2|2",
    "kubectl get localqueues": "kitae-blue\nkitae-green\n",
    "kubectl get namespace kitae": "blue",
    "kubectl get validatingadmissionpolicybindings": "validatingadmissionpolicybinding/kitae",
    "kubectl -n kueue-system get configmaps": (INFRA / "operators/kueue.yaml").read_text(encoding="utf-8"),
}


def run(
    directory: Path, script: str, answers: dict[str, str], *, first: str = "", **environment: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run a script: its result, and the commands that the fakes received. An answer with `!` in front is a failure.
    `first`: what every fake does first."""
    answer = ""
    for number, (pattern, text) in enumerate(answers.items()):
        escaped = pattern.replace(" ", r"\ ")
        answer += f'if [[ "$line" =~ ^{escaped} ]]; then cat "{directory}/{number}"; '
        answer += f"exit {int(text.startswith('!'))}; fi\n"
    for number, text in enumerate(answers.values()):
        (directory / str(number)).write_text(text.removeprefix("!"), encoding="utf-8")
    reads = 'if [[ "$line" == *stdin* || "$line" == *"-f -" || "$line" == *"exec -i"* ]]; then cat >/dev/null; fi\n'
    for tool in ("kubectl", "helm", "kind", "docker"):
        fake = f'#!/bin/bash\nline="{tool} $*"\necho "$line" >> "{directory}/seen"\n{first}\n{reads}{answer}\nexit 0\n'
        (directory / tool).write_text(fake, encoding="utf-8")
        (directory / tool).chmod(0o755)
    done = subprocess.run(
        ["/bin/bash", str(INFRA / script)],
        env={
            "PATH": f"{directory}:/usr/bin:/bin",
            "HOME": str(directory),
            "KITAE_LOCAL_STATE": str(directory / "state"),
        }
        | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    seen = directory / "seen"
    return done, seen.read_text(encoding="utf-8").splitlines() if seen.exists() else []


def test_the_check_passes(tmp_path: Path) -> None:
    done, _ = run(tmp_path, "operators/check.sh", RIGHT)
    assert done.stdout.endswith("all checks passed\n"), done.stdout + done.stderr
    assert done.returncode == 0
    assert "wrong:" not in done.stdout


@pytest.mark.parametrize(
    ("pattern", "answer", "finding"),
    [
        ("kubectl version", '{"serverVersion": {"minor": "29"}}', "Kubernetes is 1.29"),
        ("kubectl get crd .*ray.io", "!", "no CustomResourceDefinition rayjobs.ray.io"),
        ("kubectl get crd .*kueue", "v1beta1", "clusterqueues.kueue.x-k8s.io is served as v1beta1"),
        ("kubectl -n kuberay-system get deployments", "", "no Deployment of kuberay"),
        ("kubectl -n kuberay-system get deployments", "k|quay.io/kuberay/operator:v1.6.1|2|2", "not one of 1.7"),
        ("kubectl -n kueue-system get deployments", "kueue|kueue:v0.19.2|1|1", "has 1 replica"),
        ("kubectl -n kueue-system get deployments", "kueue|kueue:v0.19.2|2|", "no replica that is ready"),
        ("kubectl -n kueue-system get configmaps", "fairSharing:\n", "ray.io/rayjob is off"),
        ("kubectl -n kueue-system get configmaps", "  DisableWaitForPodsReady: true\n", "not wait for pods"),
        ("kubectl -n kueue-system get configmaps", "fairSharing:\n", "webhooks apply to every namespace"),
        ("kubectl -n kueue-system get configmaps", "fairSharing:\n", "counts ephemeral-storage"),
        ("kubectl get namespace kitae", "", "kubectl label namespace kitae-blue kitae.dev/team=NAME"),
        ("kubectl get validatingadmissionpolicybindings", "", "no ValidatingAdmissionPolicyBinding"),
        ("kubectl -n kueue-system get configmaps", "!", "configuration cannot be read"),
    ],
)
def test_the_check_reports_a_finding(tmp_path: Path, pattern: str, answer: str, finding: str) -> None:
    done, _ = run(tmp_path, "operators/check.sh", RIGHT | {pattern: answer})
    assert finding in done.stdout
    assert done.returncode == 1


def test_the_check_accepts_kueues_default_of_waiting_for_pods(tmp_path: Path) -> None:
    configuration = (
        "frameworks:\n  - ray.io/rayjob\nfairSharing:\nexcludeResourcePrefixes: [ephemeral-storage]\n"
        "managedJobsNamespaceSelector:\n  matchExpressions:\n    - {key: kitae.dev/team, operator: Exists}\n"
    )
    done, _ = run(tmp_path, "operators/check.sh", RIGHT | {"kubectl -n kueue-system get configmaps": configuration})
    assert done.returncode == 0, done.stdout


def test_the_check_reports_every_finding(tmp_path: Path) -> None:
    done, _ = run(
        tmp_path, "operators/check.sh", dict.fromkeys(RIGHT, "!") | {"kubectl version": RIGHT["kubectl version"]}
    )
    assert "\n11 finding(s)\n" in done.stdout
    done, _ = run(tmp_path, "operators/check.sh", {"kubectl version": "!"})
    assert (done.returncode, done.stdout) == (2, "")


UP = {"kubectl -n kitae-store get secret (seaweedfs|team-[a-z]+) -o": "c2VjcmV0"}


def test_up_installs_into_an_existing_cluster(tmp_path: Path) -> None:
    image = "registry.example/kitae:0.2.0-cpu"
    done, seen = run(tmp_path, "local/up.sh", UP, KITAE_LOCAL_CLUSTER="existing", KITAE_LOCAL_IMAGE=image)
    assert done.returncode == 0, done.stderr
    assert "== ready" in done.stdout
    assert not [line for line in seen if line.startswith(("kind", "docker"))]
    installs = [line.split() for line in seen if line.startswith("helm upgrade")]
    assert [words[3] for words in installs] == ["kuberay-operator", "kueue", "kitae"]
    assert [words[words.index("--version") + 1] for words in installs[:2]] == ["1.7.0", "0.19.2"]
    assert "image.tag=0.2.0-cpu" in installs[2]
    for words in installs:
        values = [ROOT / words[place + 1] for place, word in enumerate(words) if word == "-f"]
        assert values
        assert all(path.is_file() for path in values)
    for namespace in ("kitae", "kitae-blue", "kitae-green"):
        assert [line for line in seen if line.startswith(f"kubectl -n {namespace} create secret generic kitae-store")]
    assert not [line for line in seen if "secret=" in line or "=secret" in line], "no command line has a key"


def test_up_creates_a_cluster_without_the_internet(tmp_path: Path) -> None:
    for name in ("kuberay-operator-1.7.0.tgz", "kueue-0.19.2.tgz", "operators.tar"):
        (tmp_path / name).touch()
    places = {"KITAE_LOCAL_CHARTS": str(tmp_path), "KITAE_LOCAL_ARCHIVES": str(tmp_path)}
    done, seen = run(tmp_path, "local/up.sh", UP | {"kubectl get nodes": "node/kind"}, **places)
    assert done.returncode == 0, done.stderr
    assert [line for line in seen if re.match(r"kind create cluster --name kitae --config infra/local/kind.yaml", line)]
    assert [line for line in seen if line.startswith("kind load docker-image kitae:0.2.0-cpu")]
    assert [line for line in seen if line.startswith(f"kind load image-archive {tmp_path}/operators.tar")]
    assert not [line for line in seen if "https://" in line or "oci://" in line]
    assert [line for line in seen if "nvidia.com~1gpu" in line and '"4"' in line]
    (endpoint,) = (line for line in seen if line.startswith("helm upgrade --install kitae "))
    assert "infra/local/fake-gpus.yaml" in endpoint


def test_up_reports_an_endpoint_that_does_not_become_ready(tmp_path: Path) -> None:
    answers = UP | {"kubectl -n kitae wait": "!"}
    done, _ = run(tmp_path, "local/up.sh", answers, KITAE_LOCAL_CLUSTER="existing", KITAE_LOCAL_PATIENCE_S="1")
    assert done.returncode == 2
    assert "not ready after 1 s" in done.stderr


@pytest.mark.parametrize(("version", "forces"), [("v3.17.2", False), ("v4.3.1", True)])
def test_up_overwrites_what_operators_own_with_helm_4(tmp_path: Path, version: str, forces: bool) -> None:
    """Helm 4 refuses a field that KubeRay has written; Helm 3 has no such option."""
    done, seen = run(tmp_path, "local/up.sh", UP | {"helm version": version}, KITAE_LOCAL_CLUSTER="existing")
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in seen if line.startswith("helm upgrade --install kitae "))
    assert ("--force-conflicts" in line) == forces


TRIES = {
    "kubectl -n kitae-blue create --dry-run=server": (
        "!queue-name must be kitae, image must be of, kitae.dev/team must be blue, create a RayJob"
    ),
    "kubectl -n kitae exec": "!",
    "kubectl -n kitae(-blue|-green|) get secret": "c2VjcmV0",
    "helm template": "queue-name: kitae",
}


@pytest.mark.parametrize(
    ("answers", "finding"),
    [
        ({}, None),
        ({"kubectl -n kitae-blue create --dry-run=server": ""}, "a pod is admitted"),
        (
            {"kubectl -n kitae-blue create --dry-run=server": "!no such kind"},
            "refused for another reason: no such kind",
        ),
        ({"kubectl -n kitae exec": ""}, "has a Kubernetes token"),
        (
            {"kubectl -n kitae-store exec -i deploy/seaweedfs": "!wrong: s3://kitae/keys/none can be read"},
            "the store's credentials of team blue: wrong: s3://kitae/keys/none can be read",
        ),
        ({"kubectl -n kitae annotate": "!"}, "cannot be changed while Kueue is away"),
        ({"kubectl -n kitae-blue get rayjobs": "rayjob.ray.io/tried-1"}, "leaves rayjob.ray.io/tried-1"),
    ],
)
def test_the_tries_report_what_is_wrong(tmp_path: Path, answers: dict[str, str], finding: str | None) -> None:
    status = tmp_path / "status"
    status.write_text("200", encoding="utf-8")
    stand_ins = {
        "curl": f'cat "{status}"',
        # The store goes away and comes back with its scale.
        "sleep": "exit 0",
    }
    for name, text in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    scale = f'[[ "$*" != *seaweedfs*"--replicas 0"* ]] || echo -n 503 > "{status}"\n'
    scale += f'[[ "$*" != *seaweedfs*"--replicas 1"* ]] || echo -n 200 > "{status}"'
    done, _ = run(tmp_path, "local/tries.sh", TRIES | answers, first=scale, KITAE_LOCAL_CLUSTER="existing")
    assert done.returncode == (0 if finding is None else 1), done.stdout + done.stderr
    assert finding is None or finding in done.stdout
    assert finding is not None or "wrong:" not in done.stdout


def test_down_keeps_the_data_by_default(tmp_path: Path) -> None:
    done, seen = run(tmp_path, "local/down.sh", {}, KITAE_LOCAL_CLUSTER="existing")
    assert done.returncode == 0, done.stderr
    assert [line.split()[2] for line in seen if line.startswith("helm uninstall")] == ["faq-blue", "faq-green", "kitae"]
    assert not [line for line in seen if "delete" in line]


ONLY_IN = {3: {"--force-conflicts", "--server-side"}}
"""By major version: options of the other one."""


@pytest.mark.parametrize("major", helm.MAJORS)
def test_helm_has_every_option_used(major: int) -> None:
    texts = [
        path.read_text(encoding="utf-8")
        for path in [*INFRA.rglob("*.sh"), *INFRA.rglob("*.md"), *(ROOT / "docs").glob("*.md")]
    ]
    lines = [
        line for text in texts for line in re.findall(r"^[$ ]*helm (.*)", text.replace("\\\n", " "), flags=re.MULTILINE)
    ]
    assert len(lines) > 12
    for line in lines:
        subcommand = line.split()[0]
        known = subprocess.run([helm.binary(major), subcommand, "--help"], capture_output=True, text=True).stdout
        for option in set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", line.split("#")[0])) - ONLY_IN.get(major, set()):
            assert re.search(rf"(?<![\w-]){re.escape(option)}\b", known), f"helm {line}"
