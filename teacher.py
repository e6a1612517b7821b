"""A trained network whose answers another one learns instead of the labels.

Knowledge distillation (Hinton, Vinyals and Dean 2015) at temperature 1, on images that are deformed
alike for both (Beyer et al. 2022). `label_smoothing` is laid over the answers as over labels.
"""

import hashlib
from pathlib import Path

import torch

from checkpoint import build_trained, find_checkpoint, load_checkpoint
from devices import uses_bfloat16
from distributed import from_first
from models import takes
from tracking import known_sha256


class Teacher:
    """teacher(images) -> probabilities (n, K); `sha256` is that of its weights."""

    def __init__(self, model, config, device):
        weights = b"".join(weight.numpy().tobytes() for weight in model.state_dict().values())
        self.sha256 = hashlib.sha256(weights).hexdigest()
        self.forward = model.to(device, memory_format=torch.channels_last)
        if uses_bfloat16(config, device):
            self.forward = torch.autocast(device.type, torch.bfloat16)(self.forward)

    @torch.no_grad()
    def __call__(self, images):
        return self.forward(images).float().softmax(1)


def load_teacher(config, about, device):
    """The Teacher that config["teacher"] names, a run folder or a checkpoint; None for "none".

    `about` is what ImageDataset.about says of the training images. Raises FileNotFoundError where
    there is none, and ValueError where it was not trained on these images, and on these alone: it
    may know those that are held out.
    """
    if config["teacher"] == "none":
        return None
    path, state = from_first(read_teacher, config["teacher"], config["seed"])
    known = state.get("data", {}) | {"sha256": known_sha256(state, path)}
    if known["sha256"] is None:
        raise ValueError(
            f"--teacher {path} does not say which images it was trained on: train it again"
        )
    if known != about:
        raise ValueError(
            f"--teacher {path} was trained on other images than this network would be: train both "
            f"on the same data, with the same --seed, --val_fraction and whatever changes images"
        )
    if state["config"]["model"].get("pretrained") and config["dataset"] == "imagenette":
        raise ValueError(
            f"--teacher {path} began with weights of ImageNet, which knows the test images of "
            f"imagenette: name one that did not"
        )
    model, size = build_trained(state, path), config["crop_size"]
    if size and not takes(model, (about["shape"][0], size, size)):
        raise ValueError(
            f"--teacher {path} does not take crops of {size} pixels a side: leave --crop_size out, "
            f"or name another one"
        )
    return Teacher(model, config, device)


def find_teacher(name, seed):
    """The checkpoint of the run `name`; of a run of several seeds that of `seed`."""
    folder = Path(name)
    if any(folder.glob("seed_*")):
        folder /= f"seed_{seed}"
        if not folder.is_dir():
            raise FileNotFoundError(f"--teacher {name} has no seed {seed}: name one that has")
    try:
        return find_checkpoint(folder)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"--teacher {name}: {error}") from None


def read_teacher(name, seed):
    path = find_teacher(name, seed)
    return path, load_checkpoint(path)


def check_teachers(config):
    """Raise ValueError or FileNotFoundError where a seed of config["seeds"] has no teacher of its
    own: one of another seed was trained on what this one holds out."""
    if config["teacher"] == "none":
        return
    found = [find_teacher(config["teacher"], seed) for seed in config["seeds"]]
    if len(set(found)) < len(found):
        raise ValueError(
            f"--teacher {config['teacher']} is of one seed: name a run of all of --seeds, each has "
            f"its own"
        )


def check_same_teacher(teacher, known, config):
    """Raise ValueError where a resumed run had another teacher, by the sha256 `known`, or none."""
    if (teacher and teacher.sha256) != known:
        raise ValueError(
            f"--resume {config['resume']}: --teacher {config['teacher']} is not what the run began "
            f"with: bring that back, or start a new run"
        )
