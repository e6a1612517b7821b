"""From which depth on do skip connections help, and is it the skips or the initialisation?

    python -m studies.depth                         # MLPs of 2 to 80 layers on MNIST
    python -m studies.depth --network cnn           # CNNs of 4 to 32 layers on CIFAR-10
    python -m studies.depth --network stall         # the MLP of exercise 1.2 on CIFAR-10
    python -m studies.depth --dataset digits        # no download: a first look
    python -m studies.depth --redraw results/depth/mlp

The confound: nn.Linear draws weights of variance 1 / (3 fan_in), so that each ReLU layer multiplies
signal and gradient by sqrt(1/6) = 0.408, and 20 layers by 1.7e-8. A plain network that fails may
lack skips or a proper scale. Hence three arms, each without and with BatchNorm: plain, plain drawn
as He et al. 2015 do, and residual; equal in linear layers, width, data and order (at an odd depth
the residual one has a layer less; the table has layers and parameters). The CNNs have BatchNorm in
every layer, so two arms: plain and residual. The stall compares training and validation with
dropout and without.

All arms are trained for the same few epochs with the same Adam and judged after the last one on the
validation images; the test set is not looked at. Every cell (arm, depth, seed) is a file in cells/
of --out, and the same command goes on after the last whole one. Writes results.json, depth.txt and
figures: means over the seeds, with bands from the least to the largest.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from checks import data_shape
from config import defaults
from devices import choose_device, threads_restored
from exits import exit_cleanly, read_flags
from files import write_json, write_whole
from rules import CONFIG, list_of, whole
from studies.cells import about, run_cells, seed_by_seed
from studies.depth_figures import draw_figures
from studies.depth_networks import ARMS, LAYERS_OF_EXERCISE_1_2
from studies.depth_table import table_of
from studies.depth_training import measure_cell

ADAM = {"optimizer": "adam", "lr": 1e-3, "schedule": "cosine"}
NETWORKS = {
    "mlp": ADAM
    | {"dataset": "mnist", "depths": [2, 5, 10, 20, 40, 80], "width": 64, "epochs": 7}
    | {"batch_size": 256, "images": 0, "precision": "float32"},
    "cnn": ADAM
    | {"dataset": "cifar10", "depths": [4, 8, 16, 32], "width": 32, "epochs": 8}
    | {"batch_size": 64, "images": 10_000, "precision": "auto"},
    "stall": ADAM
    | {"dataset": "cifar10", "depths": [LAYERS_OF_EXERCISE_1_2], "width": 128, "epochs": 30}
    | {"lr": 1e-4, "schedule": "constant", "batch_size": 64, "images": 0, "precision": "float32"},
}
ON_DIGITS = {"epochs": 50, "batch_size": 64}  # 1,050 steps, about as many as on MNIST
OWN = ("dataset", "depths", "width", "epochs", "batch_size", "lr", "images")


@dataclass
class Flags:
    # what is left out is the network's own, in NETWORKS

    network: Literal["mlp", "cnn", "stall"] = "mlp"
    dataset: Literal["mnist", "cifar10", "digits"] | None = None
    depths: list[int] | None = None
    """linear or convolutional layers"""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    width: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    images: int | None = None
    """training images; 0 takes all"""
    device: Literal["cpu", "auto"] = "cpu"
    """auto takes a GPU where there is one"""
    data_dir: str = "data"
    out: str | None = None
    """results/depth/<network> where it is left out, runs/depth/<network> on other data"""
    redraw: str | None = None
    """a folder with results.json: draws table and figures anew and computes nothing"""


def complete(flags):
    """The settings of the study, checked; ValueError names flag, value and way out."""
    network, settings = flags.network, {"network": flags.network} | NETWORKS[flags.network]
    settings |= ON_DIGITS if flags.dataset == "digits" and network != "stall" else {}
    settings |= {key: value for key in OWN if (value := getattr(flags, key)) is not None}
    settings["seeds"] = flags.seeds
    rules = {key: CONFIG[key] for key in ("epochs", "batch_size", "lr", "seeds")}
    rules |= {"width": whole(1), "images": whole(0)}
    rules["depths"] = list_of("whole numbers from 2, for a first and a last layer", whole(2))
    for key, rule in rules.items():
        if not rule.holds(settings[key]):
            raise ValueError(f"--{key} must be {rule.words}, got {settings[key]}")
    for key in ("depths", "seeds"):
        if not settings[key] or len(set(settings[key])) < len(settings[key]):
            raise ValueError(f"--{key} must be one number or several different ones, got "
                             f"{settings[key]}")  # fmt: skip
    if network == "stall" and (flags.depths or flags.width):
        raise ValueError("--network stall is exercise 1.2's MLP: leave out --depths and --width")
    return settings


def cell_configs(settings):
    """The config of every cell, seed by seed, so that a part of the study covers all depths."""
    shared = {key: settings[key] for key in settings if key not in ("depths", "seeds")}
    (shape, _) = data_shape(defaults | shared)
    shared["features"] = math.prod(shape)
    return [
        shared | {"seed": seed, "depth": depth, "arm": arm}
        for seed in settings["seeds"]
        for depth in settings["depths"]
        for arm in ARMS[settings["network"]]
    ]


def measure_all(configs, folder, data_dir, device):
    measure = seed_by_seed(measure_cell, data_dir, device)
    return run_cells(configs, folder, measure, name_cell, describe_cell)


def name_cell(config):
    arm = "-".join(config["arm"].replace(",", "").replace("+", "").split()).lower()
    return f"{arm}-{config['depth']}-seed-{config['seed']}"


def describe_cell(cell):
    config, last = cell["config"], cell["history"][-1]
    return (
        f"{config['arm']}, depth {config['depth']}, seed {config['seed']}: validation accuracy "
        f"{last['val/accuracy']:.4f}, training loss {last['train/loss'] or math.nan:.4f}, "
        f"{cell['seconds']:.1f} s"
    )


def draw(folder):
    """depth.txt and the figures of the results.json in `folder`, byte for byte the same each time.

    Returns the table. Raises FileNotFoundError or ValueError where there are no results.
    """
    path = Path(folder) / "results.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"--redraw {folder}: no results.json there; give the folder that a study wrote, like "
            f"results/depth/mlp"
        )
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        table = table_of(results)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--redraw {folder}: results.json is not what the study wrote ({error!r}); the study "
            f"itself writes it anew from its cells"
        ) from None
    write_whole(path.with_name("depth.txt"), table + "\n")
    draw_figures(results, path.parent)
    return table


@exit_cleanly
@threads_restored()
def main(flags):
    if flags.redraw is not None:
        print(draw(flags.redraw))
        return
    settings, device = complete(flags), choose_device(flags.device)
    if device.type == "cpu" and settings["network"] != "cnn":
        torch.set_num_threads(1)  # two meet more often than they help in matrices this small
    published = settings["dataset"] == NETWORKS[flags.network]["dataset"]
    folder = "results" if published else "runs"
    out = Path(flags.out or f"{folder}/depth/{settings['network']}")
    cells = measure_all(cell_configs(settings), out / "cells", flags.data_dir, device)
    found = about("studies.depth", cells, device)
    write_json(out / "results.json", found | {"settings": settings, "cells": cells})
    print(draw(out))
    print(f"\n{found['seconds']:.0f} s for all cells; results.json, depth.txt and figures: {out}")


if __name__ == "__main__":
    main(read_flags(Flags))
