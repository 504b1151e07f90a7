#!/usr/bin/env bash
# Checks that the CPU image meets a pod's requirements and runs the demo's job. Exit code 1 if any check fails.
#
#     infra/image/check.sh                                # kitae:0.2.0-cpu
#     infra/image/check.sh registry.example/kitae:0.2.0-cpu
#
# Uses the first of docker, podman and buildah, or BUILDER. Model and rows come from .kitae/assets
# (`python -m examples.assets chat`) if it exists, otherwise from the package registries.
set -euo pipefail

image=${1:-kitae:0.2.0-cpu}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

complain() {
  echo "error: $1" >&2
  exit 2
}

builder=${BUILDER:-}
for each in docker podman buildah; do
  [[ -n $builder ]] || ! command -v "$each" >/dev/null || builder=$each
done
[[ -n $builder ]] || complain 'none of docker, podman and buildah is in PATH: install one'

work=$(mktemp -d)
container=
clean_up() {
  [[ -z $container ]] || buildah rm "$container" >/dev/null
  rm -rf "$work"
}
trap clean_up EXIT
mkdir "$work/checkout" "$work/assets"
cp -r "$root/examples" "$work/checkout/"
cp "$root/infra/image/in-image.sh" "$work/"
[[ ! -d $root/.kitae/assets ]] || cp -r "$root/.kitae/assets/." "$work/assets/"
chmod -R a+rwX "$work" # the image runs as another user

# Like the charts' pods: not root, and only mounts are writable.
case $builder in
  docker | podman)
    "$builder" image inspect "$image" >/dev/null 2>&1 || complain "image $image does not exist: run make image"
    "$builder" run --rm --read-only --cap-drop ALL --security-opt no-new-privileges --shm-size 2g \
      --tmpfs /tmp:exec,mode=1777 --tmpfs /home/kitae:exec,mode=1777 -v "$work:/check" "$image" bash /check/in-image.sh
    ;;
  buildah)
    container=$(buildah from --pull-never "$image") || complain "image $image does not exist: run make image BUILDER=buildah"
    buildah run --cap-drop all -v "$work:/check" "$container" -- bash /check/in-image.sh
    ;;
  *) complain "BUILDER is $builder: set it to docker, podman or buildah" ;;
esac
