#!/usr/bin/env bash
# The main job from end to end, as a user types it: photographs -> data set -> dictionary -> version -> picture.
# Two Ray workers learn through a Prefect flow; everything lands in ./demo and every process is ended again.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
export SPARSEFLEET_HOME="$PWD/demo/home"
mkdir -p demo

say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }
trap 'sparsefleet down >/dev/null 2>&1 || true' EXIT

say sparsefleet up
say sparsefleet ingest images sklearn:photos --patch 12 --rows 30000 --out demo/patches.zarr --overwrite
say sparsefleet learn --data demo/patches.zarr --model bsc --atoms 100 --passes 50 \
  --engine ray --workers 2 --store demo/artifacts --name photographs
say sparsefleet artifacts show photographs --store demo/artifacts
say sparsefleet artifacts export photographs --store demo/artifacts --format folder --out demo/photographs --overwrite

cat <<TXT

The atoms are in demo/photographs/atoms.png, the course of learning beside it.
The run's page is kept: start the UI again with
  SPARSEFLEET_HOME=demo/home .venv/bin/sparsefleet up
Try next
  .venv/bin/sparsefleet encode --data demo/patches.zarr --dictionary photographs --store demo/artifacts --out demo/codes.zarr
  .venv/bin/sparsefleet learn --data demo/patches.zarr --model topk --atoms 256 --set model.k=8 --passes 60 --engine mpi --workers 2 --store demo/artifacts --name photographs-sae
  .venv/bin/sparsefleet artifacts list --store demo/artifacts
TXT
