#!/usr/bin/env bash
# Adds a number of fake GPUs (`nvidia.com/gpu`) to each node with the label kitae.dev/fake-gpus.
#
#     infra/local/fake-gpus.sh 4
#
# The scheduler and Kueue count them like real GPUs, but no device exists: a job that requests one is queued and admitted,
# and fails when it looks for CUDA. Never use this on a cluster with real GPUs.
set -euo pipefail

count=${1:?give the number of GPUs: infra/local/fake-gpus.sh 4}
nodes=$(kubectl get nodes -l kitae.dev/fake-gpus -o name)
if [[ -z $nodes ]]; then
  echo 'error: no node has the label kitae.dev/fake-gpus: kubectl label node NAME kitae.dev/fake-gpus=true' >&2
  exit 1
fi
for node in $nodes; do
  kubectl patch "$node" --subresource=status --type=json \
    --patch "[{\"op\": \"add\", \"path\": \"/status/capacity/nvidia.com~1gpu\", \"value\": \"$count\"}]"
done
