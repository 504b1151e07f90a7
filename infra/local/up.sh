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

# set_secret NAMESPACE NAME OPTION: create the Secret from stdin, or make it equal to it.
set_secret() {
  kubectl -n "$1" create secret generic "$2" "$3" --dry-run=client -o yaml |
    kubectl apply --server-side --force-conflicts -f -
}

# identities: the teams' identities in SeaweedFS, without a right: a team has those of the bucket's policy. The operator's
# identity comes from the environment of SeaweedFS, and has all rights.
identities() {
  local team id key entries=()
  for team in "${store_teams[@]}"; do
    id=$(secret kitae-store "team-$team" AWS_ACCESS_KEY_ID)
    key=$(secret kitae-store "team-$team" AWS_SECRET_ACCESS_KEY)
    [[ -n $id && -n $key ]] || complain "Secret team-$team in namespace kitae-store has no key: delete it and run this script again"
    entries+=("{\"name\": \"$team\", \"credentials\": [{\"accessKey\": \"$id\", \"secretKey\": \"$key\"}], \"actions\": []}")
  done
  local IFS=,
  printf '{"identities": [%s]}\n' "${entries[*]}"
}

store() {
  local team version
  say 'the store (SeaweedFS, one pod)'
  namespace kitae-store
  keep_secret kitae-store seaweedfs AWS_ACCESS_KEY_ID=kitae "AWS_SECRET_ACCESS_KEY=$(random 24)" \
    "WEED_JWT_SIGNING_KEY=$(random 32)" "WEED_JWT_FILER_SIGNING_KEY=$(random 32)"
  for team in "${store_teams[@]}"; do
    keep_secret kitae-store "team-$team" "AWS_ACCESS_KEY_ID=$team" "AWS_SECRET_ACCESS_KEY=$(random 24)"
  done
  identities | set_secret kitae-store seaweedfs-identities --from-file=s3.json=/dev/stdin
  # Another version of the Secret restarts SeaweedFS, which reads it at its start.
  version=$(kubectl -n kitae-store get secret seaweedfs-identities -o 'jsonpath={.metadata.resourceVersion}')
  sed "s|registry.example/kitae:0.2.0-cpu|$image|; s|kitae.dev/identities: .*|kitae.dev/identities: \"$version\"|" \
    infra/object-store/seaweedfs.yaml | kubectl apply -f -
  kubectl -n kitae-store rollout status deployment/seaweedfs --timeout "${patience_s}s"
  say 'the rights of the teams in the store'
  in_store kitae-store seaweedfs policies.py "${store_teams[@]}" \
    --principal 'arn:aws:iam::000000000000:user/{team}' --apply
}

# store_secret NAMESPACE SOURCE: give a namespace the credentials of a Secret in kitae-store.
store_secret() {
  local id key
  id=$(secret kitae-store "$2" AWS_ACCESS_KEY_ID)
  key=$(secret kitae-store "$2" AWS_SECRET_ACCESS_KEY)
  printf 'AWS_ACCESS_KEY_ID=%s\nAWS_SECRET_ACCESS_KEY=%s\n' "$id" "$key" |
    set_secret "$1" kitae-store --from-env-file=/dev/stdin
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
  store_secret kitae seaweedfs
  # KubeRay owns fields of the RayService that it has written, and Helm 4 refuses to change another's (docs/upgrade.md).
  if [[ $(helm version --template '{{.Version}}') == v4* ]]; then conflicts=(--force-conflicts); fi
  helm upgrade --install kitae charts/kitae -n kitae "${values[@]}" "${conflicts[@]}" \
    --set "image.repository=${image%:*}" --set-string "image.tag=${image##*:}"
  for team in "${teams[@]}"; do store_secret "kitae-$team" "team-$team"; done
  if ((fake_gpus > 0)); then store_secret kitae-pretend team-pretend; fi
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
