# shellcheck shell=bash
# shellcheck disable=SC2034  # some of it only one of them uses
# What up.sh, demo.sh and down.sh share: settings from the environment, and what is the matter with them. Sourced.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# kind: make a cluster of its own. existing: the one that kubectl reaches now.
cluster=${KITAE_LOCAL_CLUSTER:-kind}
cluster_name=${KITAE_LOCAL_NAME:-kitae}
# Of every pod, the store's too. Built or pulled beforehand.
image=${KITAE_LOCAL_IMAGE:-kitae:0.1.0-cpu}
# A directory with *.tar files of images, to load into kind. For operators' images without the internet.
archives=${KITAE_LOCAL_ARCHIVES:-}
# A directory with kuberay-operator-1.7.0.tgz and kueue-0.19.2.tgz. Empty: they are fetched.
charts=${KITAE_LOCAL_CHARTS:-}
# A values file for charts/kitae that goes before infra/local/values.yaml.
more_values=${KITAE_LOCAL_VALUES:-}
# install, or present: they are there already.
operators=${KITAE_LOCAL_OPERATORS:-install}
# How many fake GPUs the node gets; 0: none.
fake_gpus=${KITAE_LOCAL_FAKE_GPUS:-$([[ $cluster == kind ]] && echo 4 || echo 0)}
# Seconds to wait for each thing to become ready.
patience_s=${KITAE_LOCAL_PATIENCE_S:-1200}

kuberay_version=1.7.0
kueue_version=0.19.2
teams=(blue green)
# Where they keep the kubeconfig of kind and what goes between them.
state=${KITAE_LOCAL_STATE:-$root/.kitae/cluster}

say() {
  printf '\n== %s\n' "$*"
}

# complain LINE…: all of them, then the end.
complain() {
  printf 'error: %d thing(s) are missing or wrong\n' "$#" >&2
  printf '  - %s\n' "$@" >&2
  exit 2
}

# check_settings TOOL…: the tools are there and the settings make sense; everything that is not, at once.
check_settings() {
  local problems=() tool
  [[ $cluster == kind || $cluster == existing ]] ||
    problems+=("KITAE_LOCAL_CLUSTER is '$cluster': set it to kind or existing")
  [[ $operators == install || $operators == present ]] ||
    problems+=("KITAE_LOCAL_OPERATORS is '$operators': set it to install or present")
  [[ $image == *:* && ${image##*:} != */* && ${image##*:} != latest ]] ||
    problems+=("KITAE_LOCAL_IMAGE is '$image': give a name with a tag that is not latest, such as kitae:0.1.0-cpu")
  [[ $fake_gpus =~ ^[0-9]+$ ]] || problems+=("KITAE_LOCAL_FAKE_GPUS is '$fake_gpus': give a number")
  [[ $patience_s =~ ^[0-9]+$ ]] || problems+=("KITAE_LOCAL_PATIENCE_S is '$patience_s': give seconds")
  [[ -z $archives || -d $archives ]] || problems+=("KITAE_LOCAL_ARCHIVES: there is no directory $archives")
  [[ -z $more_values || -f $more_values ]] || problems+=("KITAE_LOCAL_VALUES: there is no file $more_values")
  if [[ -n $charts && $operators == install ]]; then
    for tool in "kuberay-operator-$kuberay_version.tgz" "kueue-$kueue_version.tgz"; do
      [[ -f $charts/$tool ]] || problems+=("KITAE_LOCAL_CHARTS: there is no $charts/$tool (helm pull brings it)")
    done
  fi
  [[ $cluster != kind ]] || set -- "$@" kind docker
  for tool in "$@"; do
    command -v "$tool" >/dev/null || problems+=("$tool is not in PATH: $(where_from "$tool")")
  done
  if ((${#problems[@]})); then complain "${problems[@]}"; fi
  # A kubeconfig of its own, so that nobody's is changed.
  if [[ $cluster == kind ]]; then export KUBECONFIG=$state/kubeconfig; fi
}

where_from() {
  case $1 in
    kubectl) echo 'https://kubernetes.io/docs/tasks/tools/' ;;
    helm) echo 'https://helm.sh/docs/intro/install/ (3 or 4)' ;;
    kind) echo 'https://kind.sigs.k8s.io/ (or KITAE_LOCAL_CLUSTER=existing, for a cluster that you have)' ;;
    docker) echo 'kind runs its node in it (or KITAE_LOCAL_CLUSTER=existing)' ;;
    *) echo 'install it with the packages of your system' ;;
  esac
}

# The cluster answers, or the end.
check_cluster() {
  kubectl version >/dev/null 2>&1 ||
    complain "the cluster does not answer: $([[ $cluster == kind ]] && echo 'run infra/local/up.sh' || echo 'set KUBECONFIG, or choose a context with kubectl config use-context NAME')"
}

# make_state: the directory for what the scripts keep, which only its owner reads.
make_state() {
  mkdir -p "$state"
  chmod 700 "$state"
}

# random BYTES: as hexadecimal digits.
random() {
  od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'
}

# secret NAMESPACE NAME KEY: its value.
secret() {
  kubectl -n "$1" get secret "$2" -o "jsonpath={.data.$3}" | base64 -d
}
