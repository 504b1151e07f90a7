#!/usr/bin/env bash
# Removes what up.sh created.
#
#     infra/local/down.sh                                            # kind: deletes the cluster
#     KITAE_LOCAL_CLUSTER=existing infra/local/down.sh               # removes jobs and charts/kitae; keeps the store and its data
#     KITAE_LOCAL_CLUSTER=existing infra/local/down.sh --everything  # also removes the store, all namespaces and the operators
set -euo pipefail
# shellcheck source=infra/local/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
[[ -z ${1:-} || $1 == --everything ]] || complain "unknown option '$1': infra/local/down.sh [--everything]"
check_settings kubectl helm
if [[ $cluster == kind ]]; then
  kind delete cluster --name "$cluster_name" --kubeconfig "$KUBECONFIG"
  rm -rf "$state"
  exit 0
fi
check_cluster
for team in "${teams[@]}"; do
  helm uninstall "faq-$team" -n "kitae-$team" --ignore-not-found --wait
done
helm uninstall kitae -n kitae --ignore-not-found --wait
rm -rf "$state"
if [[ ${1:-} != --everything ]]; then
  echo 'kept: the store (namespace kitae-store), the namespaces of the teams and the operators; --everything removes them'
  exit 0
fi
for team in "${teams[@]}" pretend; do
  kubectl delete namespace "kitae-$team" --ignore-not-found
done
kubectl delete namespace kitae kitae-store --ignore-not-found
if [[ $operators == install ]]; then
  helm uninstall kueue -n kueue-system --ignore-not-found --wait
  helm uninstall kuberay-operator -n kuberay-system --ignore-not-found --wait
  kubectl delete namespace kueue-system kuberay-system --ignore-not-found
fi
