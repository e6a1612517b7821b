"""Every data set as one uint8 tensor with labels, and batches of it, augmented on the device.

Axis letters: N images, C channels, H x W pixels.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from boxes import FILE, load_boxes
from config import defaults
from distributed import in_turn, own_share, world
from images import load_digits, load_folder, load_imagenette, load_mnist

BLOCK_BYTES = {"cpu": 2**21, "cuda": 2**28}  # float pixels made at once: what a cache holds


@dataclass(frozen=True)
class ImageDataset:
    """Images uint8 (N, C, H, W) with labels int64 (N,), on one device.

    `mean` and `std` are per channel, of all training images, in [0, 1].
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: list
    mean: list
    std: list
    name: str = "images"

    def __len__(self):
        return len(self.labels)

    def subset(self, indices):
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def to(self, device):
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def about(self):
        """What a network trained on this must know of it: (C, H, W), classes, normalisation."""
        values = {"classes": list(self.classes), "mean": list(self.mean), "std": list(self.std)}
        return values | {"shape": list(self.images.shape[1:])}

    def normalise(self, images):
        """uint8 or float pixels in [0, 255] (n, C, H, W) -> float32 of mean 0 and deviation 1."""
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1) * 255
        scale = 1 / (torch.tensor(self.std, device=images.device).view(-1, 1, 1) * 255)
        return images.to(torch.float32, copy=True).sub_(mean).mul_(scale)


LOADERS = {
    "mnist": load_mnist,
    "cifar10": load_folder,
    "imagenette": load_imagenette,
    "digits": load_digits,
    "image_folder": load_folder,
}


def load_datasets(config):
    """(train_set, val_set, test_set) of config["dataset"].

    The validation set is a share of the training images, drawn by config["seed"] alone. Raises
    FileNotFoundError or ValueError, saying what is missing and what to do. Prints two lines about
    what was loaded.
    """
    config = defaults | config
    splits, classes, mean, std = in_turn(LOADERS[config["dataset"]], config)
    whole, test_set = (
        ImageDataset(
            shrink(images, config["image_size"]), labels, classes, mean, std, config["dataset"]
        )
        for images, labels in (splits["train"], splits["test"])
    )
    held_out = round(config["val_fraction"] * len(whole))
    if not 0 < held_out < len(whole):
        raise ValueError(
            f"val_fraction {config['val_fraction']} of {len(whole)} training images leaves "
            f"{held_out} for validation and {len(whole) - held_out} for training; each needs one"
        )
    order = torch.randperm(len(whole), generator=make_generator(config["seed"], "split"))
    if config["hold_out_boxed"]:
        order = order[~torch.isin(order, boxed_images(config))]
    val_indices, train_indices = order[:held_out].sort()[0], order[held_out:].sort()[0]
    sets = whole.subset(train_indices), whole.subset(val_indices), test_set
    print(describe(*sets))
    return sets


def boxed_images(config):
    """Positions of the training images whose objects are boxed; FileNotFoundError without boxes."""
    boxes = load_boxes(config["data_dir"], "train") if config["dataset"] == "imagenette" else {}
    if not boxes:
        raise FileNotFoundError(
            f"hold_out_boxed: {config['dataset']} has no boxes, those of imagenette are in "
            f"{Path(config['data_dir']) / FILE}: put the file there, or leave hold_out_boxed False"
        )
    return torch.tensor(sorted(boxes))


def shrink(images, size):
    """Images of more than `size` pixels a side made that small; 0 leaves them."""
    if not 0 < size < images.shape[-1]:
        return images
    blocks = images.split(4096)
    return torch.cat(
        [F.interpolate(b, (size, size), mode="bilinear", antialias=True) for b in blocks]
    )


def make_generator(*key):
    """A CPU generator that is a function of `key` (whole numbers and words) and of nothing else."""
    return torch.Generator().manual_seed(derive_seed(*key))


def derive_seed(*key):
    words = [part if isinstance(part, int) else int.from_bytes(part.encode()) for part in key]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def batches(dataset, config, epoch, device=None):
    """Batches (images float32 (n, C, H, W), labels (n,)) of one training epoch.

    Order and augmentation depend on (seed, epoch) alone, not on the device. Of several processes
    each has its share of every batch.
    """
    draws, batch_size = draw_epoch(dataset, config, epoch), config["batch_size"]
    if world() > 1:
        rows, _ = own_share(len(dataset), batch_size)
        draws = [None if draw is None else draw[rows] for draw in draws]
    return prepare(dataset, *draws, batch_size // world(), config["cutout"], device)


def draw_epoch(dataset, config, epoch):
    """(order (N,), warps (N, 2, 3) or None, cutout centres (N, 2) or None) of one epoch."""
    generator = make_generator(config["seed"], "epoch", epoch)
    order = torch.randperm(len(dataset), generator=generator)
    size = dataset.images.shape[-2:]
    return order, *draw_augmentation(len(dataset), size, config, generator)


def prepare(dataset, order, warps, centres, batch_size, cutout, device=None):
    """Batches of the images in `order`, augmented and normalised.

    Several are gathered at once where the data set is, made on `device`, and handed out as slices.
    """
    home = dataset.images.device
    device = device or home
    batch_bytes = 4 * batch_size * dataset.images[0].numel()
    at_once = max(1, BLOCK_BYTES.get(device.type, 2**20) // batch_bytes) * batch_size
    order = order.to(home)  # whole: a copy inside the loop would wait for the GPU
    warps, centres = (None if t is None else t.to(device) for t in (warps, centres))
    for start in range(0, len(order), at_once):
        block = slice(start, start + at_once)
        rows = order[block]
        images = dataset.images.index_select(0, rows).to(device)  # a third of what [rows] takes
        labels = dataset.labels[rows].to(device)
        if warps is not None:
            images = warp(images, warps[block])
        images = dataset.normalise(images)
        if centres is not None:
            cut_out(images, centres[block], cutout)
        yield from zip(images.split(batch_size), labels.split(batch_size), strict=True)


def draw_augmentation(count, size, config, generator):
    """Random inverse affine maps (count, 2, 3) and cutout centres (count, 2), or None where unused.

    The maps are in the units of `torch.nn.functional.affine_grid`: the picture spans [-1, 1].
    """
    height, width = size
    uniform = torch.rand(count, 8, generator=generator)  # drawn always: one key never moves another
    signed = uniform * 2 - 1
    angle = torch.deg2rad(signed[:, 0] * config["rotate"])
    scale = 1 + signed[:, 1] * config["zoom"]
    pixels = torch.round(signed[:, 2:4] * (config["shift"] + 0.5 - 1e-6))  # whole: nothing blurs
    mirror = torch.where(uniform[:, 4] < 0.5, -1.0, 1.0) if config["flip"] else torch.ones(count)
    side = torch.sqrt(config["crop"] + (1 - config["crop"]) * uniform[:, 5])  # of the kept square
    centres = (uniform[:, 6:8] * torch.tensor([height + 1.0, width + 1.0])).floor().long()
    moved = pixels * torch.tensor([2 / width, 2 / height]) if config["shift"] else pixels * 0
    if config["crop"] < 1:  # the kept square lies anywhere inside the picture
        moved = moved + (1 - side)[:, None] * (uniform[:, 6:8] * 2 - 1)
    warps = affine_maps(angle, scale / side, moved, mirror, height / width)
    unused = not (config["rotate"] or config["zoom"] or config["shift"] or config["flip"])
    return (
        None if unused and config["crop"] == 1 else warps,
        centres if config["cutout"] else None,
    )


def affine_maps(angle, scale, moved, mirror, aspect=1.0):
    """Maps (n, 2, 3) from output to input coordinates: turn by `angle` (radians), enlarge by
    `scale`, mirror where -1, then look `moved` (n, 2) away from the centre."""
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    rows = [cos * mirror, -sin * aspect, moved[:, 0], sin / aspect * mirror, cos, moved[:, 1]]
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def warp(images, maps):
    """Sample images (n, C, H, W) at affine maps (n, 2, 3), bilinear, edges mirrored: float32."""
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(
        images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


def cut_out(images, centres, side):
    """Set a square of `side` pixels around each centre (n, 2) to 0, the mean, in place.

    DeVries and Taylor 2017: the square may reach over the edge.
    """
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) - centres[:, :1] + side // 2
    columns = torch.arange(width, device=images.device) - centres[:, 1:] + side // 2
    hidden = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[
        :, None
    ]
    images.masked_fill_(hidden[:, None], 0.0)


def describe(train_set, val_set, test_set):
    """Two lines: which data, how many images of which shape, how they are split."""
    shape = " x ".join(map(str, train_set.images.shape[1:]))
    megabytes = math.ceil(sum(s.images.nbytes for s in (train_set, val_set, test_set)) / 1e6)
    return (
        f"{train_set.name}: {len(train_set):,} training, {len(val_set):,} validation, "
        f"{len(test_set):,} test images\n  of {shape}, {len(train_set.classes)} classes, "
        f"{megabytes} MB"
    )
