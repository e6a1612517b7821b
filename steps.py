"""The steps of an epoch: one update of the weights, and all those over the training images."""

import math
import time

import torch

from devices import uses_bfloat16
from loss import mean_losses


def plain_step(model, optimizer, config, teacher=None):
    """step(images, labels) -> (loss, number of correct predictions), after one update.

    With a `teacher` the targets are its probabilities, the labels are counted alone.
    """
    device = next(model.parameters()).device
    forward = model
    if uses_bfloat16(config, device):
        forward = torch.autocast(device.type, torch.bfloat16)(model)

    def step(images, labels):
        logits = forward(images).float()  # a loss in bfloat16 is 0 where the model is sure
        targets = teacher(images) if teacher else labels
        loss = mean_losses(logits, targets, config["label_smoothing"])
        loss.backward()
        optimizer.found_inf = not_finite(loss)  # then it leaves the weights as they are
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()

    return step


def not_finite(loss):
    """1 or 0 as a float tensor, which torch's fused optimizers ask before they update."""
    return (~loss.detach().isfinite()).float()


def batch_sizes(length, batch_size):
    """The images of every step of an epoch, over all processes."""
    return [min(batch_size, length - start) for start in range(0, length, batch_size)]


def train_epoch(step, batches, schedule, sizes=None):
    """One pass over `batches`; (losses (steps,) in nats, means over its images as metrics).

    The images are met as trained: augmented, with dropout. Ends early where a loss is not finite;
    on a GPU, where asking would stall every step, that is seen at the end. A stack of S networks
    has losses (steps, S), and lists as metrics. `sizes` are the images of every step, where
    `batches` are shares of them.
    """
    start, losses, hits, own_sizes = time.perf_counter(), [], [], []
    for images, labels in batches:
        schedule.step()
        loss, correct = step(images, labels)
        losses.append(loss)
        hits.append(correct)
        own_sizes.append(labels.shape[-1])
        if loss.device.type == "cpu" and not math.isfinite(loss.sum()):
            break
    sizes = (sizes or own_sizes)[: len(losses)]
    losses, hits, count = torch.stack(losses).cpu(), torch.stack(hits).cpu(), sum(sizes)
    weights = torch.tensor(sizes, dtype=torch.float64) / count
    metrics = {
        "train/loss": torch.tensordot(weights, losses.double(), dims=1).tolist(),
        "train/accuracy": (hits.sum(0).double() / count).tolist(),
    }
    return losses, metrics | {"train/images_per_second": count / (time.perf_counter() - start)}


def check_finite(losses, model, epoch, schedule, of=""):
    """Raise ValueError where a loss of the epoch's steps (steps,), or a weight after it, is not
    finite; `of` says whose, where several are trained."""
    good = losses.isfinite()
    if good.all() and all(parameter.isfinite().all() for parameter in model.parameters()):
        return
    number = int((~good).nonzero()[0, 0]) if not good.all() else len(losses) - 1
    lr = schedule.lr_of(schedule.taken - len(losses) + number)
    what = f"the loss{of} is {losses[number].item()} in epoch {epoch}, step {number + 1}"
    if good.all():
        what = f"weights{of} are no longer finite after epoch {epoch}"
    raise ValueError(
        f"{what}, at learning rate {lr:g}: lower --lr"
        + ("; the checkpoints of the epochs before are whole" if epoch > 1 else "")
    )
