#!/usr/bin/env bash
# A rank for each core: sbatch slurm.sh SCRIPT [-var NAME VALUE ...]
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=64
#SBATCH --cpus-per-task=1
#SBATCH --time=24:00:00
export OMP_NUM_THREADS=1
srun --cpu-bind=cores lmp -in "$@"
