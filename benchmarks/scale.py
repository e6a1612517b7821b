"""Time an image, and memory, as the data grow 1x, 4x and 16x.

    python -m benchmarks.scale                 # a minute: 2,000 to 32,000 pictures
    python -m benchmarks.scale --images 1000000 --contender 1

Writes folders of small PNG pictures, decodes each into its cache and trains one epoch of an MLP on
images left on the disk, in a process of its own. Its memory is what no file stands behind: pages of
the cache are the system's to take back.
"""

import json
import re
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image

import dataset
import exercise_1_1
from benchmarks.report import print_table, run_contender, write_results
from dataset import batches, load_datasets
from models import build_model
from optimisation import Schedule, make_optimizer
from steps import plain_step, train_epoch


@dataclass
class Flags:
    images: int = 2000
    """training pictures at 1x"""
    contender: str = "all"
    """how many times that, measured alone and printed as JSON"""


def write_pictures(folder, count):
    random = np.random.default_rng(0)
    for split, number in (("train", count), ("test", 10)):
        for label in range(10):
            place = Path(folder, split, str(label))
            place.mkdir(parents=True)
            for index in range(label, number, 10):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{index:07d}.png", compress_level=1)


def measure(count):
    """Milliseconds an image to decode, to open again and to train on, and the memory after both."""
    dataset.IN_MEMORY = 0
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(folder, count)
        settings = {"dataset": "image_folder", "data_dir": folder, "image_size": 32}
        config = exercise_1_1.config | settings
        torch.set_num_threads(1)
        marks = [time.perf_counter()]
        load_datasets(config)
        marks.append(time.perf_counter())
        decoding = own_memory()
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
    names = ("decode_ms", "open_again_ms", "epoch_ms")
    memory = {"decoding_MiB": decoding, "training_MiB": own_memory()}
    return dict(zip(names, spans, strict=True)) | memory


def own_memory():
    """MiB of this process that no file stands behind."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) / 1024


def main(flags):
    if flags.contender != "all":
        print(json.dumps(measure(flags.images * int(flags.contender))))
        return
    sizes = (1, 4, 16)
    results = {
        f"{s}x": run_contender("benchmarks.scale", str(s), "--images", flags.images) for s in sizes
    }
    header = ("pictures", "decode ms", "open again ms", "epoch ms", "MiB decoding", "training")
    rows = [
        (f"{s * flags.images:,}", *(f"{v:.3f}" for v in results[f"{s}x"].values())) for s in sizes
    ]
    print_table("time an image", header, rows)
    write_results("scale", {"images": flags.images, "sizes": results})


if __name__ == "__main__":
    main(tyro.cli(Flags))
