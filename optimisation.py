"""The optimizer and the learning rate of every step."""

import math

import torch


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

    def lr_of(self, taken):
        """The learning rate of the step that `taken` steps precede."""
        return self.lr * schedule_factor(self.kind, taken, self.total, self.warmup)

    def step(self):
        lr = self.lr_of(self.taken)
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
