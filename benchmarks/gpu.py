"""All four exercises on a GPU: a plain loop against the lab's, and the whole of exercise 1.1.

    python -m benchmarks.gpu                    # under 8 minutes on one GPU
    python -m benchmarks.gpu --epochs 2         # a quick look

The plain loop is what most tutorials have: float images on the host, a copy to the device every
batch, float32, Adam, `loss.item()` every step. Before anything is timed, the lab's first three
losses must be those of the CPU, without the TF32 that convolutions have on a GPU by default. Data
sets that are not in data/ are listed as not run. Writes results/benchmarks-gpu-<name>.json.
"""

import tempfile
import time
from dataclasses import dataclass
from itertools import islice

import torch
from torch.nn import functional as F

import exercise_1_1
import exercise_1_2
import exercise_1_3
import exercise_2_3
from benchmarks.report import Output, print_table, seconds_an_epoch, write_results
from compiled import make_step
from config import complete_config
from dataset import batches, load_datasets
from exits import read_flags
from models import build_model
from optimisation import make_optimizer
from seeds import train_seeds
from training import plain_step, train

EXERCISES = (exercise_1_1, exercise_1_2, exercise_1_3, exercise_2_3)


@dataclass
class Flags(Output):
    epochs: int = 5
    """epochs that are timed, after one that is not"""


def plain_epoch(model, optimizer, train_set, config):
    """Seconds of one epoch of the plain loop on the GPU, one batch at a time from the host."""
    order = torch.randperm(len(train_set))
    torch.cuda.synchronize()
    start = time.perf_counter()
    for rows in order.split(config["batch_size"]):
        images = train_set.normalise(train_set.images[rows]).cuda()
        loss = F.cross_entropy(model(images), train_set.labels[rows].cuda())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
    return time.perf_counter() - start


def check_first_steps(train_set, config):
    """Largest difference in loss over three float32 steps: captured and plain on the GPU, and on
    the CPU. In more, Adam, which divides by what rounding changes, takes them apart."""
    losses = []
    for device, compile in (("cuda", "on"), ("cuda", "off"), ("cpu", "off")):
        exact = without_dropout(config | {"precision": "float32", "compile": compile})
        model = build_model(exact).to(device)
        optimizer, three = make_optimizer(model, exact), islice(batches(train_set, exact, 1), 3)
        three = [(images.to(device), labels.to(device)) for images, labels in three]
        step = plain_step(model, optimizer, exact)
        step = make_step(step, model, optimizer, *three[0], 3, exact)
        assert exact["compile"] == compile, "the step was not captured"
        losses.append([step(images, labels)[0].item() for images, labels in three])
    return max(max(of_step) - min(of_step) for of_step in zip(*losses, strict=True))


def without_dropout(config):
    """Every device draws its own."""
    has_it = "dropout" in config["model"]
    return config | {"model": config["model"] | ({"dropout": 0.0} if has_it else {})}


def lab_epochs(train_set, val_set, config, epochs):
    """(seconds of each epoch after the first, seconds of the whole call) of `training.train`."""
    with tempfile.TemporaryDirectory() as folder:
        changes = {"epochs": epochs, "run_dir": f"{folder}/run", "wandb_mode": "disabled"}
        start = time.perf_counter()
        train(build_model(config), train_set, val_set, config | changes)
        whole = time.perf_counter() - start
        return seconds_an_epoch(f"{folder}/run", len(train_set))[1:], whole


def measure(exercise, epochs):
    config = exercise.config | {"device": "cuda"}
    train_set, val_set, _ = load_datasets(config)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        difference = check_first_steps(train_set, config)
    assert difference < 1e-2, f"{exercise.__name__}: the first steps differ by {difference}"
    model = build_model(config).cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=config["lr"])
    plain = min(plain_epoch(model, optimizer, train_set, config) for _ in range(2))
    torch.cuda.reset_peak_memory_stats()
    seconds, _ = lab_epochs(train_set, val_set, config, epochs + 1)
    return {
        "plain_seconds_an_epoch": plain,
        "lab_seconds_an_epoch": min(seconds),
        "times_faster": plain / min(seconds),
        "peak_MiB": torch.cuda.max_memory_allocated() / 2**20,
        "largest_difference_of_three_losses": difference,
    }


def idle_share():
    """Share of an epoch of exercise 1.1 in which no kernel runs, by torch's profiler."""
    config = exercise_1_1.config | {"device": "cuda"}
    train_set = load_datasets(config)[0].to("cuda")
    model = build_model(config).cuda()
    optimizer = make_optimizer(model, config)
    pairs = list(batches(train_set, config, 1))[:200]
    step = plain_step(model, optimizer, config)
    step = make_step(step, model, optimizer, *pairs[0], 10_000, config)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        start = time.perf_counter()
        for images, labels in pairs:
            step(images, labels)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    busy = sum(event.device_time for event in profile.events()) / 1e6
    return 1 - busy / seconds


def many_seeds(count):
    """Seconds of an epoch of exercise 1.1 for `count` seeds at once, the last of three."""
    config = exercise_1_1.config | {"device": "cuda", "epochs": 3, "wandb_mode": "disabled"}
    with tempfile.TemporaryDirectory() as folder:
        configs = [
            complete_config(config | {"seed": seed, "run_dir": f"{folder}/{seed}"})
            for seed in range(count)
        ]
        train_seeds(configs)
        return seconds_an_epoch(f"{folder}/0", 54_000)[-1]


def main(flags):
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing is measured")
        return
    name = torch.cuda.get_device_name()
    results, rows = {}, []
    for exercise in EXERCISES:
        try:
            result = results[exercise.__name__] = measure(exercise, flags.epochs)
        except FileNotFoundError as error:
            results[exercise.__name__] = {"not run": str(error)}
            rows.append((exercise.__name__, "not run", "", "", ""))
            continue
        keys = ("plain_seconds_an_epoch", "lab_seconds_an_epoch", "times_faster", "peak_MiB")
        rows.append((exercise.__name__, *(f"{result[key]:.2f}" for key in keys)))
    print_table(name, ("seconds an epoch", "plain", "lab", "times faster", "peak MiB"), rows)
    config = exercise_1_1.config | {"device": "cuda"}
    _, whole = lab_epochs(*load_datasets(config)[:2], config, 50)
    idle, many = idle_share(), many_seeds(64)
    print(f"50 epochs of exercise 1.1: {whole:.1f} s; the device is idle {idle:.0%} of the time")
    print(f"an epoch of 64 seeds at once: {many:.2f} s")
    results |= {"exercise_1_1_50_epochs_seconds": whole, "exercise_1_1_idle_share": idle}
    results["exercise_1_1_64_seeds_seconds_an_epoch"] = many
    write_results("gpu", results, flags.folder, f"gpu-{name.lower().replace(' ', '-')}")


if __name__ == "__main__":
    main(read_flags(Flags))
