"""What a run costs beside its training steps, and what eight seeds cost over one.

    python -m benchmarks.overhead      # 3 minutes on 2 cores

Whole commands of exercise 1.1, 50 epochs, from the shell and back, once the step is compiled; and
the parts of an epoch inside one of them: the steps, the validation pass, the checkpoint, the log.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import checkpoint
import exercise_1_1
import tracking
import training
from benchmarks.report import print_table, seconds_an_epoch, spread, write_results
from dataset import load_datasets
from models import build_model

SEEDS = [str(seed) for seed in range(8)]


def whole_command(folder, *flags):
    """(seconds of the command, median seconds of the steps of an epoch)."""
    command = [sys.executable, "exercise_1_1.py", "--device", "cpu", "--run_dir", str(folder)]
    start = time.perf_counter()
    subprocess.run([*command, *flags], check=True, capture_output=True)
    seconds = time.perf_counter() - start
    run = next(folder.rglob("last.pt")).parents[1]
    return seconds, median(seconds_an_epoch(run, 54_000))


def parts_of_an_epoch(folder, epochs=20):
    """{"steps", "validation", "checkpoint", "log"}: seconds an epoch, median, min and max."""
    taken = {"steps": [], "validation": [], "checkpoint": [], "log": []}

    def timed(function, part):
        def wrapped(*arguments, **named):
            start = time.perf_counter()
            result = function(*arguments, **named)
            taken[part].append(time.perf_counter() - start)
            return result

        return wrapped

    training.train_epoch = timed(training.train_epoch, "steps")
    training.evaluate = timed(training.evaluate, "validation")
    checkpoint.CheckpointWriter.save = timed(checkpoint.CheckpointWriter.save, "checkpoint")
    tracking.Tracker.log = timed(tracking.Tracker.log, "log")
    config = exercise_1_1.config | {"epochs": epochs, "compile": "on", "device": "cpu"}
    config |= {"run_dir": str(folder)}
    train_set, val_set, _ = load_datasets(config)
    training.train(build_model(config), train_set, val_set, config)
    return {part: spread(seconds[1:]) for part, seconds in taken.items()}


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        whole_command(folder / "compiles")
        whole_command(folder / "compiles_too", "--seeds", *SEEDS)
        one, one_epoch = whole_command(folder / "one")
        eight, eight_epoch = whole_command(folder / "eight", "--seeds", *SEEDS)
        parts = parts_of_an_epoch(folder / "parts")
    rows = [
        ("one seed", f"{one:.1f}", f"{one_epoch:.3f}"),
        ("eight seeds at once", f"{eight:.1f}", f"{eight_epoch:.3f}"),
        ("ratio", f"{eight / one:.2f}", f"{eight_epoch / one_epoch:.2f}"),
    ]
    header = ("exercise 1.1, 50 epochs", "command, s", "steps of an epoch, s")
    print_table("whole commands", header, rows)
    steps = parts["steps"]["median"]
    rows = [
        (part, *(f"{s[key] * 1000:.1f}" for key in s), f"{s['median'] / steps:.1%}")
        for part, s in parts.items()
    ]
    print_table("parts of an epoch", ("ms an epoch", "median", "min", "max", "of the steps"), rows)
    commands = {"seconds": [one, eight], "seconds_an_epoch": [one_epoch, eight_epoch]}
    results = {"one_and_eight_seeds": commands, "parts_of_an_epoch": parts}
    write_results("overhead", results, "results")


if __name__ == "__main__":
    main()
