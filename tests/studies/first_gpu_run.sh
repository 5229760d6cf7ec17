#!/usr/bin/env bash
# The first run on a card: what was only pretended or counted is measured. Two parts, of at most seven minutes each.
#
#   bash tests/studies/first_gpu_run.sh wheels FOLDER     where there is a network: the wheels that a machine may lack
#   bash tests/studies/first_gpu_run.sh a [options]       methods, the tests marked `gpu`, whole runs, Stable Diffusion's speed
#   bash tests/studies/first_gpu_run.sh b [options]       peaks at real size beside the table, CIFAR-10's speed
#
# Options: --wheels FOLDER (those that are not installed are used from there), --out FOLDER (results), --device cuda, cpu
# or pretended, --size real or tiny, --seconds 420. The last three try the parts without a card:
#
#   bash tests/studies/first_gpu_run.sh a --device pretended --size tiny
#
# Each step has a time limit and writes each finished row to FOLDER/first-gpu-run-CARD.json, and a page beside it; parts
# and further tries are added to the same two files.
set -euo pipefail
cd "$(dirname "$0")/../.."

# What `unlearnbench` imports besides torch, pytest, rich, typer, pandas, safetensors, transformers, scikit-learn, scipy
# and what these bring; 29 MiB, of which torchvision and pillow are half. torchvision has to be the one that fits torch
# 2.11. No step here needs pooch or adjustText, which others' pictures and plots do.
NEEDED=(diffusers torch-fidelity open-clip-torch ftfy wcwidth timm torchvision==0.26.0
  pydantic pydantic-core annotated-types typing-inspection platformdirs importlib-metadata zipp lazy-importer
  lazy-loader pooch adjustText requests urllib3 certifi idna charset-normalizer pillow)

part=${1:?give wheels, a or b}
shift
if [ "$part" = wheels ]; then
  folder=${1:?give a folder for the wheels}
  # pyarrow (47 MiB) writes the parquet files of whole runs, which are left out without it.
  python -m pip download --quiet --no-deps --only-binary=:all: --python-version "${PYTHON_VERSION:-3.12}" \
    --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --dest "$folder" "${NEEDED[@]}" "${@:2}"
  du -sh "$folder"
  exit
fi

words=() wheels=
while [ $# -gt 0 ]; do
  if [ "$1" = --wheels ]; then wheels=$2; shift 2; else words+=("$1"); shift; fi
done
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1
if [ -n "$wheels" ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  # A wheel that is needed and not installed, by its distribution's name.
  mapfile -t missing < <(python - "$wheels" <<'PY'
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

for wheel in sorted(Path(sys.argv[1]).glob("*.whl")):
    try:
        version(wheel.name.split("-")[0])
    except PackageNotFoundError:
        print(wheel)
PY
  )
  if [ ${#missing[@]} -gt 0 ]; then
    python -m pip install --quiet --no-index --no-deps --target "$site" "${missing[@]}"
    export PYTHONPATH=$PYTHONPATH:$site
  fi
fi
python -m tests.studies.first_gpu_run "$part" "${words[@]}"
