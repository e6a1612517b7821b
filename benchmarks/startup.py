"""From the command to the first training step of exercise 1.1 on MNIST, part by part.

    python -m benchmarks.startup               # half a minute

Every round is a fresh process with the data cached on disk; medians of 5.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from statistics import median

from benchmarks.report import Output, print_table, spread, write_results
from exits import exit_cleanly, read_flags

CHILD = """
import json, sys, time
marks = {"interpreter": float(sys.argv[1])}
def mark(name): marks[name] = time.time()
mark("imports")
import torch; mark("torch")
import exercise_1_1; mark("the lab's modules")
import tempfile, dataset, models, training, tracking
from config import complete_config
folder = tempfile.mkdtemp()
overrides = {"run_dir": folder + "/run", "wandb_mode": sys.argv[2], "compile": "off"}
config = complete_config(exercise_1_1.config | overrides); mark("config")
train_set, val_set, _ = dataset.load_datasets(config); mark("data")
model = models.build_model(config); mark("network")
class FirstStep(Exception): pass
make = training.make_step
def noted(*arguments):
    mark("optimizer")
    step = make(*arguments)
    def first(*batch):
        mark("run folder, loggers, first batch"); step(*batch); mark("first step"); raise FirstStep
    return first
training.make_step = noted
try: training.train(model, train_set, val_set, config)
except FirstStep: pass
times = list(marks.items())
parts = {name: at - before for (_, before), (name, at) in zip(times, times[1:])}
print("\\n" + json.dumps(parts | {"total": times[-1][1] - times[0][1]}))
"""


@dataclass
class Flags(Output):
    rounds: int = 5
    """fresh processes that are timed"""
    wandb_mode: str = "auto"
    """"disabled" shows what W&B costs"""


@exit_cleanly
def main(flags):
    rounds = []
    for _ in range(flags.rounds + 1):
        command = [sys.executable, "-c", CHILD, str(time.time()), flags.wandb_mode]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"the exercise did not start: {done.stderr.strip().splitlines()[-1]}")
        rounds.append(json.loads(done.stdout.strip().splitlines()[-1]))
    rounds = rounds[1:]  # the first one warms the disk's cache
    parts = {name: spread([r[name] for r in rounds]) for name in rounds[0]}
    rows = [(name, *(f"{p[k]:.2f}" for k in ("median", "min", "max"))) for name, p in parts.items()]
    print_table("seconds to the first training step", ("part", "median", "min", "max"), rows)
    total = median(r["total"] for r in rounds)
    write_results("startup", {"seconds": parts, "median": total}, flags.folder)


if __name__ == "__main__":
    main(read_flags(Flags))
