#!/bin/sh
# A grid over flags, without an account: a run a point, then the table of them all.
#
#     sh sweeps/exercise_1_3.sh                       # about 11 minutes a point on 2 cores
#     sh sweeps/exercise_1_3.sh --dataset digits      # flags are those of the exercise
#
# Stopped and started again, it goes on where it was; other flags have a folder of their own.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
folder=${FOLDER:-runs/sweep_1_3$(printf %s "$*" | tr -cs A-Za-z0-9. -)}

for lr in 0.0003 0.001 0.003; do
  for dropout in 0.1 0.3; do
    run=$folder/lr-$lr-dropout-$dropout
    if [ -f "$run/results.json" ]; then
      continue
    elif [ -d "$run" ]; then
      $python exercise_1_3.py --resume "$run"
    else
      $python exercise_1_3.py --lr $lr --model.dropout $dropout --epochs 8 --run_dir "$run" "$@"
    fi
  done
done
$python evaluate.py "$folder"/*
