"""The cells of a study: a training each, in a file each, so that a study goes on where it was."""

import json
import shlex
import sys

import torch

from benchmarks.report import machine_name
from config import defaults
from dataset import load_datasets, make_generator
from devices import keep_on
from files import write_json
from tracking import describe_process, git_commit


def read_cell(path, config):
    """What the cell of `config` left at `path`; None where there is none, or one of another."""
    try:
        cell = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return cell if isinstance(cell, dict) and cell.get("config") == config else None


def run_cells(configs, folder, measure, name, describe):
    """Every cell as a dict: read from `folder` where it is there, else measured and written.

    `measure` takes a config and returns what it measured, `name` gives the file's, `describe` takes
    the cell and returns the line that is printed. Ctrl-C ends the process with exit code 130.
    """
    cells, commit = [], git_commit()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for number, config in enumerate(configs, start=1):
            path = folder / f"{name(config)}.json"
            cell = read_cell(path, config)
            if cell is None:
                cell = {"config": config, "commit": commit} | measure(config)
                write_json(path, cell)
                print(f"{number} of {len(configs)}: {describe(cell)}", flush=True)
            cells.append(cell)
    except KeyboardInterrupt:
        print("stopped; the same command goes on after the last whole cell", file=sys.stderr)
        raise SystemExit(130) from None
    return cells


def load_sets(config, device):
    """(training set, validation set) of the cells of a seed on `device`: config["images"] of the
    training images, drawn by the seed, or all for 0. The test set is let go of unseen."""
    train_set, val_set, _ = load_datasets(config)
    if 0 < config["images"] < len(train_set):
        generator = make_generator(config["seed"], "depth")
        kept = torch.randperm(len(train_set), generator=generator)[: config["images"]]
        train_set = train_set.subset(kept.sort()[0])
    return keep_on(device, train_set), keep_on(device, val_set)


def seed_by_seed(measure_cell, data_dir, device):
    """measure(config) = measure_cell(complete config, training set, validation set, device).

    The sets stay loaded while seed and `deskew` stay the same.
    """
    loaded = {}

    def measure(config):
        complete = defaults | config | {"data_dir": data_dir}
        key = complete["seed"], complete["deskew"]
        if key not in loaded:
            loaded.clear()
            loaded[key] = load_sets(complete, device)
        return measure_cell(complete, *loaded[key], device)

    return measure


def about(module, cells, device):
    """What results.json says of how it came about: command, commit, machine, seconds."""
    command = shlex.join(["python", "-m", module, *sys.argv[1:]])
    known = describe_process(device) | {"machine": machine_name(), "command": command}
    return known | {"seconds": round(sum(cell["seconds"] for cell in cells), 1)}
