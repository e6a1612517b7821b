"""From files to arrays: reads the data sets, from their own files or from folders of pictures.

Every loader takes a config and returns (splits, classes, mean, std). The splits are {"train":
(images, labels), "test": (images, labels)}, images uint8 (N, C, H, W), labels int64 (N,); of a
folder of pictures "test" may be missing and "val" may be there. Mean and std are per channel, of
the training images, in [0, 1].
"""

import functools
import hashlib
import os
import pickle
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from cache import channel_statistics, read_cached, remembered_statistics
from checks import rank

PICTURES = "imagenette2-160"  # the folder of Imagenette, as torchvision unpacks it
SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
IMAGENETTE_CLASSES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


def load_digits(config):
    """1,797 handwritten 8x8 digits that ship with scikit-learn; every fifth is a test image."""
    from sklearn.datasets import load_digits as read_digits

    bunch = read_digits()
    pixels = (bunch.images * 255 / 16).round().astype(np.uint8)[:, None]  # stored as 0 to 16
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    images = torch.from_numpy(pixels)
    test = torch.arange(len(labels)) % 5 == 4
    splits = {"train": (images[~test], labels[~test]), "test": (images[test], labels[test])}
    return splits, [str(digit) for digit in range(10)], *channel_statistics(pixels[~test.numpy()])


def load_mnist(config):
    """The original IDX files in data_dir/MNIST/raw, downloaded by torchvision where missing."""
    raw = Path(config["data_dir"]) / "MNIST" / "raw"
    files = [raw / name for name in MNIST_SHA256]
    if not all(file.is_file() for file in files):
        _download("MNIST", config["data_dir"], raw, MNIST_SHA256)
    splits = {}
    for split, (image_file, label_file) in {"train": files[:2], "test": files[2:]}.items():
        images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
        if len(images) != len(labels) or images.shape[1:] != (28, 28) or labels.max() > 9:
            raise ValueError(f"{image_file} and {label_file.name} do not belong together")
        splits[split] = (torch.from_numpy(images[:, None]), torch.from_numpy(labels).long())
    statistics = remembered_statistics(files, splits["train"][0].numpy(), config, check_mnist)
    return splits, [str(digit) for digit in range(10)], *statistics


def check_mnist(files):
    """Raise ValueError where a file is not the original one, to the bit."""
    for path in files:
        if hashlib.sha256(path.read_bytes()).hexdigest() != MNIST_SHA256[path.name]:
            raise ValueError(
                f"{path} is not MNIST's file of that name, or it is damaged; delete it, and it is "
                f"downloaded again"
            )


def read_idx(path, dimensions):
    """A uint8 array from an IDX file: two zero bytes, type 8, the rank, the sizes, the values."""
    content = path.read_bytes()
    sizes = [int.from_bytes(content[4 + 4 * d : 8 + 4 * d]) for d in range(dimensions)]
    start = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) != start + np.prod(sizes):
        raise ValueError(f"{path} is damaged; delete it, and it is downloaded again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes).copy()


def _download(name, data_dir, folder, files):
    """Let torchvision fetch a data set; where that fails, leave no trace and say what to do."""
    import torchvision

    if (Path(data_dir) / "train").is_dir():
        raise ValueError(
            f"{data_dir} holds no {name} but a folder train: for pictures of your own it is "
            f"--dataset image_folder"
        )
    options = {"size": "160px"} if name == "Imagenette" else {}
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    try:
        getattr(torchvision.datasets, name)(data_dir, download=True, **options)
    except (OSError, RuntimeError) as error:
        for created in missing:
            if created.is_dir() and not any(created.iterdir()):
                created.rmdir()
        raise FileNotFoundError(
            f"{name} is not in {folder} and could not be downloaded ({type(error).__name__}; is "
            f"there a network?): put {', '.join(files)} there, say where they are by --data_dir, "
            f"or try --dataset digits, which needs no download"
        ) from None


def load_imagenette(config):
    """Imagenette, 160 pixels, in data_dir/imagenette2-160, downloaded where missing."""
    folder = Path(config["data_dir"]) / PICTURES
    if not folder.is_dir():
        _download("Imagenette", config["data_dir"], folder, ["its folders train/ and val/"])
    size = min(config["image_size"] or 160, 160)
    splits, wnids, *statistics = read_splits(folder, config | {"image_size": size})
    return splits, [IMAGENETTE_CLASSES.get(wnid, wnid) for wnid in wnids], *statistics


def load_folder(config):
    """data_dir/{train,test}/<class>/*, or the CIFAR-10 pictures as such a folder or archive."""
    folder = Path(config["data_dir"])
    if config["dataset"] == "image_folder":
        return read_splits(folder, config)
    if not (folder / "cifar10").is_dir():
        return load_cifar10_archive(config)
    return read_splits(
        folder / "cifar10", config | {"image_size": min(config["image_size"] or 32, 32)}
    )


def load_cifar10_archive(config):
    """torchvision's own CIFAR-10 archive, downloaded where missing; sorted by class and name."""
    import torchvision

    folder = Path(config["data_dir"])
    if not (folder / "cifar-10-batches-py").is_dir():
        files = ["the archive's batch files (or the pictures as cifar10/{train,test}/<class>/*)"]
        _download("CIFAR10", config["data_dir"], folder / "cifar-10-batches-py", files)
    splits = {}
    for split in ("train", "test"):
        try:
            archive = torchvision.datasets.CIFAR10(folder, train=split == "train")
        except (RuntimeError, OSError, EOFError) as error:  # its checksums do not fit
            raise ValueError(
                f"{folder / 'cifar-10-batches-py'} is damaged ({error}); delete it, and it is "
                f"downloaded again"
            ) from None
        files = archive.train_list if split == "train" else archive.test_list
        names = []
        for name, _ in files:
            with (folder / archive.base_folder / name).open("rb") as file:
                names += pickle.load(file, encoding="latin1")["filenames"]
        # as the same pictures in folders would be, so that a seed holds out the same ones
        order = sorted(range(len(names)), key=lambda k: (archive.targets[k], names[k]))
        images = np.ascontiguousarray(archive.data[order].transpose(0, 3, 1, 2))
        splits[split] = (torch.from_numpy(images), torch.tensor(archive.targets)[order])
    files = sorted((folder / "cifar-10-batches-py").iterdir())
    statistics = remembered_statistics(files, splits["train"][0].numpy(), config)
    return splits, archive.classes, *statistics


def read_splits(folder, config):
    """The pictures of folder/train, folder/test and folder/val, decoded once and cached.

    val alone beside train is the test set; both may be missing, then the caller holds some out.
    Raises ValueError where they do not hold two classes or more, the same in all.
    """
    names = {"train": "train"} | {
        name: name for name in ("test", "val") if (folder / name).is_dir()
    }
    if "test" not in names and "val" in names:
        names = {"train": "train", "test": "val"}
    listings = {split: list_images(folder / name) for split, name in names.items()}
    classes = listings["train"][1]
    for split, name in names.items():
        if listings[split][1] != classes:
            odd = sorted(set(classes) ^ set(listings[split][1]))
            raise ValueError(f"{folder}: train and {name} hold different classes: {odd[:5]}")
    if len(classes) < 2:
        raise ValueError(
            f"{folder / 'train'} has one class folder, {classes[0]}; a network needs two or more "
            f"to tell apart"
        )
    splits = {}
    for split, (paths, _, labels) in listings.items():
        images, positions, mean, std = read_cached(paths, split, config)
        labels = torch.tensor(labels)[torch.from_numpy(positions)]
        if lost := [c for k, c in enumerate(classes) if not (labels == k).any()]:
            raise ValueError(f"{folder}: no picture of {lost[0]} in {split} can be read")
        splits[split] = (torch.from_numpy(images), labels)
        if split == "train":
            statistics = mean, std
    return splits, classes, *statistics


def list_images(folder):
    """(paths, classes, labels) of folder/<class>/*, classes and files sorted by name.

    Raises ValueError for a class without pictures and for a link that leads out of the data folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; it should hold one folder of images a class")
    home = folder.parent.resolve()
    classes = [entry for entry in scan(folder, home) if entry.is_dir() and entry.name[0] != "."]
    if not classes:
        raise ValueError(f"{folder} has no class folders; it should hold <class>/*.jpg")
    paths, labels = [], []
    for label, entry in enumerate(classes):
        there = [e for e in scan(entry.path, home) if e.name[0] != "."]
        files = [Path(e.path) for e in there if Path(e.name).suffix.lower() in SUFFIXES]
        others = [e for e in there if Path(e.name).suffix.lower() not in SUFFIXES]
        if files and others:
            kinds = Counter(
                "folders" if e.is_dir() else Path(e.name).suffix or e.name for e in others
            )
            some = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(4))
            warn_once(f"{entry.path}: passed over {some}")
        if not files:
            raise ValueError(
                f"class folder {entry.path} holds no images ({', '.join(sorted(SUFFIXES))})"
            )
        paths += files
        labels += [label] * len(files)
    return paths, [entry.name for entry in classes], labels


@functools.cache
def warn_once(line):
    if rank() == 0:
        print(line, file=sys.stderr)


def scan(folder, home):
    """The entries of a folder by name; ValueError for a link that leads out of `home`."""
    with os.scandir(folder) as entries:
        entries = sorted(entries, key=lambda entry: entry.name)
    for entry in entries:
        target = Path(os.path.realpath(entry.path))  # resolve() raises where links go in a circle
        if entry.is_symlink() and not target.is_relative_to(home):
            raise ValueError(
                f"{entry.path} is a link to {target}, outside {home}: copy it "
                f"in, or name the folder that holds both with --data_dir"
            )
    return entries


LOADERS = {
    "mnist": load_mnist,
    "cifar10": load_folder,
    "imagenette": load_imagenette,
    "digits": load_digits,
    "image_folder": load_folder,
}
