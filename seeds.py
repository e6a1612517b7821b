"""All seeds of an MLP trained at once: their weights stacked, one optimizer over the stack.

Axis letters: S seeds, n images of a batch, K classes.
"""

import copy
import math
import time
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from tqdm import tqdm

from compiled import make_step, mean_losses
from dataset import batches, derive_seed, load_datasets
from evaluate import evaluate
from models import MLP, SkipMLP, build_model
from tracking import Tracker, open_run, write_manifest
from training import (
    Schedule,
    check_finite,
    choose_device,
    keep_on,
    make_optimizer,
    save,
    threads_restored,
)


class Stack(nn.Module):
    """Networks of one shape as one: images (S, n, ...) -> logits (S, n, K), a network a seed."""

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

        weights = dict(zip(self.names, self.weights, strict=True))
        return vmap(one, randomness="different")(weights, images)

    def weights_of(self, position):
        """The state_dict of the network of one seed."""
        return {
            n: w[position].detach().clone() for n, w in zip(self.names, self.weights, strict=True)
        }


def stacked_step(stack, optimizer, config):
    """step(images, labels) -> (losses (S,), correct predictions (S,)), after one update of all."""

    def step(images, labels):
        logits = stack(images)
        losses = mean_losses(logits, labels, config["label_smoothing"])
        losses.sum().backward()  # the weights of a seed see the mean loss of that seed alone
        optimizer.step()
        optimizer.zero_grad()
        return losses.detach(), (logits.detach().argmax(2) == labels).sum(1)

    return step


def can_stack(config):
    """Whether `train_seeds` takes this config: an MLP that starts afresh."""
    return config["model"]["kind"] in ("mlp", "skip_mlp") and config["resume"] == "none"


@threads_restored()
def train_seeds(configs):
    """Train one network a config, which differ in seed and run folder, as `train` would.

    Leaves in every run folder what `train` leaves there, so that a run that resumes it finds its
    work done. Order, initial weights and augmentation are those of the single run of that seed;
    dropout draws others. Computes in float32 on every device. TensorBoard and W&B are written at
    the end; until then the checkpoints hold the history.
    """
    config, device = dict(configs[0]), choose_device(configs[0]["device"])
    sets = [[keep_on(device, s) for s in load_datasets(c)[:2]] for c in configs]
    models = [build_model(c).to(device) for c in configs]
    assert all(isinstance(model, MLP | SkipMLP) for model in models)
    if device.type == "cpu":
        torch.set_num_threads(1)  # as in `train`: two are twice as fast or ten times as slow
    stack = Stack(models)
    optimizer = make_optimizer(stack, config)
    schedule = Schedule(optimizer, math.ceil(len(sets[0][0]) / config["batch_size"]), config)
    dealt = (next(batches(s[0], c, 1)) for s, c in zip(sets, configs, strict=True))
    images, labels = (torch.stack(part) for part in zip(*dealt, strict=True))
    plain = stacked_step(stack, optimizer, config)
    step = make_step(plain, stack, optimizer, images, labels, schedule.total, config)
    configs = [c | {"compile": config["compile"]} for c in configs]
    for c, (train_set, _) in zip(configs, sets, strict=True):
        write_manifest(open_run(c), c, train_set, device)
    histories = [[] for _ in configs]
    for epoch in tqdm(range(1, config["epochs"] + 1), f"{len(configs)} seeds", disable=None):
        torch.manual_seed(derive_seed(config["seed"], "dropout", epoch))
        stack.train()
        rows = train_epoch(step, sets, configs, schedule, epoch)
        lr = optimizer.param_groups[0]["lr"]
        for position, history in enumerate(histories):
            check_finite(rows[position]["train/loss"], epoch, lr)
            models[position].load_state_dict(stack.weights_of(position))
            val = evaluate(models[position], sets[position][1])
            val = {"train/lr": lr, "val/loss": val["loss"], "val/accuracy": val["accuracy"]}
            history.append({"epoch": epoch} | rows[position] | val)
            state = {
                "model": models[position].state_dict(),
                "optimizer": optimizer_state_of(optimizer, position),
                "scheduler": schedule.state_dict(),
                "history": history,
                "wandb_id": None,
            }
            save(Path(configs[position]["run_dir"]), state, configs[position])
    for c, history in zip(configs, histories, strict=True):
        tracker = Tracker(Path(c["run_dir"]), c, [])
        for row in history:
            tracker.log({key: value for key, value in row.items() if key != "epoch"}, row["epoch"])
        tracker.close()


def train_epoch(step, sets, configs, schedule, epoch):
    """One pass of every seed over its images in its order; a row of metrics a seed."""
    total = correct = torch.zeros(len(sets), device=sets[0][0].images.device)
    count, start = 0, time.perf_counter()
    dealt = [batches(s[0], c, epoch) for s, c in zip(sets, configs, strict=True)]
    for together in zip(*dealt, strict=True):
        images, labels = (torch.stack(part) for part in zip(*together, strict=True))
        schedule.step()
        losses, hits = step(images, labels)
        total, correct = total + losses * labels.shape[1], correct + hits
        count += labels.shape[1]
    rate = count / (time.perf_counter() - start)
    return [
        {"train/loss": loss, "train/accuracy": share, "train/images_per_second": rate}
        for loss, share in zip((total / count).tolist(), (correct / count).tolist(), strict=True)
    ]


def optimizer_state_of(optimizer, position):
    """The state_dict that the optimizer of one seed alone would have."""
    whole = optimizer.state_dict()
    states = {
        number: {k: v.clone() if k == "step" else v[position].clone() for k, v in state.items()}
        for number, state in whole["state"].items()
    }
    return {"state": states, "param_groups": whole["param_groups"]}
