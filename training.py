"""The train loop: optimizer, schedule, loss, checkpoints and logs, from one config."""

import contextlib
import math
import sys
import time

import torch
from torch.nn import functional as F
from tqdm import tqdm

from checkpoint import load_checkpoint, load_last, save_checkpoint
from compiled import make_step
from config import RESUMABLE, complete_config, differences
from dataset import batches, derive_seed
from evaluate import evaluate
from models import CNN, layer_table
from tracking import Tracker, device_name, open_run, write_manifest


@contextlib.contextmanager
def threads_restored():
    """Whatever number of threads is set inside, the one before comes back."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@threads_restored()
def train(model, train_set, val_set, config):
    """Train `model` in place; return (validation accuracies, validation losses), a float an epoch.

    Starts afresh, or goes on from the last checkpoint of config["resume"], on a CPU bit for bit as
    if it had never stopped. Leaves the weights of the best epoch by validation accuracy in the
    model, in eval mode. Raises ValueError where the run folder is taken, where the checkpoint is of
    another config, and where the loss stops being finite.
    """
    config = complete_config(config)
    device = choose_device(config["device"])
    if device.type == "cpu" and not isinstance(model, CNN):
        torch.set_num_threads(1)  # two meet more often than they help in matrices this small
    model.to(device, memory_format=torch.channels_last if isinstance(model, CNN) else None)
    optimizer = make_optimizer(model, config)
    schedule = Schedule(optimizer, math.ceil(len(train_set) / config["batch_size"]), config)
    parts = {"model": model, "optimizer": optimizer, "scheduler": schedule}
    history, wandb_id = restore(parts, config) if config["resume"] != "none" else ([], None)
    folder = open_run(config)
    write_manifest(folder, config, train_set, device)
    if len(history) >= config["epochs"]:
        return take_best(model, folder, history)  # a finished run is looked at again
    first = slice(config["batch_size"])
    images, labels = train_set.normalise(train_set.images[first]), train_set.labels[first]
    plain = plain_step(model, optimizer, config)
    step = make_step(plain, model, optimizer, images, labels, schedule.total, config)

    print(f"device: {device_name(device)}, threads: {torch.get_num_threads()}")
    print(layer_table(model, train_set.images.shape[1:]))
    print(f"run folder: {folder}", flush=True)
    train_set, val_set = keep_on(device, train_set), keep_on(device, val_set)
    tracker = Tracker(folder, config, history, wandb_id)
    progress = Progress(config["epochs"], len(train_set), history)
    try:
        for epoch in range(len(history) + 1, config["epochs"] + 1):
            torch.manual_seed(derive_seed(config["seed"], "dropout", epoch))
            model.train()
            watched = progress.watch(batches(train_set, config, epoch, device), epoch)
            metrics = train_epoch(step, watched, schedule)
            lr = optimizer.param_groups[0]["lr"]
            check_finite(metrics["train/loss"], epoch, lr)
            val = evaluate(model, val_set)
            metrics |= {"train/lr": lr, "val/loss": val["loss"], "val/accuracy": val["accuracy"]}
            history.append({"epoch": epoch} | metrics)
            tracker.log(metrics, epoch)
            progress.report(history)
            state = {name: part.state_dict() for name, part in parts.items()}
            save(folder, state | {"history": history, "wandb_id": tracker.wandb_id}, config)
    finally:
        progress.close()
        tracker.close()
    return take_best(model, folder, history)


def take_best(model, folder, history):
    """Load the weights of the best epoch; return the two lists that `train` returns."""
    model.load_state_dict(load_checkpoint(folder / "checkpoints" / "best.pt")["model"])
    model.eval()
    return [row["val/accuracy"] for row in history], [row["val/loss"] for row in history]


def plain_step(model, optimizer, config):
    """step(images, labels) -> (loss, number of correct predictions), after one update."""
    device = next(model.parameters()).device
    forward = model
    if uses_bfloat16(config, device):
        forward = torch.autocast(device.type, torch.bfloat16)(model)

    def step(images, labels):
        logits = forward(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=config["label_smoothing"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()

    return step


def train_epoch(step, batches, schedule):
    """One pass over `batches`; the means over its images, as trained: augmented, with dropout."""
    start = time.perf_counter()
    total, correct, count = 0.0, 0, 0
    for images, labels in batches:
        schedule.step()
        loss, hits = step(images, labels)
        total += loss * len(labels)  # stays on the device: .item() would stall every step
        correct += hits
        count += len(labels)
    metrics = {"train/loss": float(total) / count, "train/accuracy": int(correct) / count}
    return metrics | {"train/images_per_second": count / (time.perf_counter() - start)}


def check_finite(loss, epoch, lr):
    if not math.isfinite(loss):
        raise ValueError(
            f"the loss is {loss} in epoch {epoch} at learning rate {lr:g}: lower --lr; the "
            f"checkpoints of the epochs before are whole"
        )


def choose_device(name):
    """CUDA when available, then MPS, then CPU, unless `name` says which."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def uses_bfloat16(config, device):
    on_by_default = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return {"auto": on_by_default, "bfloat16": True, "float32": False}[config["precision"]]


def keep_on(device, dataset):
    """The data set on `device`, where it takes at most half of the memory that is free there."""
    if device.type == "cuda" and dataset.images.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
        return dataset
    return dataset.to(device)


def make_optimizer(model, config):
    """Adam (Kingma, Ba 2015), AdamW (Loshchilov, Hutter 2019) or SGD with Nesterov momentum."""
    settings = {"lr": config["lr"], "weight_decay": config["weight_decay"], "fused": True}
    if config["optimizer"] == "sgd":
        nesterov = config["momentum"] > 0
        settings |= {"momentum": config["momentum"], "nesterov": nesterov}
    elif next(model.parameters()).is_cuda:
        settings["capturable"] = True  # its step count lies on the GPU, where a graph can add to it
    optimizers = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    return optimizers[config["optimizer"]](model.parameters(), **settings)


class Schedule:
    """Sets the learning rate of every step, config["lr"] times `schedule_factor`, in place.

    `step` comes before the update it is meant for.
    """

    def __init__(self, optimizer, steps_per_epoch, config):
        self.optimizer, self.lr, self.kind = optimizer, config["lr"], config["schedule"]
        self.total = config["epochs"] * steps_per_epoch
        self.warmup = config["warmup_epochs"] * steps_per_epoch
        self.taken = 0

    def step(self):
        lr = self.lr * schedule_factor(self.kind, self.taken, self.total, self.warmup)
        for group in self.optimizer.param_groups:  # a new list after load_state_dict
            group["lr"] = lr
        self.taken += 1

    def state_dict(self):
        return {"taken": self.taken}

    def load_state_dict(self, state):
        self.taken = state["taken"]


def schedule_factor(schedule, step, total, warmup=0):
    """The share of lr that step 0, 1, ..., total - 1 takes.

    one_cycle climbs from 1/25 over the first 30 % and falls to 1/250,000, along cosines (Smith and
    Topin 2018, as torch's OneCycleLR has it); cosine falls to 0 (Loshchilov and Hutter 2017).
    """

    def cosine(start, end, progress):
        return end + (start - end) / 2 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))

    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "cosine":
        return cosine(1.0, 0.0, (step - warmup) / max(1, total - warmup))
    if schedule == "one_cycle":
        peak = 0.3 * total - 1
        if step <= peak:
            return cosine(1 / 25, 1.0, step / peak)
        return cosine(1.0, 1 / 25e4, (step - peak) / max(1e-9, total - 1 - peak))
    return 1.0


def restore(parts, config):
    """Load the last checkpoint of the run in config["resume"]; return (history, wandb_id)."""
    state = load_last(config["resume"])
    changed = differences(state["config"], config)
    changed = {key: pair for key, pair in changed.items() if key not in RESUMABLE}
    if changed:
        listed = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in changed.items())
        raise ValueError(
            f"--resume {config['resume']}: the run was started with another config ({listed}); "
            f"resume with the same, or start a new run"
        )
    for name, part in parts.items():
        part.load_state_dict(state[name])
    config["compile"] = state["config"]["compile"]  # the bits of the run depend on it
    return state["history"], state["wandb_id"]


def save(folder, state, config):
    """`best` whenever the validation accuracy rose, `last` every checkpoint_every epochs."""
    *before, now = [row["val/accuracy"] for row in state["history"]]
    epoch = len(before) + 1
    state = state | {"epoch": epoch, "config": config}
    if now > max(before, default=-1.0):
        save_checkpoint(folder / "checkpoints" / "best.pt", state)
    if epoch % config["checkpoint_every"] == 0 or epoch == config["epochs"]:
        save_checkpoint(folder / "checkpoints" / "last.pt", state)


class Progress:
    """A bar with epoch, loss, validation accuracy, best and time left; without a terminal a line an
    epoch, free of control characters."""

    def __init__(self, epochs, images, history):
        self.epochs, self.start, self.done = epochs, time.perf_counter(), len(history)
        self.bar = tqdm(
            total=epochs * images, initial=len(history) * images, unit=" images", unit_scale=True,
            disable=None, dynamic_ncols=True, file=sys.stderr,
            bar_format="{desc}{percentage:3.0f}% |{bar}| {remaining} left{postfix}",
        )  # fmt: skip

    def watch(self, batches, epoch):
        """The batches of an epoch, counted as they pass."""
        self.bar.set_description(f"epoch {epoch}/{self.epochs} ", refresh=False)
        for images, labels in batches:
            yield images, labels
            self.bar.update(labels.shape[-1])  # of a stack of batches those of one seed

    def report(self, history):
        row, best = history[-1], max(history, key=lambda row: row["val/accuracy"])
        text = f"loss {row['train/loss']:.4f}, val {row['val/accuracy']:.4f}"
        text += f", best {best['val/accuracy']:.4f}"
        self.bar.set_postfix_str(text)
        if self.bar.disable:
            elapsed = time.perf_counter() - self.start
            left = elapsed / (row["epoch"] - self.done) * (self.epochs - row["epoch"])
            print(f"epoch {row['epoch']}/{self.epochs}: {text}, {left:.0f} s left", flush=True)

    def close(self):
        self.bar.close()
