#!/usr/bin/env bash
# Slurm, from the repository's root, accelerate on PATH: sbatch launch/slurm.sh RECIPE train.run_dir=DIR ...
# LAUNCH=launch/multi_node_zero2.yaml before it chooses another launch file; DIR is one that all nodes share.
# IMAGE=cssr.sqsh before it runs the Dockerfile's image on the nodes (Slurm's plugin pyxis), with MOUNTS=/data:/data,...
# beside this directory. Edit:
#SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=4 --cpus-per-task=32 --time=24:00:00
# Three minutes before the time is up training writes a checkpoint and ends; the job queues again until all is done.
#SBATCH --signal=B:USR1@180 --requeue --open-mode=append
cd "${SLURM_SUBMIT_DIR:?is set by sbatch}" || exit
run_dir=$(printf '%s\n' "$@" | sed -n 's/^train\.run_dir=//p' | tail -n 1)
export CSSR_WORLD_SIZE=$((SLURM_JOB_NUM_NODES * ${SLURM_GPUS_ON_NODE:-1})) TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150
set -- --config_file "${LAUNCH:-launch/multi_node.yaml}" --num_machines "$SLURM_JOB_NUM_NODES" \
  --num_processes "$CSSR_WORLD_SIZE" --main_process_port $((10000 + SLURM_JOB_ID % 20000)) \
  --main_process_ip "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)" -m cssr.train "$@"
image=(${IMAGE:+"--container-image=$IMAGE" "--container-workdir=$PWD" "--container-mounts=$PWD:$PWD${MOUNTS:+,$MOUNTS}"})
srun "${image[@]}" --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 bash -c '
  (trap "" USR1; exec accelerate launch --machine_rank "$SLURM_NODEID" "$@") & # deaf to what is meant for its children
  trap "pkill -USR1 -P $!" USR1 TERM
  while wait $!; kill -0 $! 2>/dev/null; do :; done; wait $!; exit $?' task "$@" &
trap 'kill -USR1 $!' TERM; trap 'warned=yes; kill -USR1 $!' USR1 # TERM: somebody wants it to end
while wait $!; kill -0 $! 2>/dev/null; do :; done # a signal ends a wait
wait $!; status=$?
[ -z "${warned:-}" ] || tail -n 1 "$run_dir/log.txt" | grep -q ' finished: ' || scontrol requeue "$SLURM_JOB_ID"
exit "$status"
