"""What a process of test_distributed.py does: several runs in one launch, and what it saw.

Reads runs.json, a list of configs; writes rank_<n>.pt: the test results of every run, what was
opened for writing below this folder, what BatchNorm knows after steps on images of its own, and the
fate of a run whose images are NaN on one rank alone. A config with maps is one of exercise 2.3.
"""

import json
import os
import sys
from pathlib import Path

import blank
import torch
from torch import nn

import exercise_1_3
import exercise_2_3
import plots
import training
from checkpoint import load_checkpoint
from dataset import batches, load_datasets
from distributed import average_statistics, joined, leave, rank, shared_step, world
from evaluate import Flags, evaluate
from evaluate import main as judge
from models import build_model
from optimisation import make_optimizer
from steps import plain_step

written = []


def note_writing(event, arguments):
    opened = event == "open" and isinstance(arguments[0], str)
    if (opened and set(str(arguments[1])) & set("wax+")) or event in ("os.mkdir", "os.rename"):
        written.append(os.path.abspath(arguments[0]))  # noqa: PTH100


def norm_statistics():
    """Running means of a BatchNorm: of the images of this process alone, as two shared steps leave
    them, and as they are averaged."""
    images, labels = torch.arange(8.0).view(4, 2) + 10 * rank(), torch.zeros(4, dtype=torch.long)
    alone, trained = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    settings = scratch | {"lr": 1e-9, "batch_size": 4 * world()}
    step = shared_step(
        plain_step, trained, make_optimizer(trained, settings), settings, 8 * world()
    )
    for _ in range(2):
        alone(images)
        step(images, labels)
    own = trained.running_mean.clone()
    average_statistics(trained)
    return alone.running_mean, own, trained.running_mean


def poisoned(train_set, config, epoch, device):
    dropout_seeds.append(torch.initial_seed())
    for count, (images, labels) in enumerate(batches(train_set, config, epoch, device)):
        if (rank(), epoch, count) == (world() - 1, 2, 6):
            reached.extend(parameter.detach().clone() for parameter in model.parameters())
            images = images * float("nan")
        yield images, labels


torch.set_num_threads(1)
plots.Figure = blank.Figure
sys.addaudithook(note_writing)
configs = json.loads(Path("runs.json").read_text())
with joined(torch.device("cpu")):
    results = [(exercise_2_3 if "cam" in c else exercise_1_3).main(c) for c in configs]
    judge(Flags(configs[0]["run_dir"], device="cpu"))
    scratch = configs[0] | {"run_dir": "poisoned", "epochs": 3}
    train_set, val_set, test_set = load_datasets(scratch)
    best = load_checkpoint(Path(configs[0]["run_dir"]) / "checkpoints" / "best.pt")
    model = build_model(scratch)
    model.load_state_dict(best["model"])
    exact = evaluate(model, test_set, batch_size=50)
    training.batches, reached, dropout_seeds = poisoned, [], []
    try:
        training.train(model, train_set, val_set, scratch)
        fate = "trained on"
    except ValueError as error:
        fate = str(error)
    seen = {
        "test": [result.get("test") for result in results],
        "exact": exact,
        "fate": fate,
        "reached": reached,
        "left": [parameter.detach() for parameter in model.parameters()],
        "norms": norm_statistics(),
        "dropout_seeds": dropout_seeds,
        "written": [path for path in written if path.startswith(str(Path.cwd()))],
    }
    torch.save(seen, f"rank_{rank()}.pt")
leave(0)
