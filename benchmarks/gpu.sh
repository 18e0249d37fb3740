#!/usr/bin/env bash
# Everything that needs a GPU, in one command: the tests, the gradient table, and the training step beside PyTorch and
# JAX. Takes about ten minutes; results go to benchmarks/results/gpu-<device>.md and .json.
#
#     benchmarks/gpu.sh                    PYTHON=/path/to/python benchmarks/gpu.sh for another Python than python3
#     benchmarks/gpu.sh --only tests       all options: benchmarks/gpu.sh --help
#
# It needs a driver and "pip install -r requirements.txt 'cupy-cuda13x[ctk]'" (or cupy-cuda12x[ctk]). PyTorch and JAX
# are optional: what is missing is left out of the table, with the line that installs it.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
