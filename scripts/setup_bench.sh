#!/usr/bin/env bash
# Adds to .venv the libraries that benchmarks/optional_peers.py measures against.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
# Four of them ask for torchvision, and none needs it here. Its wheel does not import next to a CPU build of torch, and
# where it is found, libraries that make use of it fail with it.
.venv/bin/python -m pip uninstall --quiet --yes --disable-pip-version-check torchvision torchaudio
