#!/bin/sh
# Everything that a turn on a GPU needs, in under nine minutes; see benchmarks/gpu.py.
#   benchmarks/gpu.sh [--dry-run] [--out DIR] [--only STAGE ...]
cd "$(dirname "$0")/.." || exit 1
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python}" benchmarks/gpu.py "$@"
