"""Every data set as one uint8 tensor with labels, and batches of it, augmented on the device.

Axis letters: N images, C channels, H x W pixels.
"""

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from augmentation import cut_out, draw_augmentation, warp
from boxes import FILE, load_boxes
from checks import data_shape, memory_bytes
from config import defaults
from distributed import in_turn, own_share, world
from images import LOADERS
from mapped import MappedImages
from rules import CONFIG, check_value

BLOCK_BYTES = {"cpu": 2**21, "cuda": 2**28}  # float pixels made at once: what a cache holds
UNEVEN = 1.5  # times as many images of one class as of another are worth a line
IN_MEMORY = 1 / 4  # of the memory: images that take more stay on the disk


@dataclass(frozen=True)
class ImageDataset:
    """Images uint8 (N, C, H, W) with labels int64 (N,) from 0 to len(classes) - 1, on one device.

    `mean` and `std` are per channel, of all training images as they come, in [0, 1]. Images that
    are too many for the memory are MappedImages, which are chosen and shaped like a tensor. Raises
    ValueError for other types and lengths.
    """

    images: torch.Tensor | MappedImages
    labels: torch.Tensor
    classes: list
    mean: list
    std: list
    name: str = "images"

    def __post_init__(self):
        if self.images.dtype != torch.uint8 or len(self.images.shape) != 4:
            raise ValueError(
                f"{self.name}: images must be uint8 of (N, C, H, W), 0 to 255, got "
                f"{self.images.dtype} of {tuple(self.images.shape)}"
            )
        count, channels = self.images.shape[:2]
        if self.labels.dtype != torch.int64 or self.labels.shape != (count,):
            raise ValueError(
                f"{self.name}: {count} images need as many labels, int64, got {self.labels.dtype} "
                f"of {tuple(self.labels.shape)}"
            )
        if {len(self.mean), len(self.std)} != {channels}:
            raise ValueError(
                f"{self.name}: {channels} channels need as many means and deviations, got "
                f"{len(self.mean)} and {len(self.std)}"
            )

    def __len__(self):
        return len(self.labels)

    def subset(self, indices):
        mapped = isinstance(self.images, MappedImages)
        images = self.images.subset(indices) if mapped else self.images[indices]
        return replace(self, images=images, labels=self.labels[indices])

    def sample(self, count):
        """(normalised images, labels) of at most `count`, evenly from all: the first ones of a set
        that was read from folders are of one class."""
        rows = slice(None, None, math.ceil(len(self) / count))
        return self.normalise(self.images[rows]), self.labels[rows]

    def to(self, device):
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def about(self):
        """What a network trained on this must know of it: (C, H, W), classes, normalisation, and
        the `data_sha256` by which it is known again."""
        values = {"classes": list(self.classes), "mean": list(self.mean), "std": list(self.std)}
        return values | {"shape": list(self.images.shape[1:]), "sha256": data_sha256(self)}

    def normalise(self, images):
        """uint8 or float pixels in [0, 255] (n, C, H, W) -> float32, of mean 0 and deviation 1 over
        the training images. Those that `shrink` made smaller deviate less: `std` is that of the
        images before, and one of their pixels is the mean of several."""
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1) * 255
        scale = 1 / (torch.tensor(self.std, device=images.device).view(-1, 1, 1) * 255)
        return images.to(torch.float32, copy=True).sub_(mean).mul_(scale)


def data_sha256(dataset):
    """A SHA-256 of all labels and of evenly spread images, 1,000 to 1,999 of them, or all."""
    step = max(1, len(dataset) // 1000)
    digest = hashlib.sha256(dataset.images[::step].cpu().contiguous().numpy().tobytes())
    digest.update(dataset.labels.cpu().numpy().tobytes())
    return digest.hexdigest()


def load_datasets(config: dict) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
    """(train_set, val_set, test_set) of config["dataset"].

    The validation set is a share of the training images, drawn by config["seed"] alone, unless an
    image folder has one of its own; the test set likewise where a folder has none, then the same
    for all seeds. Raises FileNotFoundError or ValueError, saying what is missing and what to do.
    Prints what was loaded.
    """
    config = defaults | config
    for key in ("dataset", *defaults):
        check_value(key, config.get(key), CONFIG[key])
    known = data_shape(config)  # own pictures need a size
    splits, classes, mean, std = in_turn(LOADERS[config["dataset"]], config)
    given = {
        split: ImageDataset(
            fit_memory(in_shape(images, config)),
            *(labels, classes, mean, std, config["dataset"]),
        )
        for split, (images, labels) in splits.items()
    }
    check_known(given["train"], known, config)
    if "test" not in given:
        share, generator = config["val_fraction"], make_generator("test")
        given["train"], given["test"] = hold_out(given["train"], share, generator)
    if "val" not in given:
        boxed = boxed_images(config) if config["hold_out_boxed"] else ()
        generator = make_generator(config["seed"], "split")
        given["train"], given["val"] = hold_out(
            given["train"], config["val_fraction"], generator, boxed
        )
    sets = given["train"], given["val"], given["test"]
    print(describe_sets(*sets))
    return sets


def check_known(dataset, known, config):
    """Raise ValueError where the images loaded are not `known`, as `data_shape` gives it: the
    network is built to fit that."""
    loaded = tuple(dataset.images.shape[1:]), len(dataset.classes)
    if loaded != known and config["dataset"] != "image_folder":
        both = (loaded, known)
        found, said = (f"{' x '.join(map(str, shape))}, {count} classes" for shape, count in both)
        raise ValueError(
            f"{dataset.name}: the images are {found}, by its line in DATASETS of rules.py they "
            f"would be {said}: correct the line, or what is in {config['data_dir']}"
        )


def load_as_trained(config, about, source):
    """The sets of `load_datasets`, as the network of the checkpoint `source` takes them.

    `about` is what ImageDataset.about said of its training images: the sets are normalised like
    those, and grey where they were. Raises ValueError where classes or size are others.
    """
    sets = load_datasets(config | {"image_size": about["shape"][-1], "deskew": False})
    name, classes, shape = sets[0].name, sets[0].classes, list(sets[0].images.shape[1:])
    if classes != about["classes"]:
        raise ValueError(
            f"{source} knows the classes {', '.join(about['classes'][:12])}; {name} in "
            f"{config['data_dir']} has {', '.join(classes[:12])}: name data of the same"
        )
    in_grey = about["shape"] == [1, *shape[1:]] != shape
    if about["shape"] != shape and not in_grey:
        wanted, there = (" x ".join(map(str, sides)) for sides in (about["shape"], shape))
        raise ValueError(
            f"{source} takes images of {wanted}, those of {name} are {there}: name data of its "
            f"size, or larger pictures"
        )
    images = [to_grey(one.images) if in_grey else one.images for one in sets]
    if config.get("deskew"):
        images = [deskew(one) for one in images]
    known = {"mean": about["mean"], "std": about["std"]}
    return tuple(replace(s, images=i, **known) for s, i in zip(sets, images, strict=True))


def to_grey(images):
    """uint8 images (N, C, H, W) -> (N, 1, H, W), the mean of the channels."""
    blocks = (images[start : start + 4096] for start in range(0, len(images), 4096))
    means = (block.float().mean(1, keepdim=True).round() for block in blocks)
    return torch.cat([mean.to(torch.uint8) for mean in means])


def hold_out(whole, share, generator, left_out=()):
    """(rest, held): a share of the images drawn by `generator`; both without those `left_out`."""
    rest, held = split_positions(len(whole), share, generator, left_out)
    return whole.subset(rest), whole.subset(held)


def split_positions(length, share, generator, left_out=()):
    """(rest, held): positions of so many images, sorted, as `hold_out` divides them."""
    count = round(share * length)
    if not 0 < count < length:
        raise ValueError(
            f"val_fraction {share} of {length} training images leaves "
            f"{count} held out and {length - count} for training; each needs one: choose another "
            f"--val_fraction, or add pictures"
        )
    order = torch.randperm(length, generator=generator)
    order = order[~torch.isin(order, torch.as_tensor(left_out))] if len(left_out) else order
    return order[count:].sort()[0], order[:count].sort()[0]


def fit_memory(images):
    """`images`, or where they are too many for the memory MappedImages of them."""
    return MappedImages(images) if images.nbytes > IN_MEMORY * memory_bytes() else images


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


def in_shape(images, config):
    """uint8 images (N, C, H, W) of the size, and as upright, as the config wants them."""
    images = shrink(images, config["image_size"])
    return deskew(images) if config["deskew"] else images


def deskew(images):
    """Grey images uint8 (N, 1, H, W), sheared until what is bright in them stands upright.

    Every row is moved by its distance from the middle times the slant, the covariance of x and y
    over the variance of y, where the brightness weighs the pixels (second moments: LeCun et al.
    1998). It is at most 1: a line that lies cannot be set up. Raises ValueError for coloured ones.
    In float64, so that the pixels, by which data are known again, are the same on all processors.
    """
    if images.shape[1] != 1:
        raise ValueError(f"deskew is for grey images, these have {images.shape[1]} channels: "
                         f"leave it out")  # fmt: skip
    return torch.cat([_deskew(block) for block in images.split(1024)])


def _deskew(images):
    height, width = images.shape[-2:]
    y, x = (torch.arange(side, dtype=torch.float64) for side in (height, width))
    weights = images[:, 0].double()
    weights /= weights.sum((1, 2), keepdim=True).clamp(min=1)
    rows, along_x = weights.sum(2), weights @ x  # (n, H): the weight of a row, and that times x
    middle_y, middle_x = rows @ y, along_x.sum(1)
    from_y = y - middle_y[:, None]
    covariance = (from_y * (along_x - middle_x[:, None] * rows)).sum(1)
    variance = (from_y**2 * rows).sum(1)
    slant = (covariance / variance.clamp(min=1e-9)).clamp(-1, 1)
    maps = torch.eye(2, 3, dtype=torch.float64).repeat(len(images), 1, 1)  # the picture: [-1, 1]
    maps[:, 0, 1] = slant * height / width
    maps[:, 0, 2] = slant * (height - 1 - 2 * middle_y) / width
    return warp(images, maps).round().to(torch.uint8)


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
    return prepare(dataset, *draws, batch_size // world(), config, device)


def draw_epoch(dataset, config, epoch):
    """(order (N,), then warps, elastic fields and cutout centres, or None) of one epoch."""
    generator = make_generator(config["seed"], "epoch", epoch)
    order = torch.randperm(len(dataset), generator=generator)
    mirrored = draw_sides(len(dataset), config, epoch)[order] if config["flip"] else None
    size = dataset.images.shape[-2:]
    return order, *draw_augmentation(len(dataset), size, config, generator, mirrored)


def draw_sides(count, config, epoch):
    """Which of all images (count,) are mirrored: a random half, in the next epoch the other half.

    Two epochs show both sides of every image, where independent draws show every second image twice
    from one side (alternating flip: Jordan 2024).
    """
    first = torch.rand(count, generator=make_generator(config["seed"], "flip")) < 0.5
    return first ^ (epoch % 2 == 0)


def prepare(dataset, order, warps, fields, centres, batch_size, config, device=None):
    """Batches of the images in `order`, augmented and normalised.

    Several are gathered at once where the data set is, made on `device`, and handed out as slices.
    """
    device = device or dataset.images.device
    batch_bytes = 4 * batch_size * dataset.images[0].numel()
    at_once = max(1, BLOCK_BYTES.get(device.type, 2**20) // batch_bytes) * batch_size
    draws = (None if draw is None else draw.to(device) for draw in (warps, fields, centres))
    warps, fields, centres = draws
    start = 0
    for images, labels in fetch(dataset, order, at_once, device):
        block = slice(start, start := start + len(labels))
        if warps is not None:
            bent = None if fields is None else fields[block]
            images = warp(images, warps[block], bent, config["crop_size"])
        images = dataset.normalise(images)
        if centres is not None:
            cut_out(images, centres[block], config["cutout"])
        yield from zip(images.split(batch_size), labels.split(batch_size), strict=True)


def fetch(dataset, order, at_once, device):
    """Blocks (uint8 images, labels) of the images in `order`, on `device`.

    From the host's memory, or its disk, a block is copied to a GPU on a stream of its own, while
    the steps on the block before still run.
    """
    home = dataset.images.device
    aside = torch.cuda.Stream(device) if home.type == "cpu" and device.type == "cuda" else None
    order = order.to(home)  # whole: a copy inside the loop would wait for the GPU
    for rows in order.split(at_once):
        images = dataset.images.index_select(0, rows)  # a third of the time that [rows] takes
        labels = dataset.labels[rows]
        if not aside:
            yield images.to(device), labels.to(device)
            continue
        with torch.cuda.stream(aside):
            block = [t.pin_memory().to(device, non_blocking=True) for t in (images, labels)]
        now = torch.cuda.current_stream(device)
        now.wait_stream(aside)
        for tensor in block:
            tensor.record_stream(now)  # not to be reused before the steps on it are done
        yield block


def describe_sets(train_set, val_set, test_set):
    """Which data, how many images of which shape, how they are split, and uneven classes."""
    shape = " x ".join(map(str, train_set.images.shape[1:]))
    megabytes = math.ceil(sum(s.images.nbytes for s in (train_set, val_set, test_set)) / 1e6)
    mapped = ", read from the disk" if isinstance(train_set.images, MappedImages) else ""
    text = (
        f"{train_set.name}: {len(train_set):,} training, {len(val_set):,} validation, "
        f"{len(test_set):,} test images\n  of {shape}, {len(train_set.classes)} classes, "
        f"{megabytes} MB{mapped}"
    )
    counts = torch.bincount(train_set.labels, minlength=len(train_set.classes))
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] > UNEVEN * counts[least]:
        names = train_set.classes
        text += (
            f"\nuneven classes: {int(counts[least]):,} training images of {names[least]}, "
            f"{int(counts[most]):,} of {names[most]}; always saying {names[most]} would be right "
            f"for {counts[most] / counts.sum():.0%} of them"
        )
    for split, dataset in (("validation", val_set), ("test", test_set)):
        there = set(dataset.labels.tolist())
        if lacking := [n for label, n in enumerate(dataset.classes) if label not in there]:
            some = ", ".join(lacking[:3]) + ", ..." * (len(lacking) > 3)
            text += f"\nno {split} image of {some}: what is reached says nothing of it"
    return text
