"""What every exercise has around it: one run a seed, results.json, errors in one line."""

import contextlib
import functools
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean, stdev

from config import complete_config, refuse
from interruption import Stopped
from models import count_parameters
from seeds import can_stack, train_seeds
from tracking import open_run, write_json


def experiment(function):
    """Decorate `main(config)` of an exercise.

    It gets a checked config with the run folder named, and its results are completed and written
    to results.json. With config["seeds"] it runs once a seed. In a script that is run by its name,
    a mistake of the user's ends in one line and exit code 2; imported, `main` raises.
    """
    name = Path(function.__code__.co_filename).stem

    @functools.wraps(function)
    def main(config):
        config = complete_config(config, name, function.__globals__["config"])
        return run_seeds(function, name, config) if config["seeds"] else run(function, name, config)

    return exit_cleanly(main) if function.__module__ == "__main__" else main


def run(function, name, config):
    """Run the exercise once; print, write and return its results."""
    start = time.perf_counter()
    with disk_errors_explained(config["run_dir"]):
        results = {"exercise": name, "config": config, **function(config)}
        results |= {"seconds": time.perf_counter() - start, "run_dir": config["run_dir"]}
        write_json(Path(config["run_dir"]) / "results.json", results)
    print(result_lines(results), flush=True)
    return results


def run_seeds(function, name, config):
    """Run the exercise once a seed, in folders seed_<n>; return all results, mean and deviation."""
    folder = Path(config["run_dir"])
    start = time.perf_counter()
    singles = [
        config
        | {"seed": seed, "seeds": [], "run_dir": str(folder / f"seed_{seed}"), "resume": "none"}
        for seed in config["seeds"]
    ]
    if config["resume"] == "none":
        open_run(config)
    fresh = [single for single in singles if not Path(single["run_dir"]).is_dir()]
    try:
        if can_stack(config) and fresh:
            train_seeds(fresh)  # all at once; each run then finds its training done
        runs = [run(function, name, going_on(single)) for single in singles]
    except Stopped as stop:
        raise Stopped(stop.signum, folder) from None
    except (ValueError, OSError):
        if config["resume"] == "none" and not any(folder.glob("seed_*")):
            shutil.rmtree(folder, ignore_errors=True)  # it ended before any training began
        raise
    pick = {
        f"{split}_{metric}": [r[split][metric] for r in runs]
        for split in ("val", "test")
        for metric in ("accuracy", "loss")
    }
    results = {
        "exercise": name,
        "config": config,
        "seeds": config["seeds"],
        "runs": runs,
        "mean": {key: fmean(values) for key, values in pick.items()},
        "std": {key: stdev(v) if len(v) > 1 else 0.0 for key, v in pick.items()},
        "seconds": time.perf_counter() - start,
        "run_dir": config["run_dir"],
    }
    with disk_errors_explained(folder):
        write_json(folder / "results.json", results)
    mean, std = results["mean"], results["std"]
    print(
        f"{len(runs)} seeds: test accuracy {mean['test_accuracy']:.4f} +- "
        f"{std['test_accuracy']:.4f}, test loss {mean['test_loss']:.4f} +- {std['test_loss']:.4f}"
    )
    return results


@contextlib.contextmanager
def disk_errors_explained(folder):
    """Turn what the system says of a file, as on a full disk, into one line with the way out."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # one of ours, which says it all
            raise
        what = error.filename or "a file"
        once = f"; once that is mended, --resume {folder} repeats what is missing"
        raise ValueError(
            f"{what} cannot be read or written: {error.strerror}"
            f"{once if (Path(folder) / 'config.json').is_file() else ''}"
        ) from None


def going_on(config):
    """`config`, resuming its run folder where there is one."""
    there = Path(config["run_dir"]).is_dir()
    return config | {"resume": config["run_dir"]} if there else config


def summarise(model, val_accuracies, val_losses, test):
    """The results of one training: validation at its best epoch (from 1), test, size."""
    best = max(range(len(val_accuracies)), key=val_accuracies.__getitem__)
    return {
        "val": {
            "accuracy": val_accuracies[best],
            "loss": val_losses[best],
            "best_epoch": best + 1,
        },
        "test": test,
        "epochs": len(val_accuracies),
        "parameters": count_parameters(model),
    }


def result_lines(results):
    val, test = results["val"], results["test"]
    return (
        f"validation: accuracy {val['accuracy']:.4f} in epoch {val['best_epoch']}, its best\n"
        f"test: accuracy {test['accuracy']:.4f}, loss {test['loss']:.4f} (mean per image)\n"
        f"{results['seconds']:.0f} s; results, plots and checkpoints are in {results['run_dir']}\n"
        f"curves: tensorboard --logdir {results['run_dir']}"
    )


def exit_cleanly(main):
    """Exit codes: 0 done, 2 the user can mend it, 1 ours (a traceback), 130 and 143 stopped."""

    @functools.wraps(main)
    def wrapped(config):
        try:
            return main(config)
        except (ValueError, OSError) as error:
            refuse(error)
        except Stopped as stop:
            print(f"stopped; go on with: {resume_command(stop.folder)}", file=sys.stderr)
            raise SystemExit(128 + stop.signum) from None
        except KeyboardInterrupt:
            print("stopped; where a run folder was printed, --resume goes on", file=sys.stderr)
            raise SystemExit(130) from None

    return wrapped


def resume_command(folder):
    """What to type, here, to go on with the run in `folder`."""
    python = Path(sys.executable)
    with contextlib.suppress(ValueError):
        python = python.relative_to(Path.cwd())
    words = [str(python), sys.argv[0], "--resume", str(folder)]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
