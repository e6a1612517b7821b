"""What does each ingredient of exercise 1.3's preset best bring? Each is left out in turn.

    python -m studies.ingredients                        # CIFAR-10, seven trainings a seed
    python -m studies.ingredients --dataset digits       # no download: whether it runs

The preset with half of its channels, on a part of the training images, so that three seeds of all
trainings are a matter of hours on one core; what an ingredient brings to the whole preset may be
less. All are judged after their last epoch on the validation images; the test images are not looked
at. The mirror image is an ingredient of the answer, not of the training, so it stands apart, in a
column. Every training (what is left out, seed) is a file in cells/ of --out, and the same command
goes on after the last whole one. Writes results.json.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import tyro

from config import defaults, merge
from devices import choose_device, freed_memory_kept
from evaluate import Mirrored
from exercise_1_3 import config, presets
from exits import exit_cleanly
from files import write_json
from models import build_model, count_parameters
from rules import SEED, list_of, whole
from studies.cells import about, run_cells, seed_by_seed
from studies.depth_table import spread
from studies.depth_training import judge, train_network
from training import whiten_from

SGD = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 128}
LEFT_OUT = {  # what is left out: the settings without it
    "nothing": {},
    "flips and shifts": {"flip": False, "shift": 0},
    "the falling learning rate": {"schedule": "constant"},
    "smoothed labels": {"label_smoothing": 0.0},
    "the whitening layer": {"model": {"whiten": False}},
    "half of the channels": {},
    "Muon: SGD in one cycle": SGD | {"schedule": "one_cycle"},
}


@dataclass
class Flags:
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    images: int = 10_000
    """training images; 0 takes all"""
    epochs: int = 10
    dataset: Literal["cifar10", "digits"] = "cifar10"
    data_dir: str = "data"
    out: str | None = None
    """results/ingredients where it is left out, runs/ingredients on digits"""


def narrowed(layers, divisor):
    """The layers of a CNN, {"channels": ...} or a number each, with a part of their channels."""
    given = [layer if isinstance(layer, dict) else {"channels": layer} for layer in layers]
    return [layer | {"channels": layer["channels"] // divisor} for layer in given]


def cell_configs(flags):
    """The config of every training, seed by seed."""
    best = merge(merge(defaults, config), presets["best"])
    own = {key: value for key, value in best.items() if defaults.get(key) != value}
    own["val_fraction"] = defaults["val_fraction"]  # here all is judged by it
    configs = []
    for seed in flags.seeds:
        for name, changes in LEFT_OUT.items():
            cell = merge(own, changes) | {"arm": name, "seed": seed, "network": "cnn"}
            cell["dataset"] = flags.dataset
            divisor = 4 if name == "half of the channels" else 2
            cell["model"]["layers"] = narrowed(best["model"]["layers"], divisor)
            configs.append(cell | {"images": flags.images, "epochs": flags.epochs})
    return configs


def measure_cell(config, train_set, val_set, device):
    """Train one network; return what was measured, as plain values. Nothing is chosen."""
    start = time.perf_counter()
    model = build_model(config)
    whiten_from(model, train_set)
    model.to(device, memory_format=torch.channels_last)
    with freed_memory_kept():
        history = train_network(model, train_set, val_set, config, device)
    mirrored = judge(Mirrored(model).eval(), val_set, "val", config, device)
    return {
        "parameters": count_parameters(model),
        "history": history,
        "mirrored": mirrored["val/accuracy"],
        "seconds": round(time.perf_counter() - start, 1),
    }


def name_cell(config):
    return f"{config['arm'].replace(':', '').replace(' ', '-').lower()}-seed-{config['seed']}"


def describe_cell(cell):
    reached, seconds = cell["history"][-1]["val/accuracy"], cell["seconds"]
    name, seed = cell["config"]["arm"], cell["config"]["seed"]
    return f"without {name}, seed {seed}: validation accuracy {reached:.4f}, {seconds:.0f} s"


def values_of(cells, name, key=None):
    """Validation accuracies after the last epoch without `name`, one a seed; or another `key`."""
    chosen = [cell for cell in cells if cell["config"]["arm"] == name]
    return [cell[key] if key else cell["history"][-1]["val/accuracy"] for cell in chosen]


@exit_cleanly
def main(flags):
    for key, rule in {
        "seeds": list_of("whole numbers, 0 or more", SEED, lowest=1),
        "images": whole(0),
        "epochs": whole(1),
    }.items():
        if not rule.holds(getattr(flags, key)):
            raise ValueError(f"--{key} must be {rule.words}, got {getattr(flags, key)}")
    folder = "results" if flags.dataset == "cifar10" else "runs"
    device, out = choose_device("auto"), Path(flags.out or f"{folder}/ingredients")
    measure = seed_by_seed(measure_cell, flags.data_dir, device)
    cells = run_cells(cell_configs(flags), out / "cells", measure, name_cell, describe_cell)
    found = about("studies.ingredients", cells, device)
    settings = {key: getattr(flags, key) for key in ("dataset", "seeds", "images", "epochs")}
    write_json(out / "results.json", found | {"settings": settings, "cells": cells})
    for name in LEFT_OUT:
        plain, mirrored = (spread(values_of(cells, name, key), 100) for key in (None, "mirrored"))
        print(f"without {name:25}  {plain:14}  with mirror images {mirrored}")
    print(f"\n{found['seconds']:.0f} s for all trainings; results.json: {out}")


if __name__ == "__main__":
    main(tyro.cli(Flags))
