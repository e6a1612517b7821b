"""What a training prints: its layers before it starts, and how far it is."""

import os
import sys
import time

import torch
from torch import nn
from tqdm import tqdm

from models import count_parameters, evaluating
from outcome import best_of
from tracking import device_name


class Progress:
    """A bar with epoch, loss, validation accuracy, best and time left; without a terminal a line an
    epoch, free of control characters. `steps` are those of an epoch, `of` is what the numbers are
    of."""

    def __init__(self, epochs, steps, history, shows=True, of=""):
        self.shows, self.epochs, self.of = shows, epochs, of
        self.start, self.done = time.perf_counter(), len(history)
        self.bar = tqdm(
            total=epochs * steps, initial=len(history) * steps,
            disable=None if shows and has_width() else True, dynamic_ncols=True, file=sys.stderr,
            bar_format="{desc}{percentage:3.0f}% |{bar}| {remaining} left{postfix}",
        )  # fmt: skip

    def watch(self, batches, epoch, check=lambda: None):
        """The batches of an epoch, counted as they pass; `check()` comes before each."""
        self.bar.set_description(f"epoch {epoch}/{self.epochs}{self.of} ", refresh=False)
        for images, labels in batches:
            check()
            yield images, labels
            self.bar.update()

    def report(self, history):
        row, best = history[-1], best_of(history)
        text = f"loss {row['train/loss']:.4f}, val {row['val/accuracy']:.4f}"
        text += f", best {best['val/accuracy']:.4f}"
        self.bar.set_postfix_str(text)
        if self.bar.disable and self.shows:
            elapsed = time.perf_counter() - self.start
            left = elapsed / (row["epoch"] - self.done) * (self.epochs - row["epoch"])
            done = f"epoch {row['epoch']}/{self.epochs}{self.of}"
            print(f"{done}: {text}, {left:.0f} s left", flush=True)

    def close(self):
        self.bar.close()


def has_width():
    """Whether a bar has room on stderr: some terminals say that they have no columns."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):  # no terminal, or a notebook's: tqdm knows what to do
        return True


def announce(device, table, folder):
    """Print what trains where: the device and its threads, the layers, the run folder."""
    print(f"device: {device_name(device)}, threads: {torch.get_num_threads()}\n{table}")
    print(f"run folder: {folder}", flush=True)


def layer_table(model, image_shape):
    """A text table of the layers that hold weights: name, output shape, parameters.

    `image_shape` is (C, H, W). Runs one blank image through the network.
    """
    rows = []

    def note(name):
        def hook(module, inputs, output):
            shape = " x ".join(str(size) for size in output.shape[1:])
            rows.append((name, type(module).__name__, shape, count_parameters(module)))

        return hook

    leaves = [(name, m) for name, m in model.named_modules() if not list(m.children())]
    drawn = [(n, m) for n, m in leaves if count_parameters(m) or isinstance(m, nn.MaxPool2d)]
    hooks = [module.register_forward_hook(note(name)) for name, module in drawn]
    reference = next(model.parameters())
    with torch.no_grad(), evaluating(model):
        model(reference.new_zeros(1, *image_shape))
    for hook in hooks:
        hook.remove()
    rows.append(("total", "", "", count_parameters(model)))
    lines = [f"{'layer':<24}{'type':<14}{'output':<18}{'parameters':>12}"]
    lines += [f"{name:<24}{kind:<14}{shape:<18}{count:>12,}" for name, kind, shape, count in rows]
    return "\n".join(lines)
