"""Time an image, and memory, as the data grow 1x, 4x and 16x.

    python -m benchmarks.scale                 # two minutes: 3,000 to 48,000 pictures
    python -m benchmarks.scale --images 1000000 --size 16 --factors 1   # ten minutes

Writes folders of small PNG pictures, decodes each into its cache and trains one epoch of an MLP on
images left on the disk, in a process of its own: its peak while it decodes, and what it holds after
training that no file stands behind, since pages of the cache are the system's to take back. Then
pictures of ImageNet's usual size: Imagenette's, enlarged to 500 x 375, as JPEG, decoded to 128
pixels on all cores.
"""

import json
import re
import resource
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import dataset
import exercise_1_1
from benchmarks.report import Output, print_table, run_contender, write_results
from dataset import batches, load_datasets
from exits import read_flags
from models import build_model
from optimisation import Schedule, make_optimizer
from steps import plain_step, train_epoch


@dataclass
class Flags(Output):
    images: int = 3000
    """training pictures at 1x"""
    size: int = 64
    """pixels a side"""
    factors: tuple[int, ...] = (1, 4, 16)
    """how many times that are measured, one after the other"""
    contender: str = "all"
    """one factor, or photos: measured alone and printed as JSON"""


def write_pictures(folder, count, size):
    random = np.random.default_rng(0)
    for split, number in (("train", count), ("test", 10)):
        for label in range(10):
            place = Path(folder, split, str(label))
            place.mkdir(parents=True)
            for index in range(label, number, 10):
                pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{index:07d}.png", compress_level=1)


def measure(count, size):
    """Milliseconds an image to decode, to open again and to train on, and the memory after both."""
    dataset.IN_MEMORY = 0
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(folder, count, size)
        settings = {"dataset": "image_folder", "data_dir": folder, "image_size": size}
        config = exercise_1_1.config | settings
        torch.set_num_threads(1)
        marks = [time.perf_counter()]
        load_datasets(config)
        marks.append(time.perf_counter())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        train_set, _, _ = load_datasets(config)
        marks.append(time.perf_counter())
        model = build_model(config)
        optimizer = make_optimizer(model, config)
        schedule = Schedule(optimizer, 1000, config)
        step = plain_step(model, optimizer, config)
        marks.append(time.perf_counter())  # the first optimizer of a process takes a second
        train_epoch(step, batches(train_set, config, 1), schedule)
        marks.append(time.perf_counter())
    spans = [1000 * (b - a) / count for a, b in pairwise(marks)]
    del spans[2]
    spans[2] *= count / len(train_set)  # the epoch is one over what is not held out
    names = ("decode_ms", "open_again_ms", "epoch_ms")
    memory = {"decoding_peak_MiB": peak, "training_MiB": own_memory()}
    return dict(zip(names, spans, strict=True)) | memory


def own_memory():
    """MiB of this process that no file stands behind."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) / 1024


def measure_photos(count=1000):
    """Photographs of ImageNet's usual size decoded to 128 pixels a second, and their mean size."""
    pictures = sorted(Path("data/imagenette2-160/val").glob("*/*"))[:: 3925 // count][:count]
    with tempfile.TemporaryDirectory() as folder:
        sizes = []
        for number, path in enumerate(pictures):
            place = Path(folder, ("train", "test")[number % 10 == 0], str(number // 10 % 2))
            place.mkdir(parents=True, exist_ok=True)
            photo = Image.open(path).convert("RGB").resize((500, 375), Image.Resampling.BICUBIC)
            photo.save(place / f"{number}.jpg", quality=95)
            sizes.append((place / f"{number}.jpg").stat().st_size)
        settings = {"dataset": "image_folder", "data_dir": folder, "image_size": 128}
        start = time.perf_counter()
        load_datasets(exercise_1_1.config | settings)
        seconds = time.perf_counter() - start
    return {"images_a_second": len(pictures) / seconds, "mean_kB": sum(sizes) / len(sizes) / 1000}


def main(flags):
    if flags.contender == "photos":
        print(json.dumps(measure_photos()))
        return
    if flags.contender != "all":
        print(json.dumps(measure(flags.images * int(flags.contender), flags.size)))
        return
    options = ("--images", flags.images, "--size", flags.size)
    results = {f"{s}x": run_contender("benchmarks.scale", str(s), *options) for s in flags.factors}
    header = ("pictures", "decode ms", "open again ms", "epoch ms", "peak MiB", "MiB after")
    rows = []
    for factor in flags.factors:
        result = results[f"{factor}x"]
        cells = [result["error"][:40]] if "error" in result else result.values()
        cells = [cell if isinstance(cell, str) else f"{cell:.3f}" for cell in cells]
        rows.append((f"{factor * flags.images:,}", *cells, *[""] * (5 - len(cells))))
    print_table("time an image", header, rows)
    if flags.factors == (1,):
        write_results(f"scale-{flags.images}", vars(flags) | {"sizes": results}, flags.folder)
        return
    photos = run_contender("benchmarks.scale", "photos")
    print(f"\nphotographs decoded a second: {photos}")
    write_results("scale", vars(flags) | {"sizes": results, "photos": photos}, flags.folder)


if __name__ == "__main__":
    main(read_flags(Flags))
