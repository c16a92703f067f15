#!/usr/bin/env bash
# Cracks in sample photographs by the package's model; then the whole pipeline in minutes: shards, a small CSSR beside
# the same networks trained independently, evaluation, pictures, report.
# Usage: launch/demo.sh OUT [FOLDER with images/ and masks/]
set -euo pipefail
out=${1:?usage: launch/demo.sh OUT [FOLDER]} data=${2:-}
here=$(cd "$(dirname "$0")/.." && pwd)
began=$(date +%s)
say() { printf '\n== %s (%s s)\n' "$1" "$(($(date +%s) - began))"; }
launch() { accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no "$@"; }
train() { launch "$here/cssr/train.py" "$here/configs/demo.yaml" data.train="$out/shards/train" data.val="$out/shards/val" "$@"; }
mkdir -p "$out"

say "1/6 cracks in sample photographs, by the model in the package (small-x4)"
python -m cssr.predict "$here/docs/samples" --out "$out/first" --measure --least-length 10

say "2/6 shards: ${data:-drawn cracks}"
if [ ! -f "$out/shards/train/index.json" ]; then
  if [ -n "$data" ]; then
    python "$here/shards/make_shards.py" folder --root "$data" --out "$out/shards" --ratio train=0.8 val=0.2
  else
    python "$here/shards/make_shards.py" synthetic --out "$out/shards" --count 480 --size 256 --ratio train=0.85 val=0.15
  fi
fi

say "3/6 training: CSSR, super-resolution and segmentation together"
train train.run_dir="$out/cssr"
say "4/6 training: the same networks independently, super-resolution first, then segmentation"
# as many steps: 2,000 of the 4,000 crops for each network
train train.run_dir="$out/independent" \
  "phases=[{name: sr, until: 2000, beta: 0, lr: {seg: 0}}, {name: seg, beta: 1, lr: {sr: 0}}]"

say "5/6 evaluation on held-out images"
for run in cssr independent; do
  launch "$here/cssr/evaluate.py" "$out/$run" --data "$out/shards/val" --distances --tile 256
done

say "6/6 prediction and report"
python "$here/shards/extract.py" "$out/shards/val" --reduce 4 --count 4 --out "$out/photographs"
python -m cssr.predict "$out/cssr" "$out/photographs" --out "$out/predictions"
python -m cssr.report "$out/cssr" "$out/independent" --out "$out/report" --title "CSSR beside the same networks trained independently"
say "done"
printf 'cracks in samples  %s\ntable and curves  %s\nside by side      %s\npredictions       %s\nsamples while training  %s\n' \
  "$out/first" "$out/report/report.html" "$out/report/pictures" "$out/predictions" "$out/cssr/samples"
