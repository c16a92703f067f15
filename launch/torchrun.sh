#!/usr/bin/env bash
# DDP without accelerate's launcher, restarted up to three times: launch/torchrun.sh RECIPE train.run_dir=DIR ...
# On several machines, or in the pods of an indexed Kubernetes Job (which sets JOB_COMPLETION_INDEX), set on each
#   MACHINES=2 MACHINE=0 (0, 1, ...: where Kubernetes does not say it) MAIN=ADDRESS_OF_MACHINE_0
# PROCESSES (a machine; all its GPUs, or one), PRECISION (bf16) and PORT (29500) may be set too.
set -euo pipefail
: "${MACHINES:=1}" "${MACHINE:=${JOB_COMPLETION_INDEX:-0}}" "${PRECISION:=bf16}"
: "${PROCESSES:=$(python -c 'import torch; print(max(torch.accelerator.device_count(), 1))')}"
export ACCELERATE_MIXED_PRECISION=$PRECISION CSSR_WORLD_SIZE=$((MACHINES * PROCESSES))
place=(--standalone)
if [ "$MACHINES" -gt 1 ]; then
  place=(--nnodes "$MACHINES" --node_rank "$MACHINE" --master_addr "${MAIN:?is not set}" --master_port "${PORT:-29500}")
fi
exec torchrun "${place[@]}" --nproc_per_node "$PROCESSES" --max_restarts 3 -m cssr.train "$@"
