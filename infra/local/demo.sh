#!/usr/bin/env bash
# Two teams submit a job each, with quota for one job: they run in turn, and both models answer.
#
#     infra/local/demo.sh
#
# Run it after up.sh, with the same settings. Needs this directory's environment (`make setup`).
set -euo pipefail
# shellcheck source=infra/local/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
check_settings kubectl helm curl
cd "$root"
python=$root/.venv/bin/python
[[ -x $python ]] || complain "$python does not exist: run make setup"
check_cluster
make_state
every_s=${KITAE_LOCAL_EVERY_S:-15}

forwards=()
end_forwards() {
  local pid
  for pid in "${forwards[@]}"; do kill "$pid" 2>/dev/null || true; done
}
trap end_forwards EXIT

# forward NAMESPACE SERVICE PORT: forward a free port of 127.0.0.1 to the service, and set `port` to it.
forward() {
  local log=$state/forward-$2 tries
  kubectl -n "$1" port-forward "svc/$2" ":$3" >"$log" 2>&1 &
  forwards+=($!)
  for ((tries = 0; tries < 60; tries++)); do
    port=$(sed -n 's/^Forwarding from 127.0.0.1:\([0-9]*\).*/\1/p' "$log")
    [[ -z $port ]] || return 0
    sleep 0.5
  done
  complain "cannot forward a port to $2 in namespace $1: $(tail -n 1 "$log")"
}

# job_status TEAM: `NAME STATUS` of the team's RayJob; empty if it does not exist.
job_status() {
  kubectl -n "kitae-$1" get rayjobs -l "app.kubernetes.io/instance=faq-$1" \
    -o 'jsonpath={range .items[*]}{.metadata.name} {.status.jobDeploymentStatus}{"\n"}{end}' | head -n 1
}

# holding: the demo's teams that hold quota now.
holding() {
  local team
  for team in "${teams[@]}"; do
    kubectl -n "kitae-$team" get workloads -o \
      'jsonpath={range .items[*]}{.status.conditions[?(@.type=="Admitted")].status}/{.status.conditions[?(@.type=="Finished")].status}{"\n"}{end}' |
      grep -x 'True/' >/dev/null && echo "$team"
  done
  return 0
}

say 'copying model and rows into the store'
forward kitae-store seaweedfs 8333
export KITAE_STORE=$store_uri AWS_ENDPOINT_URL=http://127.0.0.1:$port
AWS_ACCESS_KEY_ID=$(secret kitae-store seaweedfs AWS_ACCESS_KEY_ID)
AWS_SECRET_ACCESS_KEY=$(secret kitae-store seaweedfs AWS_SECRET_ACCESS_KEY)
export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
"$python" infra/object-store/check.py
"$python" -m examples.assets chat

say 'what a team may not write in SeaweedFS: the base in the catalogue, and the owners of names'
# The engine of the base, which both teams share, is as small as their jobs.
"$python" -m ray_jobs bases add .kitae/assets/smollm2-135m-instruct --max-model-len 1024
for team in "${teams[@]}"; do "$python" -m ray_jobs models claim "faq-$team" --team "$team"; done

say 'submitting a job for each team'
for team in "${teams[@]}"; do
  sed "s/TEAM/$team/" infra/local/job.yaml >"$state/job-$team.yaml"
  # Uninstall first, so that the job runs again; finished stages are skipped.
  helm uninstall "faq-$team" -n "kitae-$team" --ignore-not-found --wait
  helm install "faq-$team" charts/finetune-job -n "kitae-$team" --set-file "job.spec=$state/job-$team.yaml" \
    -f infra/local/job-values.yaml --set "image.repository=${image%:*}" --set-string "image.tag=${image##*:}"
done

say 'the jobs run in turn'
declare -A seen=() over=()
order=()
together=no
while ((${#over[@]} < ${#teams[@]})); do
  sleep "$every_s"
  for team in "${teams[@]}"; do
    [[ -z ${over[$team]:-} ]] || continue
    read -r name status <<<"$(job_status "$team")" || true
    if [[ -n ${name:-} ]]; then seen[$team]=$name; fi
    case ${status:-} in
      Complete) over[$team]=Complete ;;
      Failed | ValidationFailed) over[$team]=Failed ;;
      '') if [[ -n ${seen[$team]:-} && -z ${name:-} ]]; then over[$team]=gone; fi ;;
    esac
    name='' status=''
  done
  mapfile -t now < <(holding)
  if ((${#now[@]} > 1)); then together=yes; fi
  for team in "${now[@]}"; do
    [[ " ${order[*]:-} " == *" $team "* ]] || order+=("$team")
  done
  printf '\n%s  holds quota: %s\n' "$(date +%H:%M:%S)" "${now[*]:-no team}"
  "$python" -m ray_jobs quota show
done
for team in "${teams[@]}"; do
  echo "faq-$team: ${over[$team]}"
done
echo "order: ${order[*]:-not seen}; at the same time: $together"

say 'asking both models'
forward kitae kitae-serve-svc 8000
key=$(secret kitae kitae-api-key KITAE_API_KEY)
failed=no
for team in "${teams[@]}"; do
  answered=no
  for ((waited_s = 0; waited_s < patience_s; waited_s += 10)); do
    # Pass the key in a file: other users of this machine can read command lines.
    if curl -sf "http://127.0.0.1:$port/v1/chat/completions" -H 'Content-Type: application/json' \
      -H @<(echo "Authorization: Bearer $key") \
      -d "{\"model\": \"faq-$team\", \"max_tokens\": 40, \"messages\": [{\"role\": \"user\", \"content\": \"How do I reset my password?\"}]}"; then
      answered=yes
      echo
      break
    fi
    sleep 10
  done
  if [[ $answered == no ]]; then
    echo "faq-$team does not answer after $patience_s s: kitae status, kubectl -n kitae get pods" >&2
    failed=yes
  fi
done
if [[ $failed == yes || $together == yes || " ${over[*]} " == *' Failed '* ]]; then exit 1; fi
say 'two jobs ran in turn, and both models answered'
