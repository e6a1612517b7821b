"""What a config must fulfil before anything is loaded, and the sizes that a data set fixes."""

import contextlib
import copy
import difflib
import json
import math
import re
from pathlib import Path

# (channels, height, width), number of classes
DATASETS = {
    "mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "imagenette": ((3, 160, 160), 10),
    "digits": ((1, 8, 8), 10),
    "image_folder": None,
}
CHOICES = {
    "dataset": list(DATASETS),
    "resize": ["squash", "crop", "pad"],
    "on_bad_image": ["error", "skip"],
    "optimizer": ["adam", "adamw", "sgd"],
    "schedule": ["constant", "cosine", "one_cycle"],
    "precision": ["auto", "float32", "bfloat16"],
    "wandb_mode": ["auto", "online", "offline", "disabled"],
    "compile": ["auto", "on", "off"],
}
MODEL_KEYS = {
    "mlp": {"layers"},
    "skip_mlp": {"layers", "dropout"},
    "cnn": {
        "layers", "image_size", "in_channels", "num_classes", "kernel_size", "stride", "padding",
        "dropout", "residual", "min_map",
    },
    "resnet18": {"num_classes", "pretrained"},
}  # fmt: skip


def check_config(config, defaults):
    """Return `config`; raise ValueError or FileNotFoundError naming key, value and way out.

    A key has the type that it has in `defaults`.
    """
    for key, known in CHOICES.items():
        if config[key] not in known:
            near = difflib.get_close_matches(str(config[key]), known, n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"unknown {key} {config[key]!r}; {meant}known: {', '.join(known)}")
    _check_types(config, defaults)
    _check_ranges(config)
    _check_model_keys(config["model"])
    fit_model(config)
    if "cam" in config:
        _check_cam(config["cam"])
    _check_device(config["device"])
    _check_run_dir(config)
    return config


def _check_types(config, defaults):
    for key, default in defaults.items():
        value, kind = config[key], type(default)
        number = kind is float and isinstance(value, int) and not isinstance(value, bool)
        if not number and type(value) is not kind:
            raise ValueError(f"{key} must be of type {kind.__name__}, got {value!r}")


def _check_ranges(config):
    model = config["model"]
    whole = [("epochs", 1), ("batch_size", 1), ("checkpoint_every", 1), ("image_size", 0)]
    whole += [("shift", 0), ("cutout", 0), ("seed", 0)]
    for key, lowest in whole:
        value = config[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            what = "a positive whole number" if lowest else "a whole number, 0 or more"
            raise ValueError(f"{key} must be {what}, got {value!r}")
    spans = {
        "lr": (config["lr"], "above 0", lambda v: v > 0),
        "val_fraction": (config["val_fraction"], "between 0 and 1", lambda v: 0 < v < 1),
        "weight_decay": (config["weight_decay"], "0 or more", lambda v: v >= 0),
        "momentum": (config["momentum"], "in [0, 1)", lambda v: 0 <= v < 1),
        "label_smoothing": (config["label_smoothing"], "in [0, 1)", lambda v: 0 <= v < 1),
        "warmup_epochs": (config["warmup_epochs"], "0 or more", lambda v: v >= 0),
        "rotate": (config["rotate"], "0 to 180 degrees", lambda v: 0 <= v <= 180),
        "zoom": (config["zoom"], "in [0, 1)", lambda v: 0 <= v < 1),
        "crop": (config["crop"], "in (0, 1]", lambda v: 0 < v <= 1),
        "model.dropout": (model.get("dropout", 0.0), "in [0, 1)", lambda v: 0 <= v < 1),
    }
    for key, (value, allowed, holds) in spans.items():
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if not numeric or not math.isfinite(value) or not holds(value):
            raise ValueError(f"{key} must be {allowed}, got {value!r}")
    if any(seed < 0 for seed in config["seeds"]):
        raise ValueError(f"seeds must be whole numbers, 0 or more, got {config['seeds']}")
    if len(set(config["seeds"])) < len(config["seeds"]):
        raise ValueError(f"seeds must differ from one another, got {config['seeds']}")


def _check_cam(cam):
    if not isinstance(cam["per_class"], int) or cam["per_class"] < 1:
        raise ValueError(f"cam.per_class must be a positive whole number, got {cam['per_class']!r}")
    if not all(isinstance(index, int) and index >= 0 for index in cam["indices"]):
        raise ValueError(f"cam.indices must be whole numbers, 0 or more, got {cam['indices']}")


def _check_model_keys(model):
    kind = model.get("kind")
    if kind not in MODEL_KEYS:
        raise ValueError(f"unknown model.kind {kind!r}; known: {', '.join(MODEL_KEYS)}")
    if unknown := model.keys() - MODEL_KEYS[kind] - {"kind"}:
        known = ", ".join(sorted(MODEL_KEYS[kind]))
        raise ValueError(f"model.{min(unknown)} is no setting of a {kind}; known: {known}")
    for layer in model["layers"] or [0] if "layers" in MODEL_KEYS[kind] else []:
        size = layer.get("channels", 0) if isinstance(layer, dict) else layer
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"model.layers must hold positive sizes, got {model['layers']}")
    for key in MODEL_KEYS[kind] & {"kernel_size", "stride", "padding", "min_map"} & model.keys():
        if not isinstance(model[key], int) or model[key] < (0 if key == "padding" else 1):
            raise ValueError(f"model.{key} must be a positive whole number, got {model[key]!r}")


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
            f"train/<class>/* and test/<class>/* (or val/<class>/*)"
        )
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    if not classes:
        raise ValueError(f"image_folder: {folder} has no class folders; it needs train/<class>/*")
    if size == 0:
        raise ValueError("image_folder needs a size: add --image_size 64, say (pixels a side)")
    return (3, size, size), len(classes)


def fit_model(config):
    """config["model"] with the sizes that the data set fixes.

    A CNN takes image_size, in_channels and num_classes from the data. The first and last size of an
    MLP are checked against it; ends that were written for another known data set follow this one.
    """
    model = copy.deepcopy(config["model"])
    if model["kind"] == "resnet18":
        return {"num_classes": data_shape(config)[1]} | model
    if model["kind"] == "cnn":
        if not {"image_size", "in_channels", "num_classes"} <= model.keys():
            (channels, size, _), num_classes = data_shape(config)
            fixed = {"image_size": size, "in_channels": channels, "num_classes": num_classes}
            model = fixed | model
        return model
    if len(model["layers"]) < 2 + (model["kind"] == "skip_mlp"):
        raise ValueError(f"model.layers is too short for a {model['kind']}: {model['layers']}")
    shape, num_classes = data_shape(config)
    known = [math.prod(entry[0]) for entry in DATASETS.values() if entry]
    for position, needed, others, what in (
        (0, math.prod(shape), known, f"the {' x '.join(map(str, shape))} values of an image"),
        (-1, num_classes, [10], "the number of classes"),
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


def first_line(error):
    """What an allocator says, on one line of at most 120 letters."""
    lines = str(error).splitlines() or [type(error).__name__]
    return re.sub(r"^\[enforce fail.*?\] .*?\. ", "", lines[0])[:120]


def _check_device(device):
    if device in ("auto", "cpu"):
        return
    import torch

    kind, _, number = device.partition(":")
    if kind not in ("cuda", "mps") or (number and not number.isdigit()):
        raise ValueError(f"unknown device {device!r}; known: auto, cpu, cuda, cuda:0, mps")
    count = torch.cuda.device_count() if kind == "cuda" else int(torch.backends.mps.is_available())
    if int(number or 0) >= count:
        raise ValueError(
            f"device {device!r} is not here ({count} {kind} devices): use --device auto or cpu"
        )


def _check_run_dir(config):
    if config["resume"] != "none":
        _check_resumable(Path(config["resume"]), config["seeds"])
        return
    folder = Path(config["run_dir"])
    if config["run_dir"] != "auto" and folder.exists():
        if not folder.is_dir():
            raise ValueError(f"run_dir {folder} is a file; name a folder")
        if any(folder.iterdir()):
            raise ValueError(
                f"run folder {folder} already exists: go on with --resume {folder}, or choose "
                f"another --run_dir"
            )


def _check_resumable(folder, seeds):
    started = []
    with contextlib.suppress(OSError, ValueError, KeyError):
        started = json.loads((folder / "config.json").read_text(encoding="utf-8"))["seeds"]
    if seeds and sorted(seeds) != sorted(started):
        raise ValueError(
            f"--resume {folder} and --seeds {seeds} do not go together: that run was started with "
            f"{f'--seeds {started}' if started else 'one seed'}"
        )
    checkpoints = [folder / "checkpoints" / name for name in ("last.pt", "previous.pt", "best.pt")]
    if not seeds and not any(path.is_file() for path in checkpoints):
        raise FileNotFoundError(
            f"--resume {folder}: no checkpoint in {folder / 'checkpoints'}; start the run afresh "
            f"in a new folder"
        )
