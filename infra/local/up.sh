#!/usr/bin/env bash
# Creates a cluster on this machine with all of Kitae; a second run adds what is missing.
#
#     infra/local/up.sh
#     KITAE_LOCAL_CLUSTER=existing infra/local/up.sh     # into the cluster of the current kubectl context
#
# Settings are at the top of settings.sh. The image must exist: make image
set -euo pipefail
# shellcheck source=infra/local/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
check_settings kubectl helm
cd "$root"
make_state

make_cluster() {
  if kind get clusters 2>/dev/null | grep -x "$cluster_name" >/dev/null; then
    say "kind cluster $cluster_name exists"
    kind export kubeconfig --name "$cluster_name" --kubeconfig "$KUBECONFIG" >/dev/null 2>&1
  else
    docker image inspect "$image" >/dev/null 2>&1 || ls "${archives:-/nowhere}"/*.tar >/dev/null 2>&1 ||
      complain "image $image does not exist: build it (make image), pull it, or set KITAE_LOCAL_ARCHIVES to a directory of archives"
    say "kind cluster $cluster_name"
    kind create cluster --name "$cluster_name" --config infra/local/kind.yaml --kubeconfig "$KUBECONFIG" --wait 5m
  fi
}

load_images() {
  local archive
  if docker image inspect "$image" >/dev/null 2>&1; then
    say "loading image $image into the node"
    kind load docker-image "$image" --name "$cluster_name"
  fi
  [[ -n $archives ]] || return 0
  for archive in "$archives"/*.tar; do
    [[ -e $archive ]] || continue
    say "loading the images of $archive into the node"
    kind load image-archive "$archive" --name "$cluster_name"
  done
}

# namespace NAME: create the namespace if it does not exist, and enforce Pod Security `restricted`.
namespace() {
  kubectl get namespace "$1" >/dev/null 2>&1 || kubectl create namespace "$1"
  kubectl label namespace "$1" pod-security.kubernetes.io/enforce=restricted --overwrite >/dev/null
}

# operator RELEASE CHART VERSION NAMESPACE VALUES [--repo ADDRESS] [--set …]
operator() {
  local release=$1 chart=$2 version=$3 namespace=$4 values=$5 place
  shift 5
  say "$release $version"
  namespace "$namespace"
  if [[ -n $charts ]]; then
    place=("$charts/$release-$version.tgz")
    if [[ ${1:-} == --repo ]]; then shift 2; fi
  else
    place=("$chart" --version "$version")
  fi
  helm upgrade --install "$release" "${place[@]}" "$@" -n "$namespace" -f "$values" --wait --timeout "${patience_s}s"
}

# keep_secret NAMESPACE NAME KEY=VALUE…: create the Secret if it does not exist; never change it.
keep_secret() {
  local namespace=$1 name=$2
  shift 2
  kubectl -n "$namespace" get secret "$name" >/dev/null 2>&1 ||
    printf '%s\n' "$@" | kubectl -n "$namespace" create secret generic "$name" --from-env-file=/dev/stdin
}

store() {
  say 'the store (SeaweedFS, one pod)'
  namespace kitae-store
  keep_secret kitae-store seaweedfs AWS_ACCESS_KEY_ID=kitae "AWS_SECRET_ACCESS_KEY=$(random 24)" \
    "WEED_JWT_SIGNING_KEY=$(random 32)" "WEED_JWT_FILER_SIGNING_KEY=$(random 32)"
  sed "s|registry.example/kitae:0.2.0-cpu|$image|" infra/object-store/seaweedfs.yaml | kubectl apply -f -
  kubectl -n kitae-store rollout status deployment/seaweedfs --timeout "${patience_s}s"
}

# store_secret NAMESPACE: create the Secret with the store's credentials.
store_secret() {
  keep_secret "$1" kitae-store "AWS_ACCESS_KEY_ID=$(secret kitae-store seaweedfs AWS_ACCESS_KEY_ID)" \
    "AWS_SECRET_ACCESS_KEY=$(secret kitae-store seaweedfs AWS_SECRET_ACCESS_KEY)"
}

endpoint() {
  local values=(-f infra/local/values.yaml) team conflicts=()
  say 'charts/kitae'
  if ((fake_gpus > 0)); then
    infra/local/fake-gpus.sh "$fake_gpus"
    values+=(-f infra/local/fake-gpus.yaml)
  fi
  if [[ -n $more_values ]]; then values+=(-f "$more_values"); fi
  namespace kitae
  keep_secret kitae kitae-api-key "KITAE_API_KEY=$(random 32)"
  store_secret kitae
  # KubeRay owns fields of the RayService that it has written, and Helm 4 refuses to change another's (docs/upgrade.md).
  if [[ $(helm version --template '{{.Version}}') == v4* ]]; then conflicts=(--force-conflicts); fi
  helm upgrade --install kitae charts/kitae -n kitae "${values[@]}" "${conflicts[@]}" \
    --set "image.repository=${image%:*}" --set-string "image.tag=${image##*:}"
  for team in "${teams[@]}"; do store_secret "kitae-$team"; done
  say "waiting for the endpoint, at most $patience_s s"
  kubectl -n kitae wait rayservice/kitae --for=condition=Ready --timeout "${patience_s}s" || {
    kubectl -n kitae get rayservices,rayclusters,pods >&2
    complain "the endpoint is not ready after $patience_s s: kubectl -n kitae describe pods shows the reason (not enough memory, no image $image); then run this script again"
  }
}

if [[ $cluster == kind ]]; then
  make_cluster
  load_images
fi
check_cluster
if [[ $operators == install ]]; then
  # One replica each: on one node, a second one adds no safety.
  operator kuberay-operator kuberay-operator "$kuberay_version" kuberay-system infra/operators/kuberay.yaml \
    --repo https://ray-project.github.io/kuberay-helm --set replicas=1
  operator kueue oci://registry.k8s.io/kueue/charts/kueue "$kueue_version" kueue-system infra/operators/kueue.yaml \
    --set controllerManager.replicas=1 --set controllerManager.podDisruptionBudget.enabled=false
fi
store
endpoint

say 'ready'
[[ $cluster != kind ]] || echo "  export KUBECONFIG=$KUBECONFIG"
cat <<'TEXT'
  infra/local/demo.sh                                    runs a job for each of two teams, in turn
  infra/local/tries.sh                                   tries what isolates teams and what survives an accident
  kubectl -n kitae port-forward svc/kitae-serve-svc 8000    serves the endpoint at http://localhost:8000
  kubectl -n kitae get secret kitae-api-key -o jsonpath={.data.KITAE_API_KEY} | base64 -d    prints its key
  kitae quota show                                       shows quotas and waiting jobs
  infra/local/down.sh                                    removes everything
TEXT
