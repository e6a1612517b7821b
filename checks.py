"""What must hold before anything is loaded, and the sizes that a data set fixes; on top of it all
stand the few facts that every module asks for: rank, world, memory, the first line of an error."""

import contextlib
import copy
import json
import math
import os
import re
from pathlib import Path

from rules import CONVOLUTIONAL, DATASETS, MODEL, check_values, shown

CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")  # bytes, or "max"
LONGEST_NAME = 200  # bytes of a folder's name: systems take 255, and some names grow from it


def world():
    """The number of processes that torchrun started; without it 1."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank():
    """The number of this process, from 0, the one that downloads, prints and writes."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def check_config(config):
    """Return `config`, its folders spelled out where they begin with ~/; raise ValueError or
    FileNotFoundError naming key, value and way out."""
    check_values(config)
    for key in ("data_dir", "run_dir", "resume", "checkpoint", "teacher"):
        if config.get(key, "").startswith("~/"):
            config = config | {key: str(Path(config[key]).expanduser())}
    if len(set(config["seeds"])) < len(config["seeds"]):
        raise ValueError(f"seeds must differ from one another, got {shown(config['seeds'])}")
    kind = config["model"]["kind"]
    if "cam" in config and kind not in CONVOLUTIONAL:
        raise ValueError(f"model.kind {kind!r} leaves no maps to draw: --model.kind cnn")
    if config["optimizer"] == "muon" and kind not in CONVOLUTIONAL:
        raise ValueError(
            f"optimizer 'muon' steps the kernels of convolutions, which model.kind {kind!r} does "
            f"not have: --optimizer adamw"
        )
    resumed = config["resume"] != "none"
    if config["schedule"] == "one_cycle" and config["warmup_epochs"] and not resumed:
        raise ValueError(
            f"warmup_epochs {config['warmup_epochs']:g}: schedule 'one_cycle' climbs by itself; "
            f"leave it 0, or take --schedule cosine"
        )
    if config["warmup_epochs"] >= config["epochs"] and not resumed:
        raise ValueError(
            f"warmup_epochs {config['warmup_epochs']:g} of {config['epochs']} epochs: the learning "
            f"rate would never be reached: lower --warmup_epochs, or raise --epochs"
        )
    if config["hold_out_boxed"] and config["on_bad_image"] == "skip":
        raise ValueError(
            "hold_out_boxed knows images by their place, which pictures that on_bad_image 'skip' "
            "leaves out would shift: --on_bad_image error"
        )
    if config["deskew"] and data_shape(config)[0][0] > 1:
        raise ValueError(
            f"deskew is for grey images, those of {config['dataset']} are coloured: --no_deskew"
        )
    _check_augmentation(config)
    if only_draws(config) and resumed:
        raise ValueError(
            f"--checkpoint {config['checkpoint']} is drawn in a run folder of its own, --resume "
            f"{config['resume']} goes on with a training: name one of the two"
        )
    _check_shares(config["batch_size"])
    _check_fixed_sizes(config)
    _check_crop_size(config)
    check_device(config["device"])
    _check_run_dir(config)
    return config


def _check_augmentation(config):
    side = data_shape(config)[0][1]
    for key, pixels in {"shift": side, "cutout": config["crop_size"] or side}.items():
        if config[key] >= pixels:
            raise ValueError(
                f"{key} {config[key]} leaves nothing of images of {pixels} pixels a side: lower "
                f"--{key}"
            )


def _check_shares(batch_size):
    if batch_size % world():
        fitting = -(-batch_size // world()) * world()
        raise ValueError(
            f"batch_size {batch_size} is that of all {world()} processes, which do not divide it: "
            f"--batch_size {fitting}"
        )


def data_shape(config):
    """((C, H, W), number of classes) of the config's images, without loading any."""
    size = config["image_size"]
    if config["dataset"] != "image_folder":
        (channels, height, width), num_classes = DATASETS[config["dataset"]]
        shrunk = 0 < size < height
        return (channels, size, size) if shrunk else (channels, height, width), num_classes
    folder = Path(config["data_dir"]) / "train"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"image_folder: no folder {folder}; --data_dir names a folder that holds "
            f"train/<class>/*, and test/<class>/* where there are test pictures"
        )
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    if not classes:
        raise ValueError(f"image_folder: {folder} has no class folders; it needs train/<class>/*")
    if size == 0:
        raise ValueError("image_folder needs a size: add --image_size 64, say (pixels a side)")
    return (3, size, size), len(classes)


def fit_model(config, known=None):
    """config["model"] with the sizes that the data set fixes: `known`, as `data_shape` gives them,
    where the data need not be there.

    A CNN takes image_size, in_channels and num_classes from the data. The first and last size of an
    MLP are checked against it; ends that were written for another known data set follow this one.
    """
    model = copy.deepcopy(config["model"])
    if "layers" not in MODEL[model["kind"]]:
        return {"num_classes": (known or data_shape(config))[1]} | model
    if model["kind"] == "cnn":
        if not {"image_size", "in_channels", "num_classes"} <= model.keys():
            (channels, size, _), num_classes = known or data_shape(config)
            fixed = {"image_size": size, "in_channels": channels, "num_classes": num_classes}
            model = fixed | model
        return model
    shape, num_classes = known or data_shape(config)
    if len(model["layers"]) < 2 + (model["kind"] == "skip_mlp"):
        hidden = model["layers"][-1:] or [64]
        fitting = " ".join(map(str, [math.prod(shape), *hidden, num_classes]))
        raise ValueError(
            f"model.layers {model['layers']} is too short for a {model['kind']}: it runs from the "
            f"values of an image to the classes, like --model.layers {fitting}"
        )
    entries = [entry for entry in DATASETS.values() if entry]
    usual = [math.prod(shape) for shape, _ in entries]
    usual_classes = [classes for _, classes in entries]
    for position, needed, others, what in (
        (0, math.prod(shape), usual, f"the {' x '.join(map(str, shape))} values of an image"),
        (-1, num_classes, usual_classes, "the number of classes"),
    ):
        given = model["layers"][position]
        if given != needed and given not in others:
            fitting = [math.prod(shape), *model["layers"][1:-1], num_classes]
            raise ValueError(
                f"model.layers {' '.join(map(str, model['layers']))}: the "
                f"{'last' if position else 'first'} size is {given}, but {config['dataset']} needs "
                f"{needed}, {what}: --model.layers {' '.join(map(str, fitting))}"
            )
        model["layers"][position] = needed
    return model


def is_of_memory(error):
    """Whether an error says that something does not fit in the memory."""
    words = ("out of memory", "allocate", "enough memory", "calculation overflowed")
    told = any(word in str(error).lower() for word in words)
    return isinstance(error, MemoryError | OverflowError) or told


def first_line(error):
    """What an error says, at most 120 letters of it, or its kind where it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    plain = re.sub(r"\x1b\[[0-9;]*m", "", lines[0])  # without colours
    return re.sub(r"^\[enforce fail.*?\] .*?\. ", "", plain)[:120]


def _check_fixed_sizes(config):
    fitted = fit_model(config)
    (channels, size, _), num_classes = data_shape(config)
    needed = {"image_size": size, "in_channels": channels, "num_classes": num_classes}
    for key in needed.keys() & fitted.keys():
        if fitted[key] != needed[key]:
            raise ValueError(
                f"model.{key} is {fitted[key]}, but {config['dataset']} needs {needed[key]}: leave "
                f"it out, then it follows the data"
            )


def _check_crop_size(config):
    size, kind, (_, side, _) = config["crop_size"], config["model"]["kind"], data_shape(config)[0]
    if not size:
        return
    if config["crop"] == 1:
        raise ValueError(
            f"crop_size {size} is that of random crops, but crop 1 keeps whole images: --crop 0.35"
        )
    if kind not in CONVOLUTIONAL:
        raise ValueError(
            f"crop_size {size}: model.kind {kind!r} takes images of one size: leave crop_size 0"
        )
    if not side // 2 <= size <= side:
        raise ValueError(
            f"crop_size must be from {side // 2} to {side}, half of the image to all of it, got "
            f"{size}: --crop_size 0 takes that of the image"
        )


def check_device(device):
    """Raise ValueError for a name that is no device, or none that is here."""
    if device in ("auto", "cpu"):
        return
    import torch

    kind, _, number = device.partition(":")
    if kind not in ("cuda", "mps") or (number and not number.isdecimal()):
        raise ValueError(f"unknown device {device!r}; known: auto, cpu, cuda, cuda:0, mps")
    count = torch.cuda.device_count() if kind == "cuda" else int(torch.backends.mps.is_available())
    if int(number or 0) >= count:
        raise ValueError(
            f"device {device!r} is not here ({count} {kind} devices): use --device auto or cpu"
        )


def _restarted():
    """Whether torchrun started this process again, in the run folder of the first attempt."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def _check_run_dir(config):
    if rank() > 0:
        return  # rank 0 alone makes and reads it
    if config["resume"] != "none":
        _check_resumable(Path(config["resume"]), config["seeds"])
        return
    folder = Path(config["run_dir"])
    folder = folder.resolve() if ".." in folder.parts else folder
    if not folder.name or len(os.fsencode(folder.name)) > LONGEST_NAME:
        raise ValueError(
            f"run_dir {folder}: its last part must be the name of a new folder, of at most "
            f"{LONGEST_NAME} bytes"
        )
    if config["run_dir"] != "auto" and folder.exists() and not _restarted():
        if not folder.is_dir():
            raise ValueError(f"run_dir {folder} is a file; name a folder")
        if any(folder.iterdir()):
            raise ValueError(already_there(folder, config))


def only_draws(config):
    """Whether a run trains nothing: it draws the maps of a --checkpoint."""
    return config.get("checkpoint", "none") != "none"


def already_there(folder, config):
    """What to say where the run folder of `config` is there before it."""
    own = started_config(folder)
    goes_on = own and not only_draws(own) and not only_draws(config)
    resume = f"go on with --resume {folder}, or " if goes_on else ""
    return f"run folder {folder} already exists: {resume}choose another --run_dir"


def started_config(folder):
    """What the run in `folder` was started with; {} where that is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config if isinstance(config, dict) else {}
    return {}


def _check_resumable(folder, seeds):
    started = started_config(folder).get("seeds")
    started = started if isinstance(started, list) else []
    if seeds and not (started and set(map(str, started)) <= set(map(str, seeds))):
        raise ValueError(
            f"--resume {folder} and --seeds {shown(seeds)} do not go together: that run was "
            f"started with {f'--seeds {started}, and may get more' if started else 'one seed'}"
        )
    checkpoints = [folder / "checkpoints" / name for name in ("last.pt", "previous.pt", "best.pt")]
    if not seeds and not any(path.is_file() for path in checkpoints):
        raise FileNotFoundError(
            f"--resume {folder}: no checkpoint in {folder / 'checkpoints'}; start the run afresh "
            f"in a new folder"
        )


def memory_bytes():
    """The memory of this machine, or of this container, in bytes; infinite where the system does
    not say."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # Windows has no sysconf, and some systems not all names
        machine = math.inf
    try:
        return min(machine, int(CONTAINER_LIMIT.read_text(encoding="ascii")))
    except (OSError, ValueError):  # no such file, or "max" in it
        return machine
