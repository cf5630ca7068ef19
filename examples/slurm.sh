#!/bin/bash
# Four machines with eight GPUs each, one run. Submit with: sbatch examples/slurm.sh m6-small
# RUNS must be a folder that all machines see. Not measured: written for a cluster that the project does not have.
#SBATCH --job-name=openm6
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

RECIPE=${1:?usage: sbatch examples/slurm.sh RECIPE [SETTING=VALUE ...]}
RUNS=${RUNS:-$SLURM_SUBMIT_DIR/runs}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# A requeued job goes on from the last commit, as does a job that lost a process (up to ten times).
srun torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node 8 \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:29500" \
  --max-restarts 10 \
  -m openm6 train "$RECIPE" "${@:2}" --out "$RUNS/$(basename "$RECIPE" .yaml)"
