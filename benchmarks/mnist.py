"""The same MNIST training side by side: seconds an epoch of the lab and of what one would use else.

    python -m benchmarks.mnist                    # all contenders, 4 minutes on 2 cores
    python -m benchmarks.mnist --epochs 2         # a quick look

All train the MLP 784-64-64-10 on 55,000 images of MNIST, the loops behind a DataLoader on the first
ones, the others on those that the lab draws; shuffled every epoch, batch 64, Adam 1e-4, for one
epoch that is not counted and `epochs` that are. JAX's `scan` leaves out the 24 images of the last,
short batch. The mean training loss of the last epoch shows that nobody wins by training less. Every
contender has a process of its own. The lab's figures are those that `training.train` itself logs,
from the first batch to the last.
"""

import json
import math
import os
import tempfile
import time
from dataclasses import dataclass

import torch
from torch.nn import functional as F

import exercise_1_1
from benchmarks.report import Output, print_table, run_contender, spread, write_results
from exits import read_flags

BATCH_SIZE, LR, CONFIG = 64, 1e-4, exercise_1_1.config | {"device": "cpu", "val_fraction": 5 / 60}


def network():
    from models import build_model

    return build_model(CONFIG)


def training_arrays():
    """(float images (55000, 784) normalised, labels), for the peers that take arrays."""
    from dataset import load_datasets

    train_set = load_datasets(CONFIG)[0]
    return train_set.normalise(train_set.images).flatten(1).numpy(), train_set.labels.numpy()


def loader(workers):
    """torchvision's data set with transforms behind a DataLoader, as most tutorials have it."""
    from torch.utils.data import DataLoader, Subset
    from torchvision import datasets, transforms

    normalise = transforms.Normalize((0.1307,), (0.3081,))
    transform = transforms.Compose([transforms.ToTensor(), normalise])
    train_set = Subset(datasets.MNIST(CONFIG["data_dir"], transform=transform), range(55_000))
    return DataLoader(train_set, BATCH_SIZE, shuffle=True, num_workers=workers)


def dataloader_loop(epochs, workers=0):
    model, batches, seconds = network(), loader(workers), []
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    for _ in range(epochs + 1):
        start, total = time.perf_counter(), 0.0
        for images, labels in batches:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
        seconds.append(time.perf_counter() - start)
    return seconds, total / 55_000


def lightning(epochs):
    import lightning as L

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.seconds, self.total = network(), [], 0.0

        def training_step(self, batch, index):
            loss = F.cross_entropy(self.model(batch[0]), batch[1])
            self.total += loss.item() * len(batch[1])
            return loss

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=LR)

        def on_train_epoch_start(self):
            self.start, self.total = time.perf_counter(), 0.0

        def on_train_epoch_end(self):
            self.seconds.append(time.perf_counter() - self.start)

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    module = Module()
    trainer = L.Trainer(
        max_epochs=epochs + 1, accelerator="cpu", enable_model_summary=False, **quiet
    )
    trainer.fit(module, loader(0))
    return module.seconds, module.total / 55_000


def keras_fit(epochs):
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    images, labels = training_arrays()
    dense = [
        keras.layers.Dense(n, activation=a) for n, a in ((64, "relu"), (64, "relu"), (10, None))
    ]
    model = keras.Sequential([keras.Input((784,)), *dense])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(LR), loss)
    seconds = []
    for _ in range(epochs + 1):
        start = time.perf_counter()
        history = model.fit(images, labels, BATCH_SIZE, epochs=1, shuffle=True, verbose=0)
        seconds.append(time.perf_counter() - start)
    return seconds, history.history["loss"][-1]


def jax_scan(epochs):
    import jax
    from jax import numpy as jnp

    images, labels = map(jnp.asarray, training_arrays())
    weights = [jnp.asarray(p.detach().numpy()) for p in network().parameters()]

    def loss_of(weights, images, labels):
        for position in range(0, 6, 2):
            images = images @ weights[position].T + weights[position + 1]
            images = jax.nn.relu(images) if position < 4 else images
        return -jnp.take_along_axis(jax.nn.log_softmax(images), labels[:, None], 1).mean()

    def step(state, rows):
        weights, averages, squares, count = state
        loss, slopes = jax.value_and_grad(loss_of)(weights, images[rows], labels[rows])
        count = count + 1
        averages = [0.9 * a + 0.1 * g for a, g in zip(averages, slopes, strict=True)]
        squares = [0.999 * s + 0.001 * g * g for s, g in zip(squares, slopes, strict=True)]
        weights = [
            w - LR * (a / (1 - 0.9**count)) / (jnp.sqrt(s / (1 - 0.999**count)) + 1e-8)
            for w, a, s in zip(weights, averages, squares, strict=True)
        ]
        return (weights, averages, squares, count), loss

    @jax.jit
    def epoch(state, key):
        order = jax.random.permutation(key, 55_000)[: 859 * BATCH_SIZE]
        return jax.lax.scan(step, state, order.reshape(859, BATCH_SIZE))

    zeros = [jnp.zeros_like(w) for w in weights]
    state, seconds = (weights, zeros, zeros, jnp.zeros(())), []
    for number in range(epochs + 1):
        start = time.perf_counter()
        state, losses = jax.block_until_ready(epoch(state, jax.random.key(number)))
        seconds.append(time.perf_counter() - start)
    return seconds, float(losses.mean())


def lab(epochs, compile):
    from checkpoint import load_last
    from dataset import load_datasets
    from training import train

    with tempfile.TemporaryDirectory() as folder:
        config = CONFIG | {
            "epochs": epochs + 1,
            "compile": compile,
            "run_dir": f"{folder}/run",
            "wandb_mode": "disabled",
        }
        train_set, val_set, _ = load_datasets(config)
        train(network(), train_set, val_set, config)
        history = load_last(f"{folder}/run")["history"]
    seconds = [len(train_set) / row["train/images_per_second"] for row in history]
    return seconds, history[-1]["train/loss"]


CONTENDERS = {
    "DataLoader and transforms": dataloader_loop,
    "the same, 2 workers": lambda epochs: dataloader_loop(epochs, workers=2),
    "Lightning": lightning,
    "Keras 3 on JAX, fit": keras_fit,
    "JAX scan": jax_scan,
    "LAB01, plain step": lambda epochs: lab(epochs, "off"),
    "LAB01, compiled step": lambda epochs: lab(epochs, "on"),
}


@dataclass
class Flags(Output):
    epochs: int = 5
    """epochs that are timed"""
    contender: str = "all"
    """one of them, which then prints its figures as JSON"""


def main(flags):
    if flags.contender != "all":
        seconds, loss = CONTENDERS[flags.contender](flags.epochs)
        print("\n" + json.dumps({"seconds": seconds[1:], "loss": loss}))
        return
    measured = {
        name: run_contender("benchmarks.mnist", name, "--epochs", flags.epochs)
        for name in CONTENDERS
    }
    compiled = measured["LAB01, compiled step"].get("seconds", [math.nan])
    ours = spread(compiled)["median"]
    rows, results = [], {}
    for name, result in measured.items():
        if "error" in result:
            rows.append((name, result["error"][:40], "", "", "", ""))
            results[name] = result
            continue
        s = spread(result["seconds"])
        results[name] = s | {"loss": result["loss"], "over_compiled": s["median"] / ours}
        cells = [f"{s[key]:.2f}" for key in ("median", "min", "max")]
        rows.append((name, *cells, f"{s['median'] / ours:.1f}", f"{result['loss']:.4f}"))
    header = ("MNIST MLP, seconds an epoch", "median", "min", "max", "ratio", "loss")
    print_table(f"{flags.epochs} epochs after one that is not counted", header, rows)
    write_results("mnist", {"seconds_an_epoch": results}, flags.folder)


if __name__ == "__main__":
    main(read_flags(Flags))
