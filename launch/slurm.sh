#!/usr/bin/env bash
# Trains on GPU nodes under Slurm, one process per GPU. Not run.
#
#   sbatch launch/slurm.sh WORKDIR configs/v3_vitl16.py [--config.KEY=VALUE ...]
#
# The environment with dino_jax ('.[cuda]') must be active; the workdir must be on a file system that all nodes share.
#SBATCH --job-name=dino_jax
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
# Five minutes before the time limit, and before a more urgent job takes the nodes, SIGTERM makes the run save and stop.
# A job that was stopped before the end of the run is queued again and continues; so is one that failed, if it has saved
# a checkpoint since it started.
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

workdir=${1:?folder of the run} recipe=${2:?recipe}
shift 2
# JAX reads the rest (coordinator, process number, local GPU) from Slurm's variables.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # which srun no longer takes from the job
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$workdir/compiled}  # a restart need not compile again
export DINO_JAX_DISTRIBUTED=1

newest() { ls "$workdir/checkpoints" 2> /dev/null | grep -x '[0-9]*' | sort -n | tail -1; }
before=$(newest || true) code=0
srun --label --kill-on-bad-exit=1 python -m dino_jax.main --workdir "$workdir" --config "$recipe" "$@" || code=$?
if [ ! -e "$workdir/results.json" ]; then  # written at the end
  if [ "$code" = 0 ] || [ "$(newest || true)" != "$before" ]; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$code"
