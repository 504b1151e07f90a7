#!/usr/bin/env bash
# The part of check.sh that runs in the image. Examples and assets are mounted at /check.
set -euo pipefail

findings=0
right() { echo "right: $1"; }
finding() {
  echo "wrong: $1"
  findings=$((findings + 1))
}

if [[ $(id -u):$(id -g) == 1000:1000 ]]; then
  right 'it runs as user and group 1000'
else
  finding "it runs as $(id -u):$(id -g), not as 1000:1000: USER is missing, or the runtime overrides it"
fi
for command in bash python ray wget kitae; do
  if command -v "$command" >/dev/null; then
    right "$command is in PATH"
  else
    finding "$command is not in PATH: KubeRay or the charts start it"
  fi
done
for command in cc gcc g++ make; do
  if command -v "$command" >/dev/null; then finding "$command is in the image: only the build stages need it"; fi
done
for directory in /opt/kitae /usr /etc; do
  if [[ -w $directory ]]; then finding "$directory is writable"; fi
done
if python -c 'import json; assert len(json.load(open("/opt/kitae-sbom.cdx.json"))["components"]) > 100' 2>/dev/null; then
  right 'the bill of materials exists'
else
  finding 'the bill of materials /opt/kitae-sbom.cdx.json is missing or incomplete'
fi

cd /check/checkout
mkdir -m 700 .kitae
ln -s /check/assets .kitae/assets
python -m examples.demo || finding 'the demo failed'
kitae local down
if ((findings > 0)); then exit 1; fi
right 'the demo ran'
