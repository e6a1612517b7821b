"""Shared fixtures: small configs, run folders, folders of pictures, and the real data.

The lab and torch are imported where they are used: the process that deals out the tests needs none.
"""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DATA = Path(__file__).parents[1] / "data"

os.environ["OMP_NUM_THREADS"] = "1"  # two workers share the cores; for what they start, too
# in a job of the background Ctrl-C is ignored, and so it would be in every process started here
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    if DATA.is_dir():
        return
    skip = pytest.mark.skip(reason="data/ is absent: unpack or download the real data sets first")
    for item in items:
        if "real_data" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture(autouse=True)
def _figures_are_drawn_where_a_test_looks_at_them(request, monkeypatch):
    import blank
    import matplotlib.figure

    import plots

    if "figures" not in request.keywords:
        monkeypatch.setattr(matplotlib.figure.Figure, "savefig", blank.savefig)
        monkeypatch.setattr(plots, "Figure", blank.Figure)


def on_digits(folder):
    """Exercise 1.1 on digits, one epoch, no W&B."""
    import exercise_1_1

    return exercise_1_1.config | {
        "dataset": "digits",
        "epochs": 1,
        "lr": 1e-3,
        "device": "cpu",
        "wandb_mode": "disabled",
        "run_dir": str(folder),
    }


@pytest.fixture
def digits_config(tmp_path):
    return on_digits(tmp_path / "run")


@pytest.fixture
def everything_config(digits_config):
    """A small CNN with all that draws or counts: BatchNorm, dropout, augmentation, a schedule."""
    import exercise_1_3

    return digits_config | {
        "model": exercise_1_3.config["model"] | {"layers": [8, 8], "dropout": 0.3},
        "epochs": 4,
        "optimizer": "adamw",
        "schedule": "one_cycle",
        "shift": 1,
        "rotate": 10.0,
        "zoom": 0.1,
        "crop": 0.8,
        "cutout": 2,
        "label_smoothing": 0.1,
    }


def write_pictures(folder, size=12):
    """An image folder: two classes, five pictures each in train and test."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            place = folder / split / label
            place.mkdir(parents=True)
            for number in range(5):
                pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


@pytest.fixture
def picture_folder(tmp_path):
    """folder() -> a fresh image folder."""
    return lambda name="pictures", size=12: write_pictures(tmp_path / name, size)


@pytest.fixture
def random_images():
    """A small ImageDataset of noise, one whose size no batch divides."""
    import torch

    from dataset import ImageDataset

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (37, 1, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (37,), generator=generator)
    return ImageDataset(images, labels, ["a", "b", "c"], [0.4], [0.2])


@pytest.fixture(scope="session")
def forks():
    """Starts scripts as processes of their own, without the seconds that imports take."""
    from forks import Forks

    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    forks = Forks()
    yield forks
    forks.close()
