#!/bin/bash
# Several machines under SLURM, e.g. 2 x 8 GPUs:
#   sbatch --nodes 2 examples/training/slurm.sh finetune --data mine --model Sa2VA-8B --out runs/mine
#   sbatch --nodes 4 examples/training/slurm.sh sa2va-internvl3-8b --data data deepspeed=examples/training/zero2.json
# The folder of the run must be on a disk that all machines share. The job goes on from its last checkpoint when it is
# requeued after a time limit or a failure.
#SBATCH --job-name=sa2va
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
PORT=$((20000 + SLURM_JOB_ID % 20000))
export OMP_NUM_THREADS=1

exec srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" \
    --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$HEAD:$PORT" \
    -m sa2va.cli train "$@"
