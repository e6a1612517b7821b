"""From files to arrays: reads the data sets, decodes pictures once and caches them.

Every loader takes a config and returns ({"train": (images, labels), "test": (images, labels)},
classes, mean, std), images uint8 (N, C, H, W), labels int64 (N,), mean and std per channel of the
training images in [0, 1].
"""

import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

CACHE_FORMAT = 1  # raise it when the meaning of a cached byte changes
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MNIST_FILES = {
    split: [f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"]
    for split, prefix in (("train", "train"), ("test", "t10k"))
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
    if not all((raw / name).is_file() for names in MNIST_FILES.values() for name in names):
        _download("MNIST", config["data_dir"], raw, [n for f in MNIST_FILES.values() for n in f])
    splits = {}
    for split, (image_file, label_file) in MNIST_FILES.items():
        images, labels = read_idx(raw / image_file, 3), read_idx(raw / label_file, 1)
        if len(images) != len(labels) or images.shape[1:] != (28, 28) or labels.max() > 9:
            raise ValueError(f"{raw / image_file} and {label_file} do not belong together")
        splits[split] = (torch.from_numpy(images[:, None]), torch.from_numpy(labels).long())
    files = [raw / name for name in MNIST_FILES["train"]]
    statistics = remembered_statistics(files, splits["train"][0].numpy(), config)
    return splits, [str(digit) for digit in range(10)], *statistics


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
            f"there a network?): put {', '.join(files)} there, or try --dataset digits, which "
            f"needs no download"
        ) from None


def load_imagenette(config):
    """Imagenette, 160 pixels, in data_dir/imagenette2-160, downloaded where missing."""
    folder = Path(config["data_dir"]) / "imagenette2-160"
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
    """torchvision's own CIFAR-10 archive, downloaded where missing."""
    import torchvision

    folder = Path(config["data_dir"])
    if not (folder / "cifar-10-batches-py").is_dir():
        files = ["the archive's batch files (or the pictures as cifar10/{train,test}/<class>/*)"]
        _download("CIFAR10", config["data_dir"], folder / "cifar-10-batches-py", files)
    splits = {}
    for split in ("train", "test"):
        archive = torchvision.datasets.CIFAR10(folder, train=split == "train")
        images = np.ascontiguousarray(archive.data.transpose(0, 3, 1, 2))
        splits[split] = (torch.from_numpy(images), torch.tensor(archive.targets))
    files = sorted((folder / "cifar-10-batches-py").iterdir())
    statistics = remembered_statistics(files, splits["train"][0].numpy(), config)
    return splits, archive.classes, *statistics


def read_splits(folder, config):
    """The train and test (or val) folders below `folder`, decoded once and cached."""
    test_name = "test" if (folder / "test").is_dir() else "val"
    listings = {
        s: list_images(folder / name) for s, name in (("train", "train"), ("test", test_name))
    }
    classes = listings["train"][1]
    if listings["test"][1] != classes:
        odd = sorted(set(classes) ^ set(listings["test"][1]))
        raise ValueError(f"{folder}: train and {test_name} hold different classes: {odd[:5]}")
    splits = {}
    for split, (paths, _, labels) in listings.items():
        images, statistics = read_cached(paths, split, config)
        splits[split] = (torch.from_numpy(images), torch.tensor(labels))
        if split == "train":
            mean_and_std = statistics["mean"], statistics["std"]
    return splits, classes, *mean_and_std


def list_images(folder):
    """(paths, classes, labels) of folder/<class>/*, classes and files sorted by name."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; it should hold one folder of images a class")
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    if not classes:
        raise ValueError(f"{folder} has no class folders; it should hold <class>/*.jpg")
    paths, labels = [], []
    for label, name in enumerate(classes):
        files = [p for p in sorted(folder.joinpath(name).iterdir()) if p.suffix.lower() in SUFFIXES]
        if not files:
            raise ValueError(
                f"class folder {folder / name} holds no images ({', '.join(sorted(SUFFIXES))})"
            )
        paths += files
        labels += [label] * len(files)
    return paths, classes, labels


def read_cached(paths, split, config):
    """The images behind `paths`, memory-mapped from the cache, which is built where it is stale.

    The cache is keyed by a fingerprint of every file's name, size and time and of how the pixels
    are made. It is written beside its place and moved there when complete.
    """
    mark = fingerprint(paths, [config["image_size"], config["resize"]])
    folder = Path(config["data_dir"]) / ".cache"
    cache = folder / f"{config['dataset']}-{split}-{config['image_size']}-{mark}.npy"
    notes = cache.with_suffix(".json")
    if not (cache.is_file() and notes.is_file()):
        if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
            print(f"{folder} is not writable: decoding {split} anew in every run", file=sys.stderr)
            images = np.empty((len(paths), 3, config["image_size"], config["image_size"]), np.uint8)
            return images, _decode(paths, images, split, config)
        folder.mkdir(exist_ok=True)
        _build_cache(paths, cache, notes, split, config)
    return np.load(cache, mmap_mode="c"), json.loads(notes.read_text())


def fingerprint(paths, settings=()):
    """A word that changes with the name, size or time of any file, or with how pixels are made."""
    digest = hashlib.sha256(json.dumps([CACHE_FORMAT, *settings]).encode())
    for path in paths:
        status = path.stat()
        line = f"{path.parent.name}/{path.name} {status.st_size} {status.st_mtime_ns}\n"
        digest.update(line.encode())
    return digest.hexdigest()[:12]


def remembered_statistics(paths, images, config):
    """Mean and std of `images`, which come from the files `paths`, computed once and kept."""
    notes = Path(config["data_dir"]) / ".cache" / f"{config['dataset']}-{fingerprint(paths)}.json"
    if notes.is_file():
        return json.loads(notes.read_text())
    statistics = channel_statistics(images)
    if os.access(config["data_dir"], os.W_OK):
        notes.parent.mkdir(exist_ok=True)
        unfinished = notes.with_suffix(f".{os.getpid()}.tmp")
        unfinished.write_text(json.dumps(statistics))
        unfinished.replace(notes)
    return statistics


def _build_cache(paths, cache, notes, split, config):
    size = config["image_size"]
    unfinished = cache.with_suffix(f".{os.getpid()}.tmp")
    try:
        shape = (len(paths), 3, size, size)
        images = np.lib.format.open_memmap(unfinished, "w+", np.uint8, shape)
        statistics = _decode(paths, images, split, config)
        images.flush()
        notes.write_text(json.dumps(statistics))
        unfinished.replace(cache)
    finally:
        unfinished.unlink(missing_ok=True)
        if not any(cache.parent.iterdir()):
            cache.parent.rmdir()


def _decode(paths, images, split, config):
    """Decode every picture into `images`, in parallel; return the statistics."""

    def decode(index):
        images[index] = read_image(paths[index], config)

    with ThreadPoolExecutor() as pool:
        work = pool.map(decode, range(len(paths)))
        for _ in tqdm(
            work, f"decoding {split}", len(paths), leave=False, disable=None, unit=" images"
        ):
            pass
    mean, std = channel_statistics(images)
    return {"mean": mean, "std": std}


def read_image(path, config):
    """One picture as uint8 (3, size, size), upright, on black where it is transparent."""
    try:
        with Image.open(path) as image:
            return _to_array(ImageOps.exif_transpose(image), config)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a picture that can be read ({error})") from None


def _to_array(image, config):
    size = (config["image_size"],) * 2
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    if image.mode == "I;16":  # 16 bits of grey: the upper eight
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("RGB")
    if image.size != size:
        shape = {"squash": Image.Image.resize, "crop": ImageOps.fit, "pad": ImageOps.pad}
        image = shape[config["resize"]](image, size, Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)


def channel_statistics(images):
    """Mean and standard deviation of each channel of uint8 images (N, C, H, W), in [0, 1]."""
    values = np.arange(256) / 255
    mean, std = [], []
    for channel in range(images.shape[1]):
        counts = np.zeros(256, np.int64)
        for start in range(0, len(images), 1024):
            block = np.ascontiguousarray(images[start : start + 1024, channel]).ravel()
            counts += np.bincount(block, minlength=256)
        share = counts / counts.sum()
        average = float((share * values).sum())
        mean.append(average)
        std.append(max(float(np.sqrt((share * (values - average) ** 2).sum())), 1e-3))
    return mean, std
