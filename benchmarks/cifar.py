"""The CNN of exercise 1.3 on CIFAR-10: a plain loop against the lab's, seconds and accuracy.

    python -m benchmarks.cifar                       # one epoch, three seeds, 12 minutes on 2 cores
    python -m benchmarks.cifar --batches 60 --seeds 0    # a quick look: 60 batches

Both train the same network from the same weights on the same images, kept in memory as uint8, with
Adam and batch 64. The plain loop is what most tutorials have: a DataLoader that transforms one
image at a time. Every contender has a process of its own.
"""

import json
import math
import time
from dataclasses import dataclass
from itertools import islice
from statistics import fmean, stdev

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import exercise_1_3
from benchmarks.report import Output, print_table, run_contender, spread, write_results
from dataset import batches, load_datasets
from devices import freed_memory_kept
from evaluate import evaluate
from exits import read_flags
from models import CNN, build_model
from optimisation import Schedule, make_optimizer
from steps import plain_step, train_epoch

CONFIG = exercise_1_3.config | {"device": "cpu", "epochs": 1}


class Transformed(Dataset):
    """One image at a time, from an array to a normalised tensor, as torchvision's CIFAR10 does."""

    def __init__(self, dataset):
        from torchvision import transforms

        self.images = dataset.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = dataset.labels.tolist()
        normalise = transforms.Normalize(dataset.mean, dataset.std)
        self.transform = transforms.Compose([transforms.ToTensor(), normalise])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def documented_order(layer, images):
    """Conv-BatchNorm-ReLU-Dropout-MaxPool, one after the other."""
    return layer.pool(layer.dropout(torch.relu(layer.norm(layer.conv(images)))))


def plain(model, train_set, config, limit):
    for layer in model.layers:
        layer.forward = lambda images, layer=layer: documented_order(layer, images)
    optimizer = torch.optim.Adam(model.parameters(), lr=config["lr"])
    loader = DataLoader(Transformed(train_set), config["batch_size"], shuffle=True)
    start, count = time.perf_counter(), 0
    for images, labels in islice(loader, limit):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        count += len(labels)
    return time.perf_counter() - start, count


def lab(model, train_set, config, limit):
    assert isinstance(model, CNN)
    model.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, config)
    step, schedule = plain_step(model, optimizer, config), Schedule(optimizer, 704, config)
    start = time.perf_counter()
    with freed_memory_kept():
        train_epoch(step, islice(batches(train_set, config, 1), limit), schedule)
    count = min((limit or 704) * config["batch_size"], len(train_set))
    return time.perf_counter() - start, count


CONTENDERS = {
    "plain loop": plain,
    "LAB01": lab,
    "LAB01, bfloat16": lambda model, train_set, config, limit: lab(
        model, train_set, config | {"precision": "bfloat16"}, limit
    ),
}


@dataclass
class Flags(Output):
    batches: int = 0
    """stop after so many batches; 0 trains one whole epoch"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """each with weights and an order of its own"""
    contender: str = "all"
    """one of them, which then prints its figures for the first seed as JSON"""


def main(flags):
    if flags.contender != "all":
        config = CONFIG | {"seed": flags.seeds[0]}
        torch.manual_seed(config["seed"])
        train_set, val_set, _ = load_datasets(config)
        model = build_model(config).train()
        limit = flags.batches or None
        seconds, count = CONTENDERS[flags.contender](model, train_set, config, limit)
        accuracy = evaluate(model, val_set)["accuracy"]
        print(json.dumps({"seconds_an_epoch": seconds / count * 45_000, "val_accuracy": accuracy}))
        return
    runs = {name: [] for name in CONTENDERS}
    for seed in flags.seeds:  # in turn, so that a slow minute of the machine meets all
        for name, done in runs.items():
            arguments = ("--batches", flags.batches, "--seeds", seed)
            done.append(run_contender("benchmarks.cifar", name, *arguments))
    results, rows = {}, []
    for name, done in runs.items():
        if error := next((run["error"] for run in done if "error" in run), None):
            results[name] = {"error": error}
            rows.append((name, error[:40], "", "", "", ""))
            continue
        seconds = [run["seconds_an_epoch"] for run in done]
        accuracies = [run["val_accuracy"] for run in done]
        deviation = stdev(accuracies) if len(done) > 1 else 0.0
        s = results[name] = spread(seconds) | {
            "val_accuracy_mean": fmean(accuracies),
            "val_accuracy_std": deviation,
        }
        s["times_faster"] = results["plain loop"].get("median", math.nan) / s["median"]
        cells = [f"{s[key]:.1f}" for key in ("median", "min", "max")]
        accuracy = f"{s['val_accuracy_mean']:.4f} +- {deviation:.4f}"
        rows.append((name, *cells, f"{s['times_faster']:.2f}", accuracy))
    header = ("CIFAR-10 CNN, seconds an epoch", "median", "min", "max", "times faster", "accuracy")
    print_table(f"{flags.batches or 'all'} batches, {len(flags.seeds)} seeds", header, rows)
    write_results("cifar", {"contenders": results}, flags.folder)


if __name__ == "__main__":
    main(read_flags(Flags))
