#!/bin/bash
# A sweep whose jobs are jobs of SLURM, from the login node; repeat the command to resume SWEEP_DIR:
#
#     scripts/slurm/sweep.sh SWEEP_DIR model=v8,transformer seed=1,2,3 data=text data.path=/shared/my.txt
#
# It waits for all jobs (so start it in tmux or with nohup) and leaves finished ones as they are.
set -euo pipefail

python=${PYTHON:-.venv/bin/python}
launcher=${LAUNCHER:-submitit_slurm}
sweep_dir=$1
shift

words=()
if [[ $launcher == submitit_slurm ]]; then
    # What each job gets. Others: hydra.launcher.account, qos, constraint, gres, setup=["module load python"].
    words=(
        hydra.launcher.partition="${PARTITION:-gpu}" hydra.launcher.gpus_per_node=1 hydra.launcher.cpus_per_task=8
        hydra.launcher.mem_gb=32 hydra.launcher.timeout_min=720 hydra.launcher.array_parallelism=16
    )
fi
exec "$python" -m samout_train -m hydra/launcher="$launcher" hydra.sweep.dir="$sweep_dir" "${words[@]}" "$@"
