"""All seeds of an MLP trained at once: their weights stacked, one optimizer over the stack.

Axis letters: S seeds, n images of a batch, K classes.
"""

import copy
import math
import multiprocessing
import signal
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.modules.dropout import _DropoutNd

from checkpoint import CheckpointWriter
from checks import memory_bytes
from compiled import WORTH_IT, make_step
from dataset import draw_epoch, load_datasets, prepare
from devices import choose_device, keep_on, threads_restored, uses_bfloat16
from evaluate import as_metrics, evaluate
from interruption import end_with_parent, stop_requests
from loss import mean_losses
from models import MLP, SkipMLP, build_model
from norms import Norms
from optimisation import Schedule, make_optimizer
from progress import Progress
from steps import (
    check_finite,
    not_finite,
    train_epoch,
)
from teacher import load_teacher
from tracking import Tracker, only_writer
from training import check_classes, memory_errors_explained, open_with_checkpoint


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


def stacked_step(stack, optimizer, config, teachers):
    """step(images, labels) -> (losses (S,), correct predictions (S,)), after one update of all.

    `teachers` has one of `load_teacher` a seed, None where there is none.
    """
    bfloat16 = uses_bfloat16(config, next(stack.parameters()).device)

    def step(images, labels):
        logits = stack(images.bfloat16() if bfloat16 else images).float()
        targets = labels
        if teachers[0]:
            targets = torch.stack([t(i) for t, i in zip(teachers, images, strict=True)])
        losses = mean_losses(logits, targets, config["label_smoothing"])
        losses.sum().backward()  # the weights of a seed see the mean loss of that seed alone
        optimizer.found_inf = not_finite(losses.sum())
        optimizer.step()
        optimizer.zero_grad()
        return losses.detach(), (logits.detach().argmax(2) == labels).sum(1)

    return step


def can_stack(config):
    """Whether `train_seeds` takes this config: that of an MLP without dropout, whose masks would
    depend on which seeds are trained together, and without what keeps statistics."""
    if config["model"]["kind"] not in ("mlp", "skip_mlp"):
        return False
    model = build_model(config)
    draws = any(isinstance(module, _DropoutNd) for module in model.modules())
    return not draws and not any(True for _ in model.buffers())


def fit_together(configs):
    """Whether the images of all seeds fit in the memory, where a stack has them side by side.
    Prints what was loaded, once for all seeds."""
    train_set = load_datasets(configs[0] | {"deskew": False})[0]  # as large, sooner
    return len(configs) * train_set.images.nbytes < memory_bytes() / 2


def train_seeds(configs):
    """Train one network a config, which differ in seed and run folder, as `train` would.

    Leaves in every run folder what `train` leaves there, so that a run that resumes it finds its
    work done. Order, initial weights and augmentation are those of the single run of that seed, the
    numbers within rounding. TensorBoard is written at the end, and W&B by the single runs that
    follow; until then the checkpoints hold the history.

    On a CPU the seeds are dealt to processes of one thread and one stack each, one a core, where
    the run is long enough to pay for starting them.
    """
    workers = min(count_workers(configs[0]), len(configs))
    if workers == 1:
        return train_stack(configs)
    parts = [configs[first::workers] for first in range(workers)]
    folder = Path(configs[0]["run_dir"]).parent
    with stop_requests(folder) as check, pool_of(workers) as pool:
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
            way_out = f"--resume {folder} goes on"
            if not any(folder.glob("seed_*")):  # none had begun, and the folder will be removed
                way_out = "A script of your own is a file with main under if __name__ == '__main__'"
            raise ValueError(
                f"a process that trained some of the seeds was killed; was the memory enough? "
                f"{way_out}"
            ) from None
        finally:
            for child in multiprocessing.active_children() if running else ():
                child.terminate()  # others end by themselves, and clean up


def pool_of(workers):
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=end_with_parent)


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
    """How many processes train the seeds: on a CPU one a core, where the run is long enough to pay
    for starting them. Threads in step with one another lose more than they win on networks this
    small."""
    with redirect_stdout(None):
        train_set = load_datasets(config | {"deskew": False})[0]  # as many, sooner
    images = len(train_set) * config["epochs"]
    pays = images >= WORTH_IT["cpu"] * config["batch_size"]
    on_cpu = choose_device(config["device"]).type == "cpu"
    return torch.get_num_threads() if pays and on_cpu else 1


@threads_restored()
def train_stack(configs, shows=True):
    """The seeds of `train_seeds` as one stack; prints how far it is when it `shows`."""
    config, device = dict(configs[0]), choose_device(configs[0]["device"])
    with redirect_stdout(None):  # the single runs that follow say it all
        members = [Member(c, device) for c in configs]
    if device.type == "cpu":
        torch.set_num_threads(1)  # as in `train`: two are twice as fast or ten times as slow
    stack = Stack([member.model for member in members])
    optimizer = make_optimizer(stack, config)
    schedule = Schedule(optimizer, members[0].steps, config)
    joint = keep_on(device, chained([member.train_set for member in members]))
    images, labels = next(stacked_batches(joint, configs, 1, device))
    plain = stacked_step(stack, optimizer, config, [member.teacher for member in members])
    step = make_step(plain, stack, optimizer, images, labels, schedule.total, config)

    def states():
        """Of every seed, what its own run would keep of optimizer and schedule."""
        for position in range(len(members)):
            state = optimizer_state_of(optimizer, position)
            yield {"optimizer": state, "scheduler": schedule.state_dict()}

    with ExitStack() as held:
        held.enter_context(memory_errors_explained(config))
        check = held.enter_context(stop_requests(Path(config["run_dir"]).parent))
        for member, state in zip(members, states(), strict=True):
            member.config["compile"] = config["compile"]
            held.enter_context(only_writer(member.open_folder(state, device)))
        means, of = [], f", mean of {len(members)} seeds" if len(members) > 1 else ""
        progress = Progress(config["epochs"], members[0].steps, means, shows, of)
        held.callback(progress.close)
        for epoch in range(1, config["epochs"] + 1):
            stack.train()
            dealt = stacked_batches(joint, configs, epoch, device)
            losses, metrics = train_epoch(step, progress.watch(dealt, epoch, check), schedule)
            metrics["train/lr"] = optimizer.param_groups[0]["lr"]
            for position, member in enumerate(members):  # before any is saved: all stopped there
                member.model.load_state_dict(stack.weights_of(position))
                whose = f" of seed {member.config['seed']}"
                check_finite(losses[:, position], member.model, epoch, schedule, whose)
            for position, (member, state) in enumerate(zip(members, states(), strict=True)):
                own = {k: v[position] if isinstance(v, list) else v for k, v in metrics.items()}
                member.end_epoch(own, state)
            last = [member.history[-1] for member in members]
            mean = {key: fmean(row[key] for row in last) for key in last[0]}
            means.append(mean | {"epoch": epoch})
            progress.report(means)
        for member in members:
            member.write_events()


class Member:
    """A seed of a stack: its network, its images, and what goes into its run folder."""

    def __init__(self, config, device):
        self.config, self.start = dict(config), time.perf_counter()
        self.train_set, val_set, _ = load_datasets(config)
        check_classes(self.train_set)
        self.about, self.val_set = self.train_set.about(), keep_on(device, val_set)
        self.teacher = load_teacher(config, self.about, device)
        self.model = build_model(config).to(device)
        assert isinstance(self.model, MLP | SkipMLP)
        self.steps = math.ceil(len(self.train_set) / config["batch_size"])  # an epoch
        self.norms = Norms(self.model, self.train_set, self.steps)
        self.history, self.lengths = [], {}  # lengths: epoch -> norms of weights and gradients

    def open_folder(self, state, device):
        """The run folder, made with a checkpoint of epoch 0 in it."""
        folder = open_with_checkpoint(self.config, self.whole(state), device)
        self.writer = CheckpointWriter(folder, self.config)
        return folder

    def whole(self, state):
        """A checkpoint's content, of the `state` of optimizer and schedule."""
        return state | {
            "model": self.model.state_dict(),
            "history": self.history,
            "wandb_id": None,
            "seconds": time.perf_counter() - self.start,
            "data": self.about,
            "teacher": self.teacher and self.teacher.sha256,
        }

    def end_epoch(self, metrics, state):
        """Judge the network, and keep what it has reached."""
        epoch = len(self.history) + 1
        metrics |= as_metrics(evaluate(self.model, self.val_set), "val")
        self.history.append({"epoch": epoch} | metrics)
        self.lengths[epoch] = self.norms(epoch)
        self.writer.save(self.whole(state))

    def write_events(self):
        """TensorBoard's file and metrics.csv, of all epochs at once."""
        norms = self.lengths.__getitem__
        tracker = Tracker(Path(self.config["run_dir"]), self.config, [], norms=norms, wandb=False)
        for row in self.history:
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
