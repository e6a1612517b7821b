"""The configuration: shared defaults, command-line flags, and the checks before anything is loaded.

Imports nothing heavy, so that `--help` and a mistyped flag answer at once.
"""

import contextlib
import copy
import difflib
import io
import json
import math
import sys
from pathlib import Path
from typing import Literal, TypedDict

import tyro

defaults = {
    # data
    "data_dir": "data",
    "val_fraction": 0.1,  # share of the training images held out; the split is fixed by the seed
    "image_size": 0,  # pixels a side; larger images are shrunk to it, 0 takes them as they are
    "resize": "squash",  # or "crop" or "pad": what happens to images that are not square
    # augmentation of the training images
    "shift": 0,  # up to so many pixels in both directions
    "rotate": 0.0,  # up to so many degrees either way
    "zoom": 0.0,  # 0.1 draws a scale between 0.9 and 1.1
    "crop": 1.0,  # smallest share of the area that a random crop keeps
    "flip": False,  # left-right, every second image; not for digits
    "cutout": 0,  # a square of so many pixels is greyed out
    # optimisation
    "optimizer": "adam",  # or "adamw", "sgd" (Nesterov)
    "momentum": 0.9,  # sgd alone reads it
    "weight_decay": 0.0,
    "schedule": "constant",  # or "cosine", "one_cycle": the learning rate over the whole run
    "warmup_epochs": 0.0,  # epochs in which the learning rate climbs from 0 to lr
    "label_smoothing": 0.0,
    # run
    "seed": 0,  # fixes the split, the initial weights, the order, the augmentation and dropout
    "seeds": [],  # several: the experiment runs once a seed and reports mean and deviation
    "device": "auto",  # cuda when available, then mps, then cpu
    "precision": "auto",  # bfloat16 on cuda, float32 elsewhere
    "compile": "auto",  # the step of an MLP on a CPU, where the run is long enough to pay for it
    "checkpoint_every": 1,  # epochs between two saves of `last`
    "run_dir": "auto",  # runs/<exercise>/<date-time-dataset-model-seed>
    "resume": "none",  # a run folder: go on where it stopped
    "wandb_mode": "auto",  # online when logged in, else offline; "disabled" does not import it
    "preset": "none",
}

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
}  # fmt: skip
# what a resumed run may change: how long it runs and where it logs, not what it computes
RESUMABLE = {
    "epochs",
    "run_dir",
    "resume",
    "wandb_mode",
    "checkpoint_every",
    "data_dir",
    "preset",
    "compile",
    "device",
}


def merge(base, overrides):
    """A deep copy of `base` with `overrides` laid over it, section by section."""
    merged = copy.deepcopy(base)
    for key, value in overrides.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if nested else copy.deepcopy(value)
    return merged


def flatten(config, prefix=""):
    """{"model": {"dropout": 0.1}} -> {"model.dropout": 0.1}"""
    flat = {}
    for key, value in config.items():
        flat |= (
            flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def differences(config, other):
    """{"lr": (0.1, 0.2)}: the keys, flattened, in which two configs differ."""
    a, b = flatten(config), flatten(other)
    return {key: (a.get(key), b.get(key)) for key in sorted(a | b) if a.get(key) != b.get(key)}


def parse_config(config, presets=None, args=None):
    """`config` with the flags of the command line laid over it, checked.

    Every key is a typed flag (`--lr 1e-3`, `--model.layers 784 128 10`). `--preset NAME` lays one
    of `presets` over the config first, and so does `--dataset NAME` where a preset is called like
    the data set. `--resume FOLDER` starts from that run's config. What a user can get wrong ends in
    one line on stderr and exit code 2.
    """
    args = sys.argv[1:] if args is None else list(args)
    presets = presets or {}
    base = merge(defaults, config)
    try:
        resume, preset = _flag(args, "--resume"), _flag(args, "--preset")
        if resume:
            base = merge(base, read_run_config(resume)) | {"resume": resume}
        elif preset is None and _flag(args, "--dataset") in presets:
            preset = _flag(args, "--dataset")
            print(f"preset {preset}: {describe_overrides(presets[preset])}")
        if preset in presets:
            base = merge(base, presets[preset]) | {"preset": preset}
        parsed = _parse_flags(base, ["none", *presets], args)
        return check_config(parsed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def describe_overrides(overrides):
    return ", ".join(f"{key} {value}" for key, value in flatten(overrides).items())


def _flag(args, name):
    """The value that follows `name` among the arguments, or none."""
    for position, argument in enumerate(args):
        if argument.startswith(f"{name}="):
            return argument.removeprefix(f"{name}=")
        if argument == name and position + 1 < len(args):
            return args[position + 1]
    return None


def _annotation(config):
    def kind(value):
        if isinstance(value, dict):
            return _annotation(value)
        return list[int] if isinstance(value, list) else type(value)

    return TypedDict("Config", {key: kind(value) for key, value in config.items()})


def _parse_flags(base, presets, args):
    kinds = _annotation(base)
    kinds.__annotations__["preset"] = Literal[tuple(presets)]
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed, unknown = tyro.cli(
                kinds,
                default=copy.deepcopy(base),
                args=args,
                return_unknown_args=True,
                use_underscores=True,
            )
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
        raise ValueError(_first_paragraph(complaint.getvalue())) from None
    if unknown:
        flags = {f"--{key}" for key in flatten(base)}
        raise ValueError(_unknown(unknown[0], flags, "flag", "--help lists all"))
    return dict(parsed)


def _first_paragraph(box):
    """The message in tyro's frame, on one line: what stands between the first two rules."""
    groups = [[]]
    for line in box.splitlines():
        text = line.strip("│╭╮╰╯ ")
        if text.startswith("─") or set(text) == {"-"}:
            groups.append([])
        else:
            groups[-1].append(text)
    return " ".join(groups[1])


def _unknown(name, known, what, way_out):
    names = {key.rsplit(".", 1)[-1].lstrip("-"): key for key in known} | {key: key for key in known}
    names["learning_rate"] = "--lr"
    near = difflib.get_close_matches(name.replace("-", "_").lstrip("_"), names, n=1, cutoff=0.5)
    near = near or difflib.get_close_matches(name, names, n=1)
    meant = f"did you mean {names[near[0]]}? " if near else ""
    return f"unknown {what} {name}; {meant}{way_out}"


def read_run_config(folder):
    """The config that the run in `folder` was started with."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"--resume {folder}: no run there (config.json is missing); give the folder that a run "
            f"printed as its run folder, like runs/exercise_1_1/..."
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"--resume {folder}: config.json is damaged ({error})") from None


def complete_config(config, exercise="run"):
    """A checked copy of `config` in which nothing is open: defaults, model sizes, run folder."""
    config = merge(defaults, config)
    check_config(config)
    config["model"] = fit_model(config)
    if config["resume"] != "none":
        config["run_dir"] = config["resume"]
    if config["run_dir"] == "auto":
        from datetime import datetime

        time = datetime.now().strftime("%Y%m%d-%H%M%S")
        seed = "seeds" if config["seeds"] else config["seed"]
        name = f"{time}-{config['dataset']}-{config['model']['kind']}-{seed}"
        config["run_dir"] = str(Path("runs") / exercise / name)
    return config


def check_config(config):
    """Return `config`; raise ValueError or FileNotFoundError naming key, value and way out."""
    for key, known in CHOICES.items():
        if config[key] not in known:
            near = difflib.get_close_matches(str(config[key]), known, n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"unknown {key} {config[key]!r}; {meant}known: {', '.join(known)}")
    _check_types(config)
    _check_ranges(config)
    _check_model_keys(config["model"])
    fit_model(config)
    _check_device(config["device"])
    _check_run_dir(config)
    return config


def _check_types(config):
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


def _check_model_keys(model):
    kind = model.get("kind")
    if kind not in MODEL_KEYS:
        raise ValueError(f"unknown model.kind {kind!r}; known: {', '.join(MODEL_KEYS)}")
    if unknown := model.keys() - MODEL_KEYS[kind] - {"kind"}:
        known = ", ".join(sorted(MODEL_KEYS[kind]))
        raise ValueError(f"model.{min(unknown)} is no setting of a {kind}; known: {known}")
    for layer in model["layers"] or [0]:
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
        checkpoints = Path(config["resume"]) / "checkpoints"
        if not any((checkpoints / name).is_file() for name in ("last.pt", "previous.pt")):
            raise FileNotFoundError(
                f"--resume {config['resume']}: no checkpoint in {checkpoints}; that run has not "
                f"finished an epoch, so start it afresh in a new folder"
            )
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
