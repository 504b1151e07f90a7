#!/usr/bin/env bash
# Takes away what up.sh made.
#
#     infra/local/down.sh                                            # kind: the whole cluster
#     KITAE_LOCAL_CLUSTER=existing infra/local/down.sh               # jobs and charts/kitae; the store and its data stay
#     KITAE_LOCAL_CLUSTER=existing infra/local/down.sh --everything  # the store, all namespaces and the operators, too
set -euo pipefail
# shellcheck source=infra/local/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
[[ -z ${1:-} || $1 == --everything ]] || complain "'$1' is no option: infra/local/down.sh [--everything]"
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
  echo 'the store (namespace kitae-store), the namespaces of the teams and the operators stay; --everything takes them, too'
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
