# shellcheck shell=bash
# shellcheck disable=SC2034  # each script uses some of the variables
# Settings of up.sh, demo.sh, tries.sh and down.sh, from the environment, and their checks. Sourced, not run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# kind: create a cluster. existing: use the cluster of the current kubectl context.
cluster=${KITAE_LOCAL_CLUSTER:-kind}
cluster_name=${KITAE_LOCAL_NAME:-kitae}
# Image of every pod, including the store's. Built or pulled beforehand.
image=${KITAE_LOCAL_IMAGE:-kitae:0.2.0-cpu}
# Directory with *.tar files of images to load into kind, for use without internet access.
archives=${KITAE_LOCAL_ARCHIVES:-}
# Directory with kuberay-operator-1.7.0.tgz and kueue-0.19.2.tgz. Empty: download them.
charts=${KITAE_LOCAL_CHARTS:-}
# Values file for charts/kitae, applied before infra/local/values.yaml.
more_values=${KITAE_LOCAL_VALUES:-}
# install the operators, or present: use those in the cluster.
operators=${KITAE_LOCAL_OPERATORS:-install}
# Number of fake GPUs on the node; 0: none.
fake_gpus=${KITAE_LOCAL_FAKE_GPUS:-$([[ $cluster == kind ]] && echo 4 || echo 0)}
# Seconds to wait for each component to become ready.
patience_s=${KITAE_LOCAL_PATIENCE_S:-1200}

kuberay_version=1.7.0
kueue_version=0.19.2
teams=(blue green)
# `pretend` has the fake GPUs.
store_teams=("${teams[@]}" pretend)
# As in values.yaml and job-values.yaml.
store_uri=s3://kitae
# Directory for kind's kubeconfig and temporary files.
state=${KITAE_LOCAL_STATE:-$root/.kitae/cluster}

say() {
  printf '\n== %s\n' "$*"
}

# complain LINE…: print all lines and exit 2.
complain() {
  printf 'error: %d thing(s) are missing or wrong\n' "$#" >&2
  printf '  - %s\n' "$@" >&2
  exit 2
}

# check_settings TOOL…: check the tools and the settings; report all findings at once.
check_settings() {
  local problems=() tool
  [[ $cluster == kind || $cluster == existing ]] ||
    problems+=("KITAE_LOCAL_CLUSTER is '$cluster': set it to kind or existing")
  [[ $operators == install || $operators == present ]] ||
    problems+=("KITAE_LOCAL_OPERATORS is '$operators': set it to install or present")
  [[ $image == *:* && ${image##*:} != */* && ${image##*:} != latest ]] ||
    problems+=("KITAE_LOCAL_IMAGE is '$image': give a name with a tag that is not latest, such as kitae:0.2.0-cpu")
  [[ $fake_gpus =~ ^[0-9]+$ ]] || problems+=("KITAE_LOCAL_FAKE_GPUS is '$fake_gpus': give a number")
  [[ $patience_s =~ ^[0-9]+$ ]] || problems+=("KITAE_LOCAL_PATIENCE_S is '$patience_s': give seconds")
  [[ -z $archives || -d $archives ]] || problems+=("KITAE_LOCAL_ARCHIVES: no such directory: $archives")
  [[ -z $more_values || -f $more_values ]] || problems+=("KITAE_LOCAL_VALUES: no such file: $more_values")
  if [[ -n $charts && $operators == install ]]; then
    for tool in "kuberay-operator-$kuberay_version.tgz" "kueue-$kueue_version.tgz"; do
      [[ -f $charts/$tool ]] || problems+=("KITAE_LOCAL_CHARTS: $charts/$tool does not exist (download it with helm pull)")
    done
  fi
  [[ $cluster != kind ]] || set -- "$@" kind docker
  for tool in "$@"; do
    command -v "$tool" >/dev/null || problems+=("$tool is not in PATH: $(where_from "$tool")")
  done
  if ((${#problems[@]})); then complain "${problems[@]}"; fi
  # A separate kubeconfig, so that the user's stays unchanged.
  if [[ $cluster == kind ]]; then export KUBECONFIG=$state/kubeconfig; fi
}

where_from() {
  case $1 in
    kubectl) echo 'https://kubernetes.io/docs/tasks/tools/' ;;
    helm) echo 'https://helm.sh/docs/intro/install/ (3 or 4)' ;;
    kind) echo 'https://kind.sigs.k8s.io/ (or KITAE_LOCAL_CLUSTER=existing, to use an existing cluster)' ;;
    docker) echo 'kind runs its node in docker (or KITAE_LOCAL_CLUSTER=existing)' ;;
    *) echo 'install it with the package manager of your system' ;;
  esac
}

# check_cluster: exit 2 if the cluster does not respond.
check_cluster() {
  kubectl version >/dev/null 2>&1 ||
    complain "the cluster does not respond: $([[ $cluster == kind ]] && echo 'run infra/local/up.sh' || echo 'set KUBECONFIG, or choose a context with kubectl config use-context NAME')"
}

# make_state: create the state directory, readable by its owner only.
make_state() {
  mkdir -p "$state"
  chmod 700 "$state"
}

# random BYTES: random bytes as hexadecimal digits.
random() {
  od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'
}

# secret NAMESPACE NAME KEY: print the value of a Secret's key.
secret() {
  kubectl -n "$1" get secret "$2" -o "jsonpath={.data.$3}" | base64 -d
}

# Arguments: the store's URI, a script and its arguments. Stdin: key id, key, and an archive with the script.
# shellcheck disable=SC2016  # expanded in the pod
in_store_pod='
read -r AWS_ACCESS_KEY_ID && read -r AWS_SECRET_ACCESS_KEY && place=$(mktemp -d) && tar -xf - -C "$place" || exit
export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY KITAE_STORE="$1" AWS_ENDPOINT_URL=http://127.0.0.1:8333
script=$place/$2
shift 2
python "$script" "$@"
status=$?
rm -rf "$place"
exit $status'

# in_store NAMESPACE SECRET SCRIPT [ARGUMENT…]: run a script of infra/object-store in the store's pod, which has Kitae's
# image, with the credentials of a Secret. They go through stdin: other users of this machine can read command lines.
in_store() {
  local id key
  id=$(secret "$1" "$2" AWS_ACCESS_KEY_ID)
  key=$(secret "$1" "$2" AWS_SECRET_ACCESS_KEY)
  shift 2
  { printf '%s\n%s\n' "$id" "$key" && tar -cf - -C "$root/infra/object-store" .; } |
    kubectl -n kitae-store exec -i deploy/seaweedfs -- sh -c "$in_store_pod" sh "$store_uri" "$@"
}
