"""What does each ingredient of a preset best bring? Each is left out in turn.

    python -m studies.ingredients                        # exercise 1.3's CNN on CIFAR-10
    python -m studies.ingredients --network mlp          # exercise 1.1's MLP on MNIST
    python -m studies.ingredients --dataset digits       # no download: whether it runs

The CNN has half of its channels and sees a part of the training images, the MLP trains for fewer
epochs, so that three seeds of all trainings are a matter of an hour or two on one core; what an
ingredient brings to the whole preset may be another. All are judged after their last epoch on the
validation images; the test images are not looked at. The mirror image is an ingredient of the
answer, not of the training, so it stands apart, in a column; digits have none. Every training (what
is left out, seed) is a file in cells/ of --out, and the same command goes on after the last whole
one. Writes results.json.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

import exercise_1_1
import exercise_1_3
from config import defaults, merge
from devices import choose_device, freed_memory_kept, threads_restored
from evaluate import Mirrored
from exits import exit_cleanly, read_flags
from files import write_json
from models import build_model, count_parameters
from rules import SEED, list_of, whole
from studies.cells import about, run_cells, seed_by_seed
from studies.depth_table import spread
from studies.depth_training import judge, train_network
from training import whiten_from

SGD = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 128}
ADAM = {"optimizer": "adam", "lr": 1e-4, "weight_decay": 0.0, "batch_size": 64}  # of the default
MOVES = {"rotate": 0.0, "shift": 0, "zoom": 0.0}
LEFT_OUT = {  # of every network, what is left out: the settings without it
    "cnn": {
        "nothing": {},
        "flips and shifts": {"flip": False, "shift": 0},
        "the falling learning rate": {"schedule": "constant"},
        "smoothed labels": {"label_smoothing": 0.0},
        "the whitening layer": {"model": {"whiten": False}},
        "half of the channels": {},
        "Muon: SGD in one cycle": SGD | {"schedule": "one_cycle"},
    },
    "mlp": {
        "nothing": {},
        "setting digits upright": {"deskew": False},
        "turns, moves and zooms": MOVES,
        "bending": {"elastic": 0.0},
        "all deformation": MOVES | {"elastic": 0.0},
        "the falling learning rate": {"schedule": "constant"},
        "weight decay": {"weight_decay": 0.0},
        "one cycle of AdamW: the default's Adam": ADAM | {"schedule": "constant"},
    },
}
NETWORKS = {
    "cnn": {"dataset": "cifar10", "images": 10_000, "epochs": 10},
    "mlp": {"dataset": "mnist", "images": 0, "epochs": 40},
}
EXERCISES = {"cnn": exercise_1_3, "mlp": exercise_1_1}


@dataclass
class Flags:
    # what is left out is the network's own, in NETWORKS

    network: Literal["cnn", "mlp"] = "cnn"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    images: int | None = None
    """training images; 0 takes all"""
    epochs: int | None = None
    dataset: Literal["cifar10", "mnist", "digits"] | None = None
    data_dir: str = "data"
    out: str | None = None
    """results/ingredients/<network> where it is left out, runs/... on other data"""


def narrowed(layers, divisor):
    """The layers of a CNN, {"channels": ...} or a number each, with a part of their channels."""
    given = [layer if isinstance(layer, dict) else {"channels": layer} for layer in layers]
    return [layer | {"channels": layer["channels"] // divisor} for layer in given]


def cell_configs(settings):
    """The config of every training, seed by seed."""
    network, exercise = settings["network"], EXERCISES[settings["network"]]
    best = merge(merge(defaults, exercise.config), exercise.presets["best"])
    own = {key: value for key, value in best.items() if defaults.get(key) != value}
    own["val_fraction"] = defaults["val_fraction"]  # here all is judged by it
    own |= {key: settings[key] for key in ("network", "dataset", "images", "epochs")}
    configs = []
    for seed in settings["seeds"]:
        for name, changes in LEFT_OUT[network].items():
            cell = merge(own, changes) | {"arm": name, "seed": seed}
            if network == "cnn":
                divisor = 4 if name == "half of the channels" else 2
                cell["model"]["layers"] = narrowed(best["model"]["layers"], divisor)
            configs.append(cell)
    return configs


def measure_cell(config, train_set, val_set, device):
    """Train one network; return what was measured, as plain values. Nothing is chosen."""
    start = time.perf_counter()
    model = build_model(config)
    whiten_from(model, train_set)
    model.to(device, memory_format=torch.channels_last)
    with freed_memory_kept():
        history = train_network(model, train_set, val_set, config, device)
    cell = {"parameters": count_parameters(model), "history": history}
    if config["network"] == "cnn":
        both = judge(Mirrored(model).eval(), val_set, "val", config, device)
        cell["mirrored"] = both["val/accuracy"]
    return cell | {"seconds": round(time.perf_counter() - start, 1)}


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


def complete(flags):
    """The settings of the study, checked; ValueError names flag, value and way out."""
    settings = {"network": flags.network} | NETWORKS[flags.network]
    given = {key: getattr(flags, key) for key in ("dataset", "images", "epochs", "seeds")}
    settings |= {key: value for key, value in given.items() if value is not None}
    for key, rule in {
        "seeds": list_of("whole numbers, 0 or more", SEED, lowest=1),
        "images": whole(0),
        "epochs": whole(1),
    }.items():
        if not rule.holds(settings[key]):
            raise ValueError(f"--{key} must be {rule.words}, got {settings[key]}")
    if len(set(settings["seeds"])) < len(settings["seeds"]):
        raise ValueError(f"--seeds must be different numbers, got {settings['seeds']}")
    return settings


@exit_cleanly
@threads_restored()
def main(flags):
    settings, device = complete(flags), choose_device("auto")
    network = settings["network"]
    if device.type == "cpu" and network == "mlp":
        torch.set_num_threads(1)  # two meet more often than they help in matrices this small
    published = settings["dataset"] == NETWORKS[network]["dataset"]
    out = Path(flags.out or f"{'results' if published else 'runs'}/ingredients/{network}")
    measure = seed_by_seed(measure_cell, flags.data_dir, device)
    cells = run_cells(cell_configs(settings), out / "cells", measure, name_cell, describe_cell)
    found = about("studies.ingredients", cells, device)
    write_json(out / "results.json", found | {"settings": settings, "cells": cells})
    for name in LEFT_OUT[network]:
        line = f"without {name:38}  {spread(values_of(cells, name), 100):14}"
        if network == "cnn":
            line += f"  with mirror images {spread(values_of(cells, name, 'mirrored'), 100)}"
        print(line)
    print(f"\n{found['seconds']:.0f} s for all trainings; results.json: {out}")


if __name__ == "__main__":
    main(read_flags(Flags))
