#!/usr/bin/env bash
# Checks operators, CRDs and versions against the requirements of charts/kitae, and the teams' namespaces once it is
# installed. Read-only; exit code 1 if a check fails.
#
#     infra/operators/check.sh
#
# KUBERAY_NAMESPACE and KUEUE_NAMESPACE are the operators' namespaces; KITAE_CHECK_REPLICAS=1 accepts one replica each.
set -euo pipefail

KUBERAY_VERSION=1.7
KUEUE_VERSION=0.19
OLDEST_KUBERNETES_MINOR=30
kuberay_namespace=${KUBERAY_NAMESPACE:-kuberay-system}
kueue_namespace=${KUEUE_NAMESPACE:-kueue-system}
replicas=${KITAE_CHECK_REPLICAS:-2}
findings=0

finding() {
  printf 'wrong: %s\n' "$1"
  findings=$((findings + 1))
}

right() {
  printf 'right: %s\n' "$1"
}

command -v kubectl >/dev/null || {
  echo 'error: kubectl is not in PATH: install it (https://kubernetes.io/docs/tasks/tools/)' >&2
  exit 2
}
version=$(kubectl version -o json 2>/dev/null) || {
  echo 'error: the cluster does not respond: set KUBECONFIG, or choose a context with: kubectl config use-context NAME' >&2
  exit 2
}

# `"serverVersion": {… "minor": "33+" …}`, parsed without jq, which may not be installed.
minor=$(tr -d '\n' <<<"$version" | sed -n 's/.*"serverVersion".*"minor": *"\([0-9]*\).*/\1/p')
if [[ -z $minor ]]; then
  finding 'the version of Kubernetes cannot be read: run kubectl version'
elif ((minor < OLDEST_KUBERNETES_MINOR)); then
  finding "Kubernetes is 1.$minor, older than 1.$OLDEST_KUBERNETES_MINOR, the oldest supported version: upgrade it"
else
  right "Kubernetes 1.$minor"
fi

# crd NAME VERSION OPERATOR: check that the CRD exists and serves the version.
crd() {
  local served
  if ! served=$(kubectl get crd "$1" -o 'jsonpath={.spec.versions[?(@.served==true)].name}' 2>/dev/null); then
    finding "no CustomResourceDefinition $1, or no right to read it: install $3 (infra/operators/README.md)"
  elif [[ " $served " != *" $2 "* ]]; then
    finding "$1 is served as ${served:-nothing}, not as $2: upgrade $3 and its CustomResourceDefinitions"
  else
    right "$1 $2"
  fi
}

for kind in rayclusters rayjobs rayservices; do
  crd "$kind.ray.io" v1 "KubeRay $KUBERAY_VERSION"
done
for kind in clusterqueues localqueues resourceflavors workloads workloadpriorityclasses; do
  crd "$kind.kueue.x-k8s.io" v1beta2 "Kueue $KUEUE_VERSION"
done

# operator NAME NAMESPACE LABEL VERSION: check the Deployment's image version, its replicas, and that one is ready.
operator() {
  local found name image wanted ready
  found=$(kubectl -n "$2" get deployments -l "$3" \
    -o 'jsonpath={range .items[*]}{.metadata.name}|{.spec.template.spec.containers[*].image}|{.spec.replicas}|{.status.readyReplicas}{"\n"}{end}' \
    2>/dev/null | head -n 1) || true
  if [[ -z $found ]]; then
    finding "no Deployment of $1 with the label $3 in namespace $2, or no right to read it: install it, or set its namespace in ${1^^}_NAMESPACE"
    return
  fi
  IFS='|' read -r name image wanted ready <<<"$found"
  if [[ ! $image =~ :v?${4//./\\.}\.[0-9]+ ]]; then
    finding "$1 ($name) has the image $image, not one of $4: helm upgrade it with --version $4.x"
  fi
  if ((${ready:-0} < 1)); then
    finding "$1 ($name) has no replica that is ready: run kubectl -n $2 get pods"
  elif ((wanted < replicas)); then
    finding "$1 ($name) has $wanted replica, so its restarts cause an outage: set $replicas (infra/operators)"
  else
    right "$1 $image, $ready of $wanted ready"
  fi
}

operator kuberay "$kuberay_namespace" app.kubernetes.io/name=kuberay-operator "$KUBERAY_VERSION"
operator kueue "$kueue_namespace" app.kubernetes.io/name=kueue "$KUEUE_VERSION"

if configuration=$(kubectl -n "$kueue_namespace" get configmaps -o 'jsonpath={.items[*].data.controller_manager_config\.yaml}' 2>/dev/null) && [[ -n $configuration ]]; then
  if grep -Eq '^ *- *"?ray\.io/rayjob"?' <<<"$configuration"; then
    right "Kueue's integration ray.io/rayjob"
  else
    finding "Kueue's integration ray.io/rayjob is off, so jobs would start without quota: add it to integrations.frameworks (infra/operators/kueue.yaml)"
  fi
  if grep -Eq '^ *manageJobsWithoutQueueName: *true' <<<"$configuration"; then
    finding 'Kueue also manages objects without a queue (manageJobsWithoutQueueName): turn it off, or Kueue may suspend the endpoint'
  fi
  if grep -A 4 'managedJobsNamespaceSelector:' <<<"$configuration" | grep -q 'kitae\.dev/team'; then
    right "Kueue's webhooks apply to the teams' namespaces alone"
  else
    finding "Kueue's webhooks apply to every namespace (no managedJobsNamespaceSelector with kitae.dev/team): while Kueue is away the endpoint cannot scale or change; take it from infra/operators/kueue.yaml"
  fi
  if grep -q 'ephemeral-storage' <<<"$configuration"; then
    right "Kueue's quotas leave out ephemeral-storage"
  else
    finding "Kueue counts ephemeral-storage (no resources.excludeResourcePrefixes), and the queues have none, so it admits no job: take it from infra/operators/kueue.yaml"
  fi
  # Kueue 0.19 waits by default; only a feature gate turns it off.
  if grep -Eq '^ *DisableWaitForPodsReady: *true' <<<"$configuration"; then
    finding 'Kueue does not wait for pods (DisableWaitForPodsReady): a job whose image cannot be pulled would keep its quota'
  fi
  grep -Eq '^ *fairSharing:' <<<"$configuration" ||
    finding "Kueue's fairSharing is off: teams' weights have no effect"
else
  finding "Kueue's configuration cannot be read: no ConfigMap with controller_manager_config.yaml in namespace $kueue_namespace"
fi

# Namespaces of the teams: those with a queue of charts/kitae.
namespaces=$(kubectl get localqueues.kueue.x-k8s.io --all-namespaces -l app.kubernetes.io/part-of=kitae \
  -o 'jsonpath={range .items[*]}{.metadata.namespace}{"\n"}{end}' 2>/dev/null | sort -u) || true
for namespace in $namespaces; do
  [[ -n $(kubectl get namespace "$namespace" -o 'jsonpath={.metadata.labels.kitae\.dev/team}' 2>/dev/null) ]] ||
    finding "namespace $namespace has a team's queue and no label kitae.dev/team, so Kueue does not manage its jobs: kubectl label namespace $namespace kitae.dev/team=NAME"
done
if [[ -n $namespaces ]]; then
  if [[ -n $(kubectl get validatingadmissionpolicybindings -l app.kubernetes.io/part-of=kitae -o name 2>/dev/null) ]]; then
    right "charts/kitae's admission policy"
  else
    finding "no ValidatingAdmissionPolicyBinding of charts/kitae, or no right to read it: teams can start pods without quota; set admissionPolicy.enabled"
  fi
fi

if ((findings > 0)); then
  printf '\n%d finding(s)\n' "$findings"
  exit 1
fi
echo 'all checks passed'
