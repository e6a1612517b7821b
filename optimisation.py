"""The optimizer and the learning rate of every step."""

import math

import torch

ADAMS = ("adam", "adamw", "muon")  # they share Adam's state


def make_optimizer(model, config):
    """Adam (Kingma, Ba 2015), AdamW (Loshchilov, Hutter 2019), SGD with Nesterov momentum, or Muon.

    Weights that do not require a gradient are left alone.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    settings = {"lr": config["lr"], "weight_decay": config["weight_decay"], "fused": True}
    if config["optimizer"] == "sgd":
        nesterov = config["momentum"] > 0
        settings |= {"momentum": config["momentum"], "nesterov": nesterov}
    elif config["optimizer"] in ADAMS and weights[0].is_cuda:
        settings["capturable"] = True  # its step count lies on the GPU, where a graph can add to it
    if config["optimizer"] == "muon":
        settings["momentum"] = config["momentum"]
    optimizers = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "sgd": torch.optim.SGD,
        "muon": Muon,
    }
    return optimizers[config["optimizer"]](weights, **settings)


# The length of a kernel's step is this times lr times its own length, about what AdamW takes for
# kernels of 3x3 of 256 channels: so one learning rate fits both.
STEP_OF_A_KERNEL = 16


class Muon(torch.optim.AdamW):
    """Muon for the kernels of convolutions, AdamW for all other weights (Jordan et al. 2024).

    The step of a kernel (channels, in_channels, height, width), as a matrix of one row a channel,
    is its Nesterov momentum with all singular values brought near 1, so that no direction is left
    out because its gradients are small. Its length is STEP_OF_A_KERNEL times lr times that of the
    kernel, which stays what it was at the start: the BatchNorm behind it would take any other
    length back (a residual layer's 1x1 shortcut has none, and keeps its length all the same). No
    weight decay reaches a kernel.
    """

    def __init__(self, weights, momentum, **settings):
        super().__init__(weights, **settings)
        self.momentum = momentum
        for kernel in filter(is_kernel, weights):
            self.state[kernel] = {
                "step": torch.zeros(()),  # AdamW looks for it when it loads a checkpoint
                "momentum": torch.zeros_like(kernel),
                "length": kernel.detach().norm(),
            }

    @torch.no_grad()
    def step(self):
        skipped = self.found_inf > 0
        for group in self.param_groups:
            for kernel in group["params"]:
                if is_kernel(kernel):
                    self.move(kernel, STEP_OF_A_KERNEL * group["lr"], skipped)
                    kernel.grad = None  # AdamW passes it by
        super().step()

    def move(self, kernel, share, skipped):
        state = self.state[kernel]
        gradient = kernel.grad.masked_fill(skipped, 0.0)
        state["momentum"].mul_(self.momentum).add_(gradient)
        ahead = gradient + self.momentum * state["momentum"]
        step = orthogonalise(ahead.flatten(1)).view_as(kernel)
        moved = kernel - share * state["length"] * step / (step.norm() + 1e-12)
        kernel.copy_((moved * (state["length"] / moved.norm())).where(~skipped, kernel))


def is_kernel(weight):
    return weight.ndim == 4


def orthogonalise(matrix):
    """A matrix (m, n) with its singular values brought to between 0.7 and 1.2, its vectors kept.

    Five steps of a quintic Newton-Schulz iteration with the coefficients of Jordan et al. 2024, on
    a GPU in bfloat16 as there. The smallest of a badly conditioned matrix may stay below.
    """
    x = matrix / (matrix.norm() + 1e-12)
    x = x.bfloat16() if x.is_cuda else x
    x = x.T if len(matrix) > matrix.shape[1] else x  # the smaller product
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (2.0315 * square @ square - 4.775 * square) @ x
    return (x.T if len(matrix) > matrix.shape[1] else x).to(matrix.dtype)


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
