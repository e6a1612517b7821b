"""The train loop: optimizer, schedule, loss, checkpoints and logs, from one config."""

import contextlib
import copy
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn

from checkpoint import (
    CheckpointWriter,
    load_checkpoint,
    load_last,
    load_weights,
    mend,
    save_checkpoint,
)
from checks import data_shape, first_line, is_of_memory
from compiled import make_step
from config import check_unchanged, complete_config
from dataset import ImageDataset, batches, derive_seed, shrink
from devices import (
    advice_on_precision,
    choose_device,
    convolutions_timed,
    freed_memory_kept,
    keep_on,
    threads_restored,
)
from distributed import (
    agreement,
    average_statistics,
    first_only,
    from_first,
    rank,
    shared_step,
    world,
)
from evaluate import as_metrics, check_outputs, evaluate
from interruption import stop_requests
from models import convolves, evaluating, takes, whiten
from norms import Norms
from optimisation import Schedule, make_optimizer
from outcome import leave_behind
from plots import draw_samples
from progress import Progress, announce, layer_table
from steps import (
    batch_sizes,
    check_finite,
    plain_step,
    train_epoch,
)
from teacher import check_same_teacher, load_teacher
from tracking import (
    Tracker,
    check_same_data,
    note_resumed,
    only_warned,
    only_writer,
    open_run,
    write_manifest,
    write_metrics,
)

WHITENED_ON = 1000  # training images, evenly from all: they hold a million patches of CIFAR-10


@threads_restored()
def train(
    model: nn.Module, train_set: ImageDataset, val_set: ImageDataset, config: dict
) -> tuple[list[float], list[float]]:
    """Train `model` in place; return (validation accuracies, validation losses in nats an image), a
    float an epoch.

    Inside an @experiment it also leaves network, images and history, and the W&B run still open,
    for the end of the run (outcome.py).

    Starts afresh, or goes on from the last checkpoint of config["resume"], on a CPU bit for bit as
    if it had never stopped. Leaves the weights of the epoch that config["keep"] names in the
    model, in eval mode. On SIGINT or SIGTERM it stops at the next batch and raises Stopped. Raises
    ValueError where the run folder is taken, where the checkpoint is of another config, where the
    network does not have one output a class, where the loss stops being finite, and where a batch
    does not fit in the memory.
    """
    config = complete_config(config)
    if config["seeds"]:
        raise ValueError(
            f"seeds {config['seeds']}: one network is trained here, of config['seed']: leave seeds "
            f"empty, or call the main of an exercise"
        )
    with contextlib.ExitStack() as held, memory_errors_explained(config):
        if config["resume"] != "none":  # from here on: nothing that is read changes any more
            held.enter_context(only_writer(Path(config["resume"])))
        return train_held(model, train_set, val_set, config, held)


def train_held(model, train_set, val_set, config, held):
    """`train` with a checked config; the run folder is entered into the ExitStack `held`."""
    start = time.perf_counter()
    device = choose_device(config["device"])
    check_last_batch(model, train_set, config, device)
    check_crops(model, train_set.images.shape[1], config["crop_size"])

    # the network and what updates it, as new or as they were left
    settle(device, model, held)
    whiten_from(model, train_set)
    model.to(device, memory_format=torch.channels_last)
    check_network(model, train_set, val_set)
    optimizer = make_optimizer(model, config)
    sizes = batch_sizes(len(train_set), config["batch_size"])
    schedule = Schedule(optimizer, len(sizes), config)
    parts = {"model": model, "optimizer": optimizer, "scheduler": schedule}
    resumed = config["resume"] != "none"
    left = {"history": [], "wandb_id": None, "seconds": 0.0}
    if resumed:
        left = restore(parts, config, train_set)
    else:
        check_classes(train_set)
    history, before = left["history"], left["seconds"]
    leave_behind(model=model, train_set=train_set, val_set=val_set)
    leave_behind(history=history, seconds_before=before)
    if len(history) >= config["epochs"]:
        return look_again(model, history, config)
    about = train_set.about()
    table = layer_table(model, train_set.images.shape[1:])
    teacher = load_teacher(config, about, device)
    if resumed:
        check_same_teacher(teacher, left.get("teacher"), config)
    step = build_step(model, optimizer, train_set, teacher, schedule.total, config)

    # what the run leaves behind: its folder, checkpoints, and a row of numbers an epoch

    def state():
        parts_now = {name: part.state_dict() for name, part in parts.items()}
        known = {"data": about, "teacher": teacher and teacher.sha256, "history": history}
        seconds = before + time.perf_counter() - start
        return parts_now | known | {"wandb_id": left["wandb_id"], "seconds": seconds}

    folder = open_with_checkpoint(config, state(), device)
    if not resumed:
        held.enter_context(only_writer(folder))
    check = held.enter_context(stop_requests(folder, agreement(device)))
    announce(device, table, folder)
    if advice := advice_on_precision(model, config, device):
        print(advice)
    with only_warned("samples.png"):
        draw_samples(train_set, batches(train_set, config, 1, device), folder)
    train_set, val_set = keep_on(device, train_set), keep_on(device, val_set)
    if resumed:
        note_resumed(folder, config, len(history), device)
    norms = Norms(model, train_set, len(sizes))
    tracker = Tracker(folder, config, history, left["wandb_id"], norms)
    held.callback(tracker.close)
    left["wandb_id"] = tracker.wandb_id
    progress = Progress(config["epochs"], len(sizes), history)
    held.callback(progress.close)
    writer = CheckpointWriter(folder, config)

    for epoch in range(len(history) + 1, config["epochs"] + 1):
        torch.manual_seed(derive_seed(config["seed"], "dropout", epoch) + rank())
        model.train()
        dealt = progress.watch(batches(train_set, config, epoch, device), epoch, check)
        losses, metrics = train_epoch(step, dealt, schedule, sizes)
        check_finite(losses, model, epoch, schedule)
        average_statistics(model)
        metrics["train/lr"] = optimizer.param_groups[0]["lr"]
        metrics |= as_metrics(evaluate(model, val_set), "val")
        history.append({"epoch": epoch} | metrics)
        tracker.log(metrics, epoch)
        progress.report(history)
        writer.save(state())
    return take_kept(model, folder, history)


def settle(device, model, held):
    """How torch computes on the device from here on: memory and convolutions until the ExitStack
    `held` ends, threads until `train` does."""
    if device.type == "cpu" and convolves(model):
        held.enter_context(freed_memory_kept())
    elif device.type == "cpu":
        torch.set_num_threads(1)  # two meet more often than they help in matrices this small
    held.enter_context(convolutions_timed())


def open_with_checkpoint(config, state, device):
    """The run folder of config["resume"], or a new one that holds `state` as that of epoch 0."""

    def fill(folder):
        write_manifest(folder, config, state["data"]["sha256"], device)
        untrained = state | {"epoch": 0, "config": config}
        save_checkpoint(folder / "checkpoints" / "last.pt", untrained)

    return open_run(config, fill)


def look_again(model, history, config):
    """What `train` returns of a run that has all of its epochs."""
    if len(history) > config["epochs"]:
        raise ValueError(
            f"--resume {config['resume']}: the run has {len(history)} epochs, more than --epochs "
            f"{config['epochs']}: leave that out"
        )
    folder = open_run(config)
    first_only(write_metrics)(folder, history)
    print(f"{folder} has its {len(history)} epochs: --epochs {2 * len(history)} trains on")
    return take_kept(model, folder, history)


def build_step(model, optimizer, train_set, teacher, steps, config):
    """step(images, labels) -> (loss, correct predictions) of every batch (steps.py): shared with
    other processes, as one compiled call, or plain."""
    taught_step = partial(plain_step, teacher=teacher)
    plain = shared_step(taught_step, model, optimizer, config, len(train_set))
    return make_step(plain, model, optimizer, *example_batch(train_set, config), steps, config)


def example_batch(train_set, config):
    """(images, labels) of the shape that the batches of an epoch have."""
    rows = slice(config["batch_size"])
    images = train_set.normalise(train_set.images[rows])
    return shrink(images, config["crop_size"]), train_set.labels[rows]


def whiten_from(model, train_set):
    """Set the first layer of a CNN with `whiten` by images that lie evenly in the training set."""
    if getattr(model, "whitens", False):
        whiten(model, train_set.sample(WHITENED_ON)[0])


def take_kept(model, folder, history):
    """Load the weights that are kept; return the two lists that `train` returns."""
    kept = from_first(load_checkpoint, folder / "checkpoints" / "best.pt")
    model.load_state_dict(kept["model"])
    model.eval()
    return [row["val/accuracy"] for row in history], [row["val/loss"] for row in history]


def check_last_batch(model, train_set, config, device):
    """Raise ValueError where a batch of one image leaves BatchNorm one value a channel; of several
    processes, where the share of one does, unless they are on GPUs, whose BatchNorm sees all."""
    batch_size, shares = config["batch_size"], 1 if device.type == "cuda" else world()
    last = (len(train_set) % batch_size or batch_size) // shares
    if last > 1:
        return
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            trial = copy.deepcopy(model).train()
            image = train_set.normalise(shrink(train_set.images[:1], config["crop_size"]))
            trial(image.to(next(model.parameters()).device))
    except ValueError:
        part = "batch" if shares == 1 else "share"
        raise ValueError(
            f"batch_size {batch_size} leaves a {part} of one of the {len(train_set)} training "
            f"images, of which BatchNorm sees one value, without a deviation: choose another "
            f"--batch_size, or for maps of more than one cell fewer layers"
        ) from None


def check_network(model, train_set, val_set):
    """Raise ValueError where the network does not answer by a number a class, or where nothing is
    held out to judge it by."""
    if not len(val_set):
        raise ValueError("no image is held out for validation: raise --val_fraction")
    image = train_set.normalise(train_set.images[:1])
    with torch.no_grad(), evaluating(model):
        check_outputs(model(image.to(next(model.parameters()).device)), train_set)


def check_classes(train_set):
    """Raise ValueError where a label is of no class, or all pictures of a class were held out."""
    low, high = train_set.labels.min().item(), train_set.labels.max().item()
    if not 0 <= low <= high < len(train_set.classes):
        raise ValueError(
            f"labels from {low} to {high}: {len(train_set.classes)} classes are numbered from 0 to "
            f"{len(train_set.classes) - 1}"
        )
    counts = torch.bincount(train_set.labels, minlength=len(train_set.classes)).tolist()
    if 0 in counts:
        raise ValueError(
            f"of class {train_set.classes[counts.index(0)]} all pictures are held out, none is "
            f"left to learn from: add some, or lower --val_fraction"
        )


def check_crops(model, channels, size):
    """Raise ValueError where a layer leaves no cell of crops of `size` pixels a side."""
    if not size:
        return
    if not takes(model, (channels, size, size)):
        raise ValueError(
            f"crop_size {size} is so small that a layer of the network leaves no cell: choose a "
            f"larger --crop_size, or fewer layers"
        )


@contextlib.contextmanager
def memory_errors_explained(config):
    """Turn the allocator's errors into one line that says what to lower."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_of_memory(error):
            raise
        shape = " x ".join(map(str, data_shape(config)[0]))
        raise ValueError(
            f"batch_size {config['batch_size']} of images of {shape} does not fit in the memory "
            f"({first_line(error)}): lower --batch_size or --image_size, or the network's layers"
        ) from None


def restore(parts, config, train_set):
    """Load the last checkpoint of the run in config["resume"] into the `parts`; return all of it.

    Older ones do not know their seconds: there they are those of the training steps alone.
    """
    state = from_first(load_last, config["resume"])
    check_unchanged(state["config"], config)
    check_same_data(state, config["resume"], train_set)
    for name, part in parts.items():
        if name != "optimizer" or state[name]["state"]:  # none before its first step: as made anew
            load_weights(part, state[name], config["resume"])
    for group in parts["optimizer"].param_groups:
        if "capturable" in group:  # as this device needs it, not that of the checkpoint
            group["capturable"] = next(parts["model"].parameters()).is_cuda
    first_only(mend)(config["resume"], state)
    planned, falls = state["config"]["epochs"], config["schedule"] != "constant"
    if falls and len(state["history"]) == planned < config["epochs"] and rank() == 0:
        print(
            f"the learning rate had fallen for {planned} epochs; for {config['epochs']} it climbs "
            f"again: this is not the run that --epochs {config['epochs']} would have been",
            file=sys.stderr,
        )
    begun = state["config"]["compile"]  # the bits of the run depend on it
    if config["compile"] not in ("auto", begun) and rank() == 0:
        print(f"compile stays {begun}, as the run began", file=sys.stderr)
    config["compile"] = begun
    rates = [row["train/images_per_second"] for row in state["history"]]
    return {"seconds": sum(len(train_set) / rate for rate in rates)} | state
