"""Loss, accuracy and confusion matrix of a network on a data set.

python evaluate.py runs/exercise_1_1/...                      # its best.pt on its test images
python evaluate.py runs/.../checkpoints/last.pt --split val
python evaluate.py runs/... --dataset image_folder --data_dir pictures
python evaluate.py runs/exercise_1_1/*                        # several side by side
python evaluate.py runs/exercise_1_3/... --mirror             # every image and its mirror image
"""

from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import nn
from tqdm import tqdm

from checkpoint import data_dir_of, find_checkpoint, load_trained
from dataset import ImageDataset, load_as_trained
from devices import choose_device, freed_memory_kept, keep_on
from distributed import first_only, joined, rank, summed, world
from exits import exit_cleanly, exit_together, read_flags
from loss import mean_losses
from models import convolves, evaluating
from summary import wilson
from tracking import check_same_data

PIXELS = 2**20  # of the images that are judged at once: the maps of more take gigabytes
PATIENCE = 3  # seconds of judging without a word


@torch.no_grad()
def evaluate(model: nn.Module, dataset: ImageDataset, batch_size: int | None = None) -> dict:
    """{"loss": mean loss per image (loss.py), "accuracy": share in [0, 1], "confusion": (K, K)}.

    Rows of the confusion matrix (int64, on the CPU) are true classes, columns predicted ones. Runs
    in eval mode on the model's device, and leaves the model in the mode it found. Of several
    processes, which all have to call it, each takes a share, and every image counts once.
    `batch_size` is 1024 for images of 32 pixels a side and less, and falls with their area. Raises
    ValueError where there is no image, where the batch size is less than 1, and where the network
    does not have one output a class. The loss is in nats.
    """
    if not len(dataset) or (batch_size is not None and batch_size < 1):
        raise ValueError(f"nothing to judge: {len(dataset)} images in batches of {batch_size}")
    device = next(model.parameters()).device
    num_classes = len(dataset.classes)
    double = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have none
    loss = torch.zeros((), dtype=double, device=device)
    confusion = torch.zeros(num_classes**2, dtype=torch.int64, device=device)
    first, last = (len(dataset) * end // world() for end in (rank(), rank() + 1))
    with evaluating(model), freed_memory_kept() if convolves(model) else nullcontext():
        for logits, labels in predict(model, dataset, first, last, batch_size):
            check_outputs(logits, dataset)
            loss += len(labels) * mean_losses(logits, labels)
            pairs = labels * num_classes + logits.argmax(1)
            confusion += torch.bincount(pairs, minlength=num_classes**2)
    summed(loss, confusion)
    confusion = confusion.view(num_classes, num_classes).cpu()
    return {
        "loss": loss.item() / len(dataset),
        "accuracy": confusion.trace().item() / len(dataset),
        "confusion": confusion,
    }


def check_outputs(logits, dataset):
    """Raise ValueError where the logits (n, K') of a network are not one a class."""
    if logits.ndim != 2 or logits.shape[1] != len(dataset.classes):
        raise ValueError(
            f"the network answers an image by {' x '.join(map(str, logits.shape[1:]))} numbers, "
            f"{dataset.name} has {len(dataset.classes)} classes: it needs one number a class"
        )


def as_metrics(result, split):
    """{split/name: value} of what `evaluate` returned, as the loop logs it: all but the matrix."""
    return {f"{split}/{name}": value for name, value in result.items() if name != "confusion"}


@torch.no_grad()
def predict(model, dataset, first, last, batch_size=None):
    """Yield (logits, labels) of the images from `first` to before `last`, in batches; on a terminal
    with a bar, where it takes long."""
    device = next(model.parameters()).device
    batch_size = batch_size or max(1, min(1024, PIXELS // prod(dataset.images.shape[-2:])))
    starts = range(first, last, batch_size)
    off = True if rank() else None  # None: off without a terminal
    for start in tqdm(starts, "judging", leave=False, delay=PATIENCE, disable=off):
        rows = slice(start, min(start + batch_size, last))
        images, labels = dataset.images[rows].to(device), dataset.labels[rows].to(device)
        images = dataset.normalise(images).contiguous(memory_format=torch.channels_last)
        yield model(images).float(), labels


class Mirrored(nn.Module):
    """The mean logits of every image and its mirror image: images (N, C, H, W) -> (N, K)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (self.model(images) + self.model(images.flip(-1))) / 2


def report(result, classes):
    """Loss and accuracy with its 95 % interval (Wilson 1927), a row a class, the matrix."""
    confusion, total = result["confusion"], int(result["confusion"].sum())
    low, high = wilson(int(confusion.trace()), total)
    lines = [
        f"loss {result['loss']:.4f} (mean per image), accuracy {result['accuracy']:.4f} "
        f"({low:.4f} to {high:.4f}), {total:,} images",
        "",
    ]
    wide = max(len("class"), *(len(name) for name in classes))
    lines.append(f"{'class':<{wide}}  images  recall  precision  most often taken for")
    for label, name in enumerate(classes):
        row, hits = confusion[label], int(confusion[label, label])
        count, named = int(row.sum()), int(confusion[:, label].sum())
        wrong = row.clone()
        wrong[label] = 0
        other = f"{classes[int(wrong.argmax())]} ({int(wrong.max())})" if wrong.any() else "-"
        recall, precision = (f"{hits / n:.3f}" if n else "-" for n in (count, named))
        lines.append(f"{name:<{wide}}  {count:>6}  {recall:>6}  {precision:>9}  {other}")
    if len(classes) <= 20:
        cells = [[str(int(value)) for value in row] for row in confusion]
        size = max(len(cell) for row in cells for cell in row)
        lines += ["", "confusion matrix, rows true, columns predicted, classes in the order above"]
        lines += ["  ".join(cell.rjust(size) for cell in row) for row in cells]
    return "\n".join(lines)


def load_judged(flags):
    """(model, data set) that the flags name, the images normalised as the network was trained."""
    path = find_checkpoint(flags.run)
    model, state = load_trained(path)
    chosen = state["config"] | {"data_dir": data_dir_of(state, path)}
    for key in ("dataset", "data_dir"):
        chosen[key] = getattr(flags, key) or chosen[key]
    chosen["data_dir"] = str(Path(chosen["data_dir"]).expanduser())
    if chosen["dataset"] != state["config"]["dataset"]:
        chosen["hold_out_boxed"] = False  # of another there are no boxes
    train_set, val_set, test_set = load_as_trained(chosen, state["data"], path)
    own = chosen["dataset"] == state["config"]["dataset"] and not flags.data_dir
    if own and (chosen["dataset"] == "image_folder" or flags.split != "test"):  # else given as such
        check_same_data(state, path, train_set, "name what to judge by --data_dir")
    return model, {"train": train_set, "val": val_set, "test": test_set}[flags.split]


@dataclass
class Flags:
    run: tyro.conf.Positional[str]
    """a run folder, or a checkpoint"""
    more: tyro.conf.Positional[tuple[str, ...]] = ()
    """more run folders, to compare them all"""
    split: Literal["test", "val", "train"] = "test"
    dataset: str = ""
    """another data set than the one it was trained on, with the same classes"""
    data_dir: str = ""
    """where the data lie, if not where they lay"""
    mirror: bool = False
    """answer by the mean logits of every image and its mirror image"""
    device: str = "auto"
    """cuda when available, then mps, then cpu"""


def main(flags):
    if flags.more:
        for name in ("split", "dataset", "data_dir", "mirror", "device"):
            if getattr(flags, name) != getattr(Flags, name):
                raise ValueError(f"--{name} judges one run: name one, or leave --{name} out")
        from compare import compare  # draws, which one run alone does not wait for

        first_only(compare)([flags.run, *flags.more])
        return
    device = choose_device(flags.device)
    with joined(device):
        model, dataset = load_judged(flags)
        model = Mirrored(model) if flags.mirror else model
        result = evaluate(model.to(device), keep_on(device, dataset))
        print(report(result, dataset.classes))


if __name__ == "__main__":
    exit_together(exit_cleanly(main))(read_flags(Flags))
