#!/usr/bin/env bash
# Evaluate runs or exports on one shard set and report them side by side.
# Usage: launch/evaluate.sh SHARDS OUT RUN [RUN ...]      (EVALUATE_ARGS="--distances --tile 256" adds options,
#        LAUNCH_ARGS="--config_file launch/multi_gpu.yaml" chooses the launch file)
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,5p' "$0" >&2; exit 2; }
shards=$1 out=$2; shift 2
here=$(cd "$(dirname "$0")/.." && pwd)
results=()
for run in "$@"; do
  name=$(basename "$run")
  accelerate launch --quiet ${LAUNCH_ARGS:---config_file "$here/launch/cpu.yaml"} "$here/cssr/evaluate.py" "$run" \
    --data "$shards" --out "$out/$name" --name "$name" ${EVALUATE_ARGS:-}
  results+=("$out/$name")
done
python -m cssr.report "${results[@]}" --out "$out/report"
