"""What every exercise has around it: one run a seed, results.json, errors in one line."""

import contextlib
import errno
import functools
import json
import os
import shutil
import time
from pathlib import Path
from statistics import fmean, stdev

from checks import data_shape, only_draws
from config import (
    check_unchanged,
    complete_config,
    defaults,
    flatten,
    merge,
    read_run_config,
)
from devices import advice_on_precision, choose_device
from distributed import alone, first_only, from_first, joined, rank, wait, world
from ending import log_results
from exits import exit_cleanly, exit_together
from files import write_json
from interruption import Stopped, end_with_parent
from models import build_model, count_parameters
from outcome import kept_of, remembered
from plots import draw_seeds, read_metrics
from progress import announce, layer_table
from seeds import can_stack, fit_together, train_seeds
from summary import result_block, seeds_block
from teacher import check_teachers
from tracking import only_writer, open_run


def experiment(function):
    """Decorate `main(config)` of an exercise.

    It gets a checked config with the run folder named, and its results are completed and written
    to results.json. With config["seeds"] it runs once a seed. In a script that is run by its name,
    a mistake of the user's ends in one line and exit code 2; imported, `main` raises. Keys of the
    script's own `config` that are missing are named. The processes of torchrun do it together.
    """
    name = Path(function.__code__.co_filename).stem

    @functools.wraps(function)
    def main(config):
        with together(config):
            own, presets = (function.__globals__.get(key, {}) for key in ("config", "presets"))
            config = from_first(name_run, config, name, own)
            check_preset(config, presets)
            several = run_seeds if config["seeds"] else run
            return several(function, name, config)

    return exit_together(exit_cleanly(main)) if function.__module__ == "__main__" else main


def together(config):
    """Inside, the processes of torchrun can talk to each other; one alone has nobody to talk to."""
    if world() == 1:
        return contextlib.nullcontext()
    end_with_parent()  # torchrun may be killed
    return joined(choose_device(merge(defaults, config)["device"]))


def name_run(config, name, own):
    """A complete config with the run folder named: after a restart by torchrun (--max-restarts) the
    one of the first attempt, resumed where it got that far."""
    config = merge(defaults, config)
    launch = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    launch = os.getppid() if launch == "none" else launch.replace("/", "_")
    note = Path("runs") / name / f".torchrun-{launch}"
    named = config["run_dir"] != "auto"
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and config["resume"] == "none":
        noted = note.is_file() and not named
        folder = note.read_text(encoding="utf-8") if noted else config["run_dir"]
        started = (Path(folder) / "config.json").is_file()
        config |= {"run_dir": folder, "resume": folder if started else "none"}
    config = complete_config(config, name, own)
    if config["resume"] != "none":
        check_exercise(config["resume"], name)
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and not named:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(config["run_dir"], encoding="utf-8")
    return config


def check_preset(config, presets):
    """Raise ValueError where the preset of a new run is unknown, or nothing of it is in the config:
    parse_config lays it over the script's, a call of `main` does not."""
    named, settings = config["preset"], flatten(presets.get(config["preset"], {}))
    if named == "none" or config["resume"] != "none":
        return
    if named not in presets:
        raise ValueError(f"preset {named!r} is none of this script's: {', '.join(presets)}")
    if all(flatten(config).get(key) != value for key, value in settings.items()):
        raise ValueError(
            f"preset {named!r} is named, but nothing of it is in the config: give main "
            f"merge(config, presets[{named!r}]), from config.py"
        )


def check_exercise(folder, name):
    """Raise ValueError where the run in `folder` is that of another exercise, as far as it says."""
    for path in (Path(folder, "results.json"), Path(folder, "manifest.json")):
        about = {}
        with contextlib.suppress(OSError, ValueError):  # not there yet, or lost
            about = json.loads(path.read_text(encoding="utf-8"))
        begun = about.get("exercise", name) if isinstance(about, dict) else name
        if begun != name:
            raise ValueError(f"--resume {folder}: that run is of {begun}: resume it by {begun}.py")


def run(function, name, config):
    """Run the exercise once; print, write and return its results."""
    results, training = run_silently(function, name, config)
    print(result_block(results, training), flush=True)
    return results


def run_silently(function, name, config, folder=None):
    """(results, the Training behind them) of one run, written and logged; of several seeds
    `folder` is theirs."""
    start = time.perf_counter()
    explained = disk_errors_explained(folder or config["run_dir"], config)
    with explained, remembered(name) as training:
        results = {"exercise": name, "config": config, **function(config)}
        seconds = training.seconds_before + time.perf_counter() - start
        results |= {"seconds": seconds, "run_dir": config["run_dir"]}
        first_only(log_results)(results, training)
        first_only(write_json)(Path(config["run_dir"]) / "results.json", results)
    return results, training


def run_seeds(function, name, config):
    """Run the exercise once a seed, in folders seed_<n>; return all results, mean and deviation."""
    folder = Path(config["run_dir"])
    from_first(check_teachers, config)
    if config["resume"] == "none":
        open_run(config)
    else:
        check_lengths(folder, config["epochs"])
    try:
        with only_writer(folder):
            if config["resume"] != "none":
                with disk_errors_explained(folder, config):
                    first_only(add_seeds)(config)
            return run_seeds_in(folder, function, name, config)
    except Stopped as stop:
        raise Stopped(stop.signum, folder) from None
    except (ValueError, OSError):
        if config["resume"] == "none" and rank() == 0 and not any(folder.glob("seed_*")):
            shutil.rmtree(folder, ignore_errors=True)  # it ended before any training began
        raise


def run_seeds_in(folder, function, name, config):
    """`run_seeds` in its run folder, which is held."""
    start = time.perf_counter()
    singles = [
        config
        | {"seed": seed, "seeds": [], "run_dir": str(folder / f"seed_{seed}"), "resume": "none"}
        for seed in config["seeds"]
    ]
    runs, before = [], []
    stacked = train_fresh(config, singles) if can_stack(config) else []
    for single in singles:  # the images and the network of one seed are let go before the next
        training = None
        results, training = run_one(function, name, single, single in stacked, folder)
        runs.append(results)
        before += [] if single in stacked else [training.seconds_before]
    longest_or_all = max if can_stack(config) else sum  # the seeds of a stack learn at once
    results = {
        "exercise": name,
        "config": config,
        "seeds": config["seeds"],
        "runs": runs,
        **over_seeds(runs),
        "seconds": longest_or_all(before or [0]) + time.perf_counter() - start,
        "run_dir": config["run_dir"],
    }
    with disk_errors_explained(folder, config):
        if all((Path(run["run_dir"]) / "metrics.csv").is_file() for run in runs):
            draw_seeds(folder, [run["run_dir"] for run in runs])
        first_only(write_json)(folder / "results.json", results)
    print(seeds_block(results, training), flush=True)
    return results


def over_seeds(runs):
    """{"mean", "std"} of what the runs of several seeds reached, of the test images every number
    that all of them have; of one there is no std."""
    usual = ["accuracy", "loss"]
    added = [
        metric
        for metric in runs[0]["test"]
        if metric not in usual and all(is_number(run["test"].get(metric)) for run in runs)
    ]
    reached = {
        f"{split}_{metric}": [run[split][metric] for run in runs]
        for split, metrics in (("val", usual), ("test", usual + added))
        for metric in metrics
    }
    mean = {key: fmean(values) for key, values in reached.items()}
    std = {key: stdev(v) if len(v) > 1 else None for key, v in reached.items()}
    return {"mean": mean, "std": std}


def is_number(value):
    return type(value) in (int, float)


def check_lengths(folder, epochs):
    """Raise ValueError where a seed was trained for more epochs: a mean over them would mix two
    experiments."""
    for path in sorted(Path(folder).glob("seed_*/metrics.csv")):
        if (count := len(read_metrics(path))) > epochs:
            raise ValueError(
                f"{path.parent} has {count} epochs, more than --epochs {epochs}: --epochs {count} "
                f"brings all seeds to as many"
            )


def add_seeds(config):
    """Note the seeds in the run folder that is resumed; they may be more than before.

    Raises ValueError where the config differs in anything else that the results depend on.
    """
    folder = config["resume"]
    check_unchanged(read_run_config(folder) | {"seeds": config["seeds"]}, config)
    write_json(Path(folder) / "config.json", config)


def train_fresh(config, singles):
    """Train all seeds that have no folder yet at once, so that each run finds its training done;
    returns them, or none where they do not fit in the memory. Several processes deal them out."""
    fresh = from_first(lambda: [s for s in singles if not Path(s["run_dir"]).is_dir()])
    if fresh and not fit_together(fresh):
        return []  # then one after the other
    if fresh:
        model, device = build_model(config), choose_device(config["device"])
        announce(device, layer_table(model, data_shape(config)[0]), config["run_dir"])
        if advice := advice_on_precision(model, config, device):
            print(advice)
    if own := fresh[rank() :: world()]:
        with alone():
            train_seeds(own)
    wait()
    return fresh


def run_one(function, name, config, trained, folder):
    """One of several seeds in `folder`; it is silent where it was `trained` with the others."""
    with contextlib.redirect_stdout(None) if trained else contextlib.nullcontext():
        print(f"\nseed {config['seed']}")
        return run_silently(function, name, from_first(going_on, config), folder)


@contextlib.contextmanager
def disk_errors_explained(folder, config):
    """Turn what the system says of a file, as on a full disk, into one line with the way out: a
    training goes on, maps are drawn anew."""
    try:
        yield
    except OSError as error:
        if error.errno in (None, errno.EPIPE):  # one of ours, which says it all, or of the output
            raise
        what = error.filename or f"a file of {folder}"
        once = f"; once that is mended, --resume {folder} repeats what is missing"
        goes_on = not only_draws(config) and (Path(folder) / "config.json").is_file()
        raise ValueError(
            f"{what} cannot be read or written: {error.strerror}{once if goes_on else ''}"
        ) from None


def going_on(config):
    """`config`, resuming its run folder where there is one."""
    there = Path(config["run_dir"]).is_dir()
    return config | {"resume": config["run_dir"]} if there else config


def summarise(model, val_accuracies, val_losses, test, keep="best"):
    """The results of one training: validation at the epoch that was kept (from 1), the "best" or
    the "last"; test, size. Accuracies and losses are a float an epoch, `test` is what `evaluate`
    returned."""
    pairs = enumerate(zip(val_accuracies, val_losses, strict=True), 1)
    rows = [{"epoch": n, "val/accuracy": a, "val/loss": b} for n, (a, b) in pairs]
    best = kept_of(rows, keep)
    return {
        "val": {
            "accuracy": best["val/accuracy"],
            "loss": best["val/loss"],
            "best_epoch": best["epoch"],
        },
        "test": test,
        "epochs": len(val_accuracies),
        "parameters": count_parameters(model),
    }
