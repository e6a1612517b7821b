"""Pictures decoded once, in parallel, into a file that later runs map into memory in no time.

Memory stays flat however many there are; an interrupted decoding goes on where it was.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image, ImageOps
from tqdm import tqdm

from files import write_json

# from half of the size on that is refused, PIL warns, and does not name the picture
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

CACHE_FORMAT = 3  # raise it when the meaning of a cached byte changes
DECODED_BYTES = 2**24  # decoded between two notes of progress
WAY_OUT = "mend it, take it away, or train with --on_bad_image skip"


def read_cached(paths, split, config):
    """(images uint8 (n, 3, size, size), positions (n,) in `paths`, mean, std), mapped into memory.

    The cache is called by how the pixels are made and by a fingerprint of every file's name, size
    and time, and built where it is absent or not the one that was written. With
    on_bad_image "skip", pictures that cannot be read are left out and named on stderr. Raises
    ValueError for one of them otherwise, and where the disk is too small.
    """
    mark = fingerprint(paths)
    folder = Path(config["data_dir"]) / ".cache"
    kind = f"{config['dataset']}-{split}-{config['image_size']}-{config['resize']}"
    cache = folder / f"{kind}-{mark}.bin"
    notes = _read_notes(cache, config)
    if notes is None and not os.access(folder if folder.exists() else folder.parent, os.W_OK):
        print(f"{folder} is not writable: decoding {split} anew in every run", file=sys.stderr)
        images, notes = _decode_in_memory(paths, split, config)
    else:
        if notes is None:
            folder.mkdir(exist_ok=True)
            with FileLock(cache.with_suffix(".lock")):  # a second process waits and finds it built
                notes = _read_notes(cache, config) or _build(paths, cache, split, config)
            _remove_others(cache, kind)
        images = _open(cache, notes["count"], config)
    bad = notes["bad"]
    if bad and config["on_bad_image"] == "error":
        raise ValueError(f"{bad[0][1]}: {WAY_OUT}")
    if bad:
        reasons = "".join(f"\n  {reason}" for _, reason in bad)
        print(f"skipped {len(bad)} of {len(paths)} {split} pictures:{reasons}", file=sys.stderr)
    positions = np.delete(np.arange(len(paths)), [position for position, _ in bad])
    return images, positions, notes["mean"], notes["std"]


def _remove_others(cache, kind):
    """Remove the caches of the same kind: their pictures have changed since. Who still reads one
    has it open; where an open file cannot be removed, it stays."""
    for other in cache.parent.glob(f"{kind}-*.bin"):
        if other != cache:
            with contextlib.suppress(OSError):
                other.unlink()
                other.with_suffix(".json").unlink()


def fingerprint(paths):
    """A word that changes with the name, size or time of any file."""
    digest = hashlib.sha256(str(CACHE_FORMAT).encode())
    for path in paths:
        try:
            status = path.stat()
            seen = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:  # a link to nothing: who reads it says so
            seen = "not there"
        line = f"{path.parent.name}/{path.name} {seen}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()[:12]


def _open(cache, count, config):
    shape = (count, 3, config["image_size"], config["image_size"])
    return np.memmap(cache, np.uint8, "c", shape=shape)


def _image_bytes(config):
    return 3 * config["image_size"] ** 2


def _read_notes(cache, config):
    """What was noted when `cache` was complete, or None where it is not the one noted."""
    try:
        notes = json.loads(cache.with_suffix(".json").read_text(encoding="utf-8"))
        whole = cache.stat().st_size == notes["count"] * _image_bytes(config)
        same = whole and _sample(cache, notes["count"], config) == notes["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return notes if same else None


def _sample(cache, count, config):
    """SHA-256 of up to 256 images, evenly spread: a cache of other pictures is noticed."""
    digest, size = hashlib.sha256(), _image_bytes(config)
    with cache.open("rb") as file:  # not mapped: a page that is touched may bring megabytes with it
        for position in range(0, count, -(-count // 256)):
            file.seek(position * size)
            digest.update(file.read(size))
    return digest.hexdigest()


def _build(paths, cache, split, config):
    """Decode `paths` into `cache`; returns its notes. Killed and started again, it goes on."""
    partial, progress = cache.with_suffix(".partial"), cache.with_suffix(".progress.json")
    state = _progress_so_far(partial, progress, config)
    missing = len(paths) - state["next"]
    needed, free = missing * _image_bytes(config), shutil.disk_usage(cache.parent).free
    if needed > free:
        raise ValueError(
            f"{split}: {missing} pictures of image_size {config['image_size']} take "
            f"{needed / 2**20:,.0f} MiB in {cache.parent}, where {free / 2**20:,.0f} MiB are free: "
            f"make room, or lower --image_size"
        )
    try:
        with partial.open("r+b" if state["next"] else "wb") as file:
            file.truncate(_count(state) * _image_bytes(config))
            file.seek(0, os.SEEK_END)
            for images in _decode_blocks(paths, state, split, config):
                file.write(images)
                file.flush()
                os.fsync(file.fileno())
                write_json(progress, state)
        notes = _notes_of(state)
        partial.replace(cache)
        notes |= {"sha256": _sample(cache, _count(state), config)}
        write_json(cache.with_suffix(".json"), notes)
    except OSError as error:
        raise ValueError(f"{cache.parent}: {split} cannot be cached ({error.strerror})") from None
    except ValueError:  # a bad picture: once it is mended, the cache has another name
        with contextlib.suppress(OSError):  # a lock that is held stays on Windows
            for path in (partial, progress, cache.with_suffix(".lock")):
                path.unlink(missing_ok=True)
            cache.parent.rmdir()  # where it holds nothing else
        raise
    progress.unlink(missing_ok=True)
    return notes


def _fresh_state():
    return {"next": 0, "bad": [], "counts": np.zeros((3, 256), np.int64)}


def _progress_so_far(partial, progress, config):
    """Where an interrupted decoding stopped: what is noted there is in the file."""
    try:
        state = json.loads(progress.read_text(encoding="utf-8"))
        if partial.stat().st_size >= _count(state) * _image_bytes(config):
            return state | {"counts": np.array(state["counts"], np.int64)}
    except (OSError, ValueError, KeyError):
        pass
    return _fresh_state()


def _count(state):
    return state["next"] - len(state["bad"])


def _notes_of(state):
    if not _count(state):
        raise ValueError(f"no picture can be read; the first: {state['bad'][0][1]}")
    mean, std = mean_and_std(state["counts"])
    return {"count": _count(state), "bad": state["bad"], "mean": mean, "std": std}


def _decode_in_memory(paths, split, config):
    state = _fresh_state()
    images = np.concatenate(list(_decode_blocks(paths, state, split, config)))
    return images, _notes_of(state)


def _decode_blocks(paths, state, split, config):
    """Yield blocks uint8 (n, 3, size, size) of the pictures from state["next"] on; keeps `state`:
    the next position, those that cannot be read with the reason, the counts of pixel values."""

    def decode(path):
        try:
            return read_image(path, config)
        except ValueError as error:
            if config["on_bad_image"] == "error":
                raise ValueError(f"{error}: {WAY_OUT}") from None
            return str(error)

    at_once = max(os.cpu_count(), DECODED_BYTES // _image_bytes(config))
    bar = tqdm(
        desc=f"decoding {split}",
        total=len(paths),
        initial=state["next"],
        leave=False,
        disable=None,
        unit=" images",
    )
    with ThreadPoolExecutor() as pool, bar:
        for start in range(state["next"], len(paths), at_once):
            decoded = []
            for image in pool.map(decode, paths[start : start + at_once]):
                decoded.append(image)
                bar.update()
            state["bad"] += [
                [start + offset, image]
                for offset, image in enumerate(decoded)
                if isinstance(image, str)
            ]
            good = [image for image in decoded if not isinstance(image, str)]
            images = np.stack(good) if good else np.empty((0, *_shape(config)), np.uint8)
            state["next"] = start + len(decoded)
            state["counts"] += count_values(images)
            yield images


def _shape(config):
    return 3, config["image_size"], config["image_size"]


def read_image(path, config):
    """One picture as uint8 (3, size, size), upright, on black where it is transparent.

    Raises ValueError, naming the file, where it cannot be read or would be larger than memory.
    """
    try:
        with Image.open(path) as image:
            return _to_array(ImageOps.exif_transpose(image), config)
    except MemoryError:
        raise ValueError(
            f"{path} does not fit in the memory with image_size {config['image_size']}: lower "
            f"--image_size"
        ) from None
    except Exception as error:  # a decoder may raise whatever a damaged file makes it raise
        raise ValueError(f"{path} is not a picture that can be read ({error})") from None


def _to_array(image, config):
    size = (config["image_size"],) * 2
    if image.mode in ("F", "I"):
        raise ValueError("its grey has no known range: save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):  # 16 bits of grey: the upper eight
        values, clear = np.asarray(image), image.info.get("transparency", -1)
        image = Image.fromarray((values >> 8).astype(np.uint8))
        image.putalpha(Image.fromarray((values != clear).astype(np.uint8) * 255))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    image = image.convert("RGB")
    if image.size != size:
        shape = {"squash": Image.Image.resize, "crop": ImageOps.fit, "pad": _pad}
        image = shape[config["resize"]](image, size, Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _pad(image, size, method):
    """The whole picture in the middle of a black square, at least one pixel high and wide."""
    scale = size[0] / max(image.size)
    inner = [max(1, round(length * scale)) for length in image.size]
    square = Image.new(image.mode, size)
    square.paste(image.resize(inner, method), [round((size[0] - length) / 2) for length in inner])
    return square


def remembered_statistics(paths, images, config, check=lambda paths: None):
    """Mean and std of `images`, which come from the files `paths`, computed once and kept.

    `check(paths)` raises where the files are not what they should be; it is asked once, too.
    """
    notes = Path(config["data_dir"]) / ".cache" / f"{config['dataset']}-{fingerprint(paths)}.json"
    try:
        mean, std = json.loads(notes.read_text(encoding="utf-8"))
        return mean, std
    except (OSError, ValueError, TypeError):
        check(paths)
    statistics = channel_statistics(images)
    with contextlib.suppress(OSError):  # not ours to write, or full: computed anew next time
        notes.parent.mkdir(exist_ok=True)
        write_json(notes, statistics)
    return statistics


def count_values(images):
    """How often each of the 256 values occurs in each channel of uint8 images (N, C, H, W)."""
    counts = np.zeros((images.shape[1], 256), np.int64)
    for start in range(0, len(images), 1024):
        for channel in range(images.shape[1]):
            block = np.ascontiguousarray(images[start : start + 1024, channel]).ravel()
            counts[channel] += np.bincount(block, minlength=256)
    return counts


def mean_and_std(counts):
    """Two lists, a number a channel, in [0, 1], from the counts (C, 256) of the pixel values."""
    values = np.arange(256) / 255
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ values
    deviation = np.sqrt((share * (values - mean[:, None]) ** 2).sum(1))
    return mean.tolist(), np.maximum(deviation, 1e-3).tolist()


def channel_statistics(images):
    """Mean and standard deviation of each channel of uint8 images (N, C, H, W), in [0, 1]."""
    return mean_and_std(count_values(images))
