#!/usr/bin/env bash
# Gives each node with the label kitae.dev/fake-gpus a number of GPUs that are not there (`nvidia.com/gpu`).
#
#     infra/local/fake-gpus.sh 4
#
# The scheduler and Kueue count them like real ones. What runs there finds no device: a job that asks for one is queued,
# admitted and started, and then fails when it looks for CUDA. Never on a cluster with real GPUs.
set -euo pipefail

count=${1:?how many: infra/local/fake-gpus.sh 4}
nodes=$(kubectl get nodes -l kitae.dev/fake-gpus -o name)
if [[ -z $nodes ]]; then
  echo 'error: no node has the label kitae.dev/fake-gpus: kubectl label node NAME kitae.dev/fake-gpus=true' >&2
  exit 1
fi
for node in $nodes; do
  kubectl patch "$node" --subresource=status --type=json \
    --patch "[{\"op\": \"add\", \"path\": \"/status/capacity/nvidia.com~1gpu\", \"value\": \"$count\"}]"
done
