"""The CNN of exercise 1.3 on CIFAR-10: a plain loop against the lab's, seconds and accuracy.

    python -m benchmarks.cifar                 # one epoch each, 4 minutes on 2 cores
    python -m benchmarks.cifar --batches 60    # a quick look: 60 batches, accuracy untold

Both train the same network from the same weights on the same images, kept in memory as uint8, with
Adam and batch 64. The plain loop is what most tutorials have: a DataLoader that transforms one
image at a time. Every contender has a process of its own.
"""

import json
import time
from dataclasses import dataclass
from itertools import islice

import torch
import tyro
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import exercise_1_3
from benchmarks.report import print_table, run_contender, write_results
from dataset import batches, load_datasets
from evaluate import evaluate
from models import CNN, build_model
from training import Schedule, make_optimizer, plain_step, train_epoch

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


def plain(model, train_set, limit):
    for layer in model.layers:
        layer.forward = lambda images, layer=layer: documented_order(layer, images)
    optimizer = torch.optim.Adam(model.parameters(), lr=CONFIG["lr"])
    loader = DataLoader(Transformed(train_set), CONFIG["batch_size"], shuffle=True)
    start, count = time.perf_counter(), 0
    for images, labels in islice(loader, limit):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        count += len(labels)
    return time.perf_counter() - start, count


def lab(model, train_set, limit, **changes):
    config = CONFIG | changes
    assert isinstance(model, CNN)
    model.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, config)
    step, schedule = plain_step(model, optimizer, config), Schedule(optimizer, 704, config)
    dealt = list(islice(batches(train_set, config, 1), limit)) if limit else None
    start = time.perf_counter()
    train_epoch(step, dealt or batches(train_set, config, 1), schedule)
    count = limit * config["batch_size"] if limit else len(train_set)
    return time.perf_counter() - start, count


CONTENDERS = {
    "plain loop": plain,
    "LAB01": lab,
    "LAB01, bfloat16": lambda *arguments: lab(*arguments, precision="bfloat16"),
}


@dataclass
class Flags:
    batches: int = 0
    """stop after so many batches; 0 trains one whole epoch"""
    contender: str = "all"
    """one of them, which then prints its figures as JSON"""


def main(flags):
    if flags.contender != "all":
        train_set, val_set, _ = load_datasets(CONFIG)
        model = build_model(CONFIG).train()
        limit = flags.batches or None
        seconds, count = CONTENDERS[flags.contender](model, train_set, limit)
        accuracy = evaluate(model, val_set)["accuracy"]
        print(json.dumps({"seconds_an_epoch": seconds / count * 45_000, "val_accuracy": accuracy}))
        return
    results = {
        name: run_contender("benchmarks.cifar", name, "--batches", flags.batches)
        for name in CONTENDERS
    }
    plain_seconds = results["plain loop"].get("seconds_an_epoch", float("nan"))
    rows = []
    for name, result in results.items():
        if "error" in result:
            rows.append((name, result["error"][:40], "", ""))
            continue
        seconds = result["seconds_an_epoch"]
        result["times_faster"] = plain_seconds / seconds
        accuracy = f"{result['val_accuracy']:.4f}"
        rows.append((name, f"{seconds:.1f}", f"{plain_seconds / seconds:.2f}", accuracy))
    header = ("CIFAR-10 CNN", "seconds an epoch", "times faster", "validation accuracy")
    print_table(f"{flags.batches or 'all'} batches", header, rows)
    write_results("cifar", {"contenders": results})


if __name__ == "__main__":
    main(tyro.cli(Flags))
