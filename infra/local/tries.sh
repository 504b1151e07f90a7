#!/usr/bin/env bash
# Tries on the local cluster what isolates teams and what survives an accident. Each line is right or wrong; exit code 1
# if one is wrong. It stops the store, Kueue and an API pod for moments: not for a cluster that others use.
#
#     infra/local/tries.sh
#
# Run it after up.sh, with the same settings.
set -euo pipefail
# shellcheck source=infra/local/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
check_settings kubectl helm curl
cd "$root"
check_cluster
make_state
findings=0
forward_pid=

report() {
  if [[ $1 == right ]]; then printf 'right: %s\n' "$2"; else
    printf 'wrong: %s\n' "$2"
    findings=$((findings + 1))
  fi
}

# restore: undo what a try has stopped.
restore() {
  [[ -z $forward_pid ]] || kill "$forward_pid" 2>/dev/null || true
  kubectl -n kitae-store scale deployment/seaweedfs --replicas 1 >/dev/null 2>&1 || true
  kubectl -n kueue-system scale deployment -l app.kubernetes.io/name=kueue --replicas 1 >/dev/null 2>&1 || true
}
trap restore EXIT

# refused WHAT REASON MANIFEST: the API server refuses to create the objects, with the reason.
refused() {
  local said
  if said=$(kubectl -n kitae-blue create --dry-run=server -f - <<<"$3" 2>&1); then
    report wrong "$1 is admitted"
  elif [[ $said == *"$2"* ]]; then
    report right "$1 is refused"
  else
    report wrong "$1 is refused for another reason: $(tail -n 1 <<<"$said")"
  fi
}

# seconds_until STATUS SECONDS: seconds until the endpoint answers with the status, at most so many; `never` after them.
seconds_until() {
  local began=$SECONDS
  while ((SECONDS - began < $2)); do
    if [[ $(curl -s -m 30 -o /dev/null -w '%{http_code}' -H @<(echo "Authorization: Bearer $key") \
      "http://127.0.0.1:18000/v1/fine_tuning/jobs") == "$1" ]]; then
      echo $((SECONDS - began))
      return
    fi
    sleep 1
  done
  echo never
}

say 'around the quota'
job=$(helm template tried charts/finetune-job -n kitae-blue -f infra/local/job-values.yaml --set "job.spec.name=tried" \
  --set job.spec.team=blue --set "image.repository=${image%:*}" --set-string "image.tag=${image##*:}" \
  --show-only templates/rayjob.yaml)
refused 'a RayJob without the queue' 'queue-name must be kitae' "${job/queue-name: kitae/queue-name: other}"
refused 'a RayJob with another image' 'image must be of' "${job//image: \"${image%:*}/image: \"other.example/kitae}"
refused 'a RayJob of another team' 'kitae.dev/team must be blue' "${job/kitae.dev\/team: blue/kitae.dev\/team: green}"
# One that Pod Security `restricted` accepts.
refused 'a pod' 'create a RayJob' "{apiVersion: v1, kind: Pod, metadata: {name: tried}, spec: {
  securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}, containers: [
  {name: a, image: '$image', securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}]}}"
refused 'a Job' 'create a RayJob' "$(kubectl -n kitae-blue create job tried --image "$image" --dry-run=client -o yaml)"

say 'credentials'
for component in head api inference; do
  pod=$(kubectl -n kitae get pods -l "app.kubernetes.io/component=$component" -o 'jsonpath={.items[0].metadata.name}')
  if kubectl -n kitae exec "$pod" -c ray -- test -e /var/run/secrets/kubernetes.io/serviceaccount/token 2>/dev/null; then
    report wrong "the Ray container of $pod has a Kubernetes token"
  else
    report right "the Ray container of $pod has no Kubernetes token"
  fi
  [[ $component != api ]] || continue
  if kubectl -n kitae exec "$pod" -c ray -- printenv KITAE_API_KEY >/dev/null 2>&1; then
    report wrong "$pod has the operator's key"
  else
    report right "$pod has no operator's key"
  fi
done

say 'the store'
for team in "${teams[@]}"; do
  if said=$(in_store "kitae-$team" kitae-store check.py --team "$team" 2>&1); then
    report right "the store's credentials of team $team reach what its jobs need and no more"
  else
    report wrong "the store's credentials of team $team: $said"
  fi
done

say 'accidents'
kubectl -n kitae port-forward svc/kitae-serve-svc 18000:8000 >"$state/tries-forward" 2>&1 &
forward_pid=$!
key=$(secret kitae kitae-api-key KITAE_API_KEY)
if [[ $(seconds_until 200 30) == never ]]; then complain 'the endpoint does not answer at /v1/fine_tuning/jobs'; fi
kubectl -n kitae-store scale deployment/seaweedfs --replicas 0 >/dev/null
took=$(seconds_until 503 60)
if [[ $took != never ]]; then report right "503 $took s after the store went away"; else
  report wrong 'no 503 within a minute without the store'
fi
kubectl -n kitae-store scale deployment/seaweedfs --replicas 1 >/dev/null
kubectl -n kitae-store rollout status deployment/seaweedfs --timeout "${patience_s}s" >/dev/null
if [[ $(seconds_until 200 120) == never ]]; then report wrong 'the endpoint does not answer after the store came back'; else
  report right 'the endpoint answers after the store came back'
fi

kubectl -n kueue-system scale deployment -l app.kubernetes.io/name=kueue --replicas 0 >/dev/null
kubectl -n kueue-system wait --for=delete pod -l app.kubernetes.io/name=kueue --timeout 120s >/dev/null
if kubectl -n kitae annotate rayservice kitae kitae.dev/tried="$SECONDS" --overwrite >/dev/null 2>&1; then
  report right 'the endpoint can be changed while Kueue is away'
else
  report wrong 'the endpoint cannot be changed while Kueue is away (managedJobsNamespaceSelector)'
fi
kubectl -n kueue-system scale deployment -l app.kubernetes.io/name=kueue --replicas 1 >/dev/null
kubectl -n kueue-system rollout status deployment -l app.kubernetes.io/name=kueue --timeout "${patience_s}s" >/dev/null

options=(-n kitae-blue -f infra/local/job-values.yaml --set job.spec.name=tried --set job.spec.team=blue
  --set "image.repository=${image%:*}" --set-string "image.tag=${image##*:}")
helm install tried charts/finetune-job "${options[@]}" >/dev/null
sleep 60 # the endpoint reads releases every 15 s
# The policy refuses this revision.
helm upgrade tried charts/finetune-job "${options[@]}" --set queue=other >/dev/null 2>&1 || true
helm uninstall tried -n kitae-blue --wait >/dev/null
left=x
for ((waited_s = 0; waited_s < 120 && ${#left} > 0; waited_s += 5)); do
  left=$(kubectl -n kitae-blue get rayjobs,configmaps,workloads -l app.kubernetes.io/instance=tried -o name)
  if [[ -n $left ]]; then sleep 5; fi
done
if [[ -z $left ]]; then report right 'helm uninstall after a failed helm upgrade leaves nothing'; else
  report wrong "helm uninstall after a failed helm upgrade leaves $(tr '\n' ' ' <<<"$left")"
fi

if ((findings > 0)); then
  printf '\n%d finding(s)\n' "$findings"
  exit 1
fi
say 'all tries are right'
