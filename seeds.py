"""All seeds of an MLP trained at once: their weights stacked, one optimizer over the stack.

Axis letters: S seeds, n images of a batch, K classes.
"""

import copy
import math
import multiprocessing
import signal
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from checkpoint import CheckpointWriter, save_checkpoint
from checks import memory_bytes
from compiled import WORTH_IT, make_step, mean_losses
from dataset import draw_epoch, load_datasets, prepare
from devices import choose_device, keep_on
from evaluate import evaluate
from interruption import Stopped, stop_requests
from models import MLP, SkipMLP, build_model
from norms import Norms
from optimisation import Schedule, make_optimizer
from progress import Progress
from steps import check_finite, not_finite, threads_restored, train_epoch, uses_bfloat16
from tracking import Tracker, only_writer, open_run, write_manifest
from training import memory_errors_explained


class Stack(nn.Module):
    """Networks of one shape as one: images (S, n, ...) -> logits (S, n, K), a network a seed.

    They compute in the type of the images, since autocast does not reach inside vmap.
    """

    def __init__(self, models):
        super().__init__()
        weights, _ = stack_module_state(models)
        self.names = list(weights)
        self.weights = nn.ParameterList(weights.values())
        template = copy.deepcopy(models[0]).to("meta")  # its structure alone is used
        object.__setattr__(self, "template", template)  # not a part: its parameters are not ours

    def train(self, mode=True):
        self.template.train(mode)
        return super().train(mode)

    def forward(self, images):
        def one(weights, images):
            return functional_call(self.template, weights, (images,))

        weights = (weight.to(images.dtype) for weight in self.weights)
        weights = dict(zip(self.names, weights, strict=True))
        return vmap(one)(weights, images)

    def weights_of(self, position):
        """The state_dict of the network of one seed."""
        return {
            n: w[position].detach().clone() for n, w in zip(self.names, self.weights, strict=True)
        }


def stacked_step(stack, optimizer, config):
    """step(images, labels) -> (losses (S,), correct predictions (S,)), after one update of all."""
    bfloat16 = uses_bfloat16(config, next(stack.parameters()).device)

    def step(images, labels):
        logits = stack(images.bfloat16() if bfloat16 else images).float()
        losses = mean_losses(logits, labels, config["label_smoothing"])
        losses.sum().backward()  # the weights of a seed see the mean loss of that seed alone
        optimizer.found_inf = not_finite(losses.sum())
        optimizer.step()
        optimizer.zero_grad()
        return losses.detach(), (logits.detach().argmax(2) == labels).sum(1)

    return step


def can_stack(config):
    """Whether `train_seeds` takes this config: that of an MLP without dropout, whose masks would
    depend on which seeds are trained together."""
    model = config["model"]
    return model["kind"] in ("mlp", "skip_mlp") and not model.get("dropout", 0)


def fit_together(configs):
    """Whether the images of all seeds fit in the memory, where a stack has them side by side."""
    with redirect_stdout(None):
        train_set = load_datasets(configs[0])[0]
    return len(configs) * train_set.images.nbytes < memory_bytes() / 2


def train_seeds(configs, workers=0):
    """Train one network a config, which differ in seed and run folder, as `train` would.

    Leaves in every run folder what `train` leaves there, so that a run that resumes it finds its
    work done. Order, initial weights and augmentation are those of the single run of that seed, the
    numbers within rounding. TensorBoard is written at the end, and W&B by the single runs that
    follow; until then the checkpoints hold the history.

    On a CPU the seeds are dealt to `workers` processes of one thread and one stack each; 0 takes
    one a core, where the run is long enough to pay for starting them.
    """
    workers = min(workers or count_workers(configs[0]), len(configs))
    if workers == 1:
        return train_stack(configs)
    parts = [configs[first::workers] for first in range(workers)]
    context, folder = multiprocessing.get_context("spawn"), Path(configs[0]["run_dir"]).parent
    with stop_requests(folder) as check, ProcessPoolExecutor(workers, context) as pool:
        with interrupts_held():
            running = {pool.submit(train_stack, part, part is parts[0]) for part in parts}
        try:
            while running:
                done, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                for part in done:
                    part.result()  # raises what the process raised
                check()
        except BrokenProcessPool:
            check()  # a signal to all of them may have ended one
            raise ValueError(
                f"a process that trained some of the seeds was killed; was the memory enough? "
                f"--resume {folder} goes on"
            ) from None
        finally:
            for child in multiprocessing.active_children():
                child.terminate()


@contextmanager
def interrupts_held():
    """Processes that are started inside never get Ctrl-C, which a terminal sends to all: the one
    that started them ends them. Here it comes after the block. Windows has no such call."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def count_workers(config):
    """Threads in step with one another lose more than they win on networks this small."""
    images = len(load_datasets(config)[0]) * config["epochs"]
    pays = images >= WORTH_IT["cpu"] * config["batch_size"]
    on_cpu = choose_device(config["device"]).type == "cpu"
    return torch.get_num_threads() if pays and on_cpu else 1


@threads_restored()
def train_stack(configs, shows=True):
    """The seeds of `train_seeds` as one stack; prints how far it is when it `shows`."""
    config, device = dict(configs[0]), choose_device(configs[0]["device"])
    with redirect_stdout(None):  # the single runs that follow say it all
        train_sets, val_sets, _ = zip(*map(load_datasets, configs), strict=True)
    models = [build_model(c).to(device) for c in configs]
    assert all(isinstance(model, MLP | SkipMLP) for model in models)
    if device.type == "cpu":
        torch.set_num_threads(1)  # as in `train`: two are twice as fast or ten times as slow
    stack = Stack(models)
    optimizer = make_optimizer(stack, config)
    train_length = len(train_sets[0])
    joint = keep_on(device, chained(train_sets))
    val_sets = [keep_on(device, val_set) for val_set in val_sets]
    schedule = Schedule(optimizer, math.ceil(train_length / config["batch_size"]), config)
    images, labels = next(stacked_batches(joint, configs, 1, device))
    plain = stacked_step(stack, optimizer, config)
    step = make_step(plain, stack, optimizer, images, labels, schedule.total, config)
    configs = [c | {"compile": config["compile"]} for c in configs]
    histories, means = [[] for _ in configs], []
    steps = schedule.total // config["epochs"]
    norms = [Norms(model, t, steps) for model, t in zip(models, train_sets, strict=True)]
    lengths = [{} for _ in configs]  # of weights and gradients: epoch -> what TensorBoard shows

    def state_of(position):
        return {
            "model": models[position].state_dict(),
            "optimizer": optimizer_state_of(optimizer, position),
            "scheduler": schedule.state_dict(),
            "history": histories[position],
            "wandb_id": None,
            "data": train_sets[0].about(),
        }

    with ExitStack() as held:
        held.enter_context(memory_errors_explained(config))
        check = held.enter_context(stop_requests(Path(config["run_dir"]).parent))
        for position, (c, train_set) in enumerate(zip(configs, train_sets, strict=True)):

            def fill(folder, position=position, c=c, train_set=train_set):
                write_manifest(folder, c, train_set, device)
                start = state_of(position) | {"epoch": 0, "config": c}
                save_checkpoint(folder / "checkpoints" / "last.pt", start)

            held.enter_context(only_writer(open_run(c, fill)))
        writers = [CheckpointWriter(c["run_dir"], c) for c in configs]
        progress = Progress(config["epochs"], steps, means, shows)
        held.callback(progress.close)
        for epoch in range(1, config["epochs"] + 1):
            if (parent := multiprocessing.parent_process()) and not parent.is_alive():
                raise Stopped(signal.SIGTERM, Path(config["run_dir"]).parent)
            stack.train()
            dealt = stacked_batches(joint, configs, epoch, device)
            losses, metrics = train_epoch(step, progress.watch(dealt, epoch, check), schedule)
            metrics["train/lr"] = optimizer.param_groups[0]["lr"]
            for position, model in enumerate(models):  # before any is saved: all stopped there
                model.load_state_dict(stack.weights_of(position))
                check_finite(losses[:, position], model, epoch, schedule)
            for position, history in enumerate(histories):
                own = {k: v[position] if isinstance(v, list) else v for k, v in metrics.items()}
                val = evaluate(models[position], val_sets[position])
                own |= {"val/loss": val["loss"], "val/accuracy": val["accuracy"]}
                history.append({"epoch": epoch} | own)
                lengths[position][epoch] = norms[position](epoch)
                writers[position].save(state_of(position))
            last = [history[-1] for history in histories]
            means.append({key: fmean(r[key] for r in last) for key in last[0]} | {"epoch": epoch})
            progress.report(means)
        for c, history, own in zip(configs, histories, lengths, strict=True):
            folder = Path(c["run_dir"])
            tracker = Tracker(folder, c, [], norms=own.__getitem__, wandb=False)
            for row in history:
                tracker.log({k: v for k, v in row.items() if k != "epoch"}, row["epoch"])
            tracker.close()


def chained(datasets):
    """The images of every seed, one after the other, as one data set."""
    images, labels = (
        torch.cat([getattr(d, key)[:] for d in datasets]) for key in ("images", "labels")
    )
    return replace(datasets[0], images=images, labels=labels)


def stacked_batches(joint, configs, epoch, device):
    """Batches (images (S, n, ...), labels (S, n)) of `chained` sets: every seed has its own order.

    The batches of the seeds lie side by side in one order, so that they are made together.
    """
    seeds, batch_size = len(configs), configs[0]["batch_size"]
    length = len(joint) // seeds
    part = joint.subset(slice(length))
    draws = [draw_epoch(part, config, epoch) for config in configs]
    draws = [(order + seed * length, *rest) for seed, (order, *rest) in enumerate(draws)]
    draws = [interleave(columns, batch_size) for columns in zip(*draws, strict=True)]
    for images, labels in prepare(joint, *draws, seeds * batch_size, configs[0], device):
        yield images.unflatten(0, (seeds, -1)), labels.unflatten(0, (seeds, -1))


def interleave(columns, batch_size):
    """The first batch of every column, then the second of every one, ...; None where unused."""
    if columns[0] is None:
        return None
    split = zip(*(column.split(batch_size) for column in columns), strict=True)
    return torch.cat([batch for together in split for batch in together])


def optimizer_state_of(optimizer, position):
    """The state_dict that the optimizer of one seed alone would have."""
    whole = optimizer.state_dict()
    states = {
        number: {k: v.clone() if k == "step" else v[position].clone() for k, v in state.items()}
        for number, state in whole["state"].items()
    }
    return {"state": states, "param_groups": whole["param_groups"]}
