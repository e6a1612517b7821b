"""One cell of the depth study: a network trained, and what is measured of it."""

import math
import time
from contextlib import nullcontext

import torch

from dataset import batches, derive_seed
from devices import uses_bfloat16
from evaluate import as_metrics, evaluate
from models import count_parameters
from optimisation import Schedule, make_optimizer
from steps import batch_sizes, plain_step, train_epoch
from studies.depth_networks import build_network, gradient_norms, layer_parameters

GRADIENT_IMAGES = 256  # training images that the gradients are taken of


def measure_cell(config, train_set, val_set, device):
    """Train the network of config["arm"] and config["depth"]; return what was measured, as plain
    values. It is judged as it is after the last epoch: nothing is chosen."""
    start = time.perf_counter()
    model = build_network(config, config["arm"]).to(device)
    if config["network"] == "cnn":
        model.to(memory_format=torch.channels_last)
    batch = train_set.sample(GRADIENT_IMAGES)
    gradients = {"init": rounded(gradient_norms(model, *batch))}
    history = train_network(model, train_set, val_set, config, device)
    gradients["trained"] = rounded(gradient_norms(model, *batch))
    counts = torch.bincount(val_set.labels)
    return {
        "layers": len(layer_parameters(model)),
        "parameters": count_parameters(model),
        "largest_class": counts.max().item() / len(val_set),
        "history": history,
        "gradients": gradients,
        "seconds": round(time.perf_counter() - start, 1),
    }


def train_network(model, train_set, val_set, config, device):
    """One dict an epoch: loss and accuracy as trained and of the validation images.

    Order and dropout of an epoch depend on (seed, epoch) alone, so all arms of a seed see the same
    batches. Ends early where the loss is not finite; that loss is None.
    """
    optimizer = make_optimizer(model, config)
    sizes = batch_sizes(len(train_set), config["batch_size"])
    schedule = Schedule(optimizer, len(sizes), config)
    step = plain_step(model, optimizer, config)
    history = []
    with torch.random.fork_rng(devices=[]):
        for epoch in range(1, config["epochs"] + 1):
            torch.manual_seed(derive_seed(config["seed"], "dropout", epoch))
            model.train()
            losses, row = train_epoch(step, batches(train_set, config, epoch, device), schedule)
            row = {key: row[key] for key in ("train/loss", "train/accuracy")}
            row |= judge(model, val_set, "val", config, device)
            if config["network"] == "stall":  # what dropout hides while it trains
                row |= judge(model, train_set, "train_without_dropout", config, device)
            history.append({"epoch": epoch} | {key: finite(row[key]) for key in row})
            if not losses.isfinite().all():
                break
    return history


def judge(model, dataset, split, config, device):
    """{split/loss, split/accuracy}, in the precision of the training."""
    bfloat16 = uses_bfloat16(config, device)
    with torch.autocast(device.type, torch.bfloat16) if bfloat16 else nullcontext():
        return as_metrics(evaluate(model, dataset, batch_size=500), split)


def finite(value):
    return value if math.isfinite(value) else None


def rounded(norms):
    return {kind: [finite(float(f"{norm:.4g}")) for norm in norms[kind]] for kind in norms}
