"""What every key of a config may be: one table, and the check that a config keeps to it.

Looks at the values alone, not at folders, devices or how they fit one another: see checks.py.
"""

import difflib
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

# (channels, height, width), number of classes
DATASETS = {
    "mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "imagenette": ((3, 160, 160), 10),
    "digits": ((1, 8, 8), 10),
    "image_folder": None,
}


class Rule(NamedTuple):
    """`words` say what a value must be, `holds` whether it is, of any value; `names` are known."""

    words: str
    holds: Callable
    names: tuple = ()


def whole(lowest, highest=10**9):
    def holds(value):
        return type(value) is int and lowest <= value <= highest

    return Rule(f"a whole number from {lowest} to {highest:,}", holds)


def number(words, holds):
    def finite_and_holds(value):
        return type(value) in (int, float) and abs(value) <= 1e300 and holds(value)

    return Rule(f"a number {words}", finite_and_holds)


def one_of(*names):
    def holds(value):
        return type(value) is str and value in names

    return Rule(f"one of {', '.join(names)}", holds, names)


def list_of(kinds, rule, lowest=0):
    def holds(value):
        return type(value) is list and len(value) >= lowest and all(map(rule.holds, value))

    return Rule(f"a list of {kinds}", holds)


def is_line(value):
    """Whether `value` is a text that fits in one line, can name a file and be written as UTF-8."""
    breaking = {"Cc", "Cs", "Zl", "Zp"}  # control characters, half characters, line separators
    return type(value) is str and value and not breaking & set(map(unicodedata.category, value))


LINE = Rule("a text of one line, not empty", is_line)
SWITCH = Rule("True or False", lambda value: type(value) is bool)
SHARE = number("from 0 to below 1", lambda value: 0 <= value < 1)
NOT_NEGATIVE = number("of 0 or more", lambda value: value >= 0)
SEED = whole(0, 2**63 - 1)
SIZES = list_of("positive whole numbers", whole(1), lowest=1)
CONV_LAYERS = list_of(
    "positive whole numbers, or dicts with channels",
    Rule("", lambda layer: type(layer) is dict or whole(1).holds(layer)),
    lowest=1,
)

CONFIG = {
    "dataset": one_of(*DATASETS),
    "data_dir": LINE,
    "val_fraction": number("between 0 and 1", lambda value: 0 < value < 1),
    "image_size": whole(0),
    "resize": one_of("squash", "crop", "pad"),
    "deskew": SWITCH,
    "hold_out_boxed": SWITCH,
    "on_bad_image": one_of("error", "skip"),
    "shift": whole(0),
    "rotate": number("of degrees from 0 to 180", lambda value: 0 <= value <= 180),
    "zoom": SHARE,
    "elastic": NOT_NEGATIVE,
    "crop": number("above 0, at most 1", lambda value: 0 < value <= 1),
    "crop_size": whole(0),
    "flip": SWITCH,
    "cutout": whole(0),
    "model": Rule("a dict with kind and layers", lambda value: type(value) is dict),
    "optimizer": one_of("adam", "adamw", "sgd", "muon"),
    "lr": number("above 0", lambda value: value > 0),
    "batch_size": whole(1),
    "epochs": whole(1),
    "momentum": SHARE,
    "weight_decay": NOT_NEGATIVE,
    "schedule": one_of("constant", "cosine", "one_cycle"),
    "warmup_epochs": NOT_NEGATIVE,
    "label_smoothing": SHARE,
    "teacher": LINE,
    "seed": SEED,
    "seeds": list_of("whole numbers, 0 or more", SEED),
    "device": LINE,
    "precision": one_of("auto", "float32", "bfloat16"),
    "compile": one_of("auto", "on", "off"),
    "keep": one_of("best", "last"),
    "checkpoint_every": whole(1),
    "run_dir": LINE,
    "resume": LINE,
    "wandb_mode": one_of("auto", "online", "offline", "disabled"),
    "preset": LINE,
}
OPTIONAL = {  # an exercise that draws maps has these
    "checkpoint": LINE,
    "cam": Rule("a dict with per_class and indices", lambda value: type(value) is dict),
}
CAM = {
    "per_class": whole(0),
    "indices": list_of("whole numbers, 0 or more", whole(0)),
    "contrast": LINE,
    "grid": SWITCH,
}
LAYER = {
    "channels": whole(1),
    "kernel_size": whole(1),
    "stride": whole(1),
    "padding": whole(0),
    "dropout": SHARE,
    "pool": whole(1),
}
MODEL = {
    "mlp": {"layers": SIZES},
    "skip_mlp": {"layers": SIZES, "dropout": SHARE},
    "cnn": {key: LAYER[key] for key in ("kernel_size", "stride", "padding", "dropout")}
    | {"layers": CONV_LAYERS, "residual": SWITCH, "whiten": SWITCH, "min_map": whole(1)}
    | {"image_size": whole(1), "in_channels": whole(1), "num_classes": whole(1)},
    "resnet18": {"num_classes": whole(1), "pretrained": SWITCH},
}
KIND = {"kind": one_of(*MODEL)}
CONVOLUTIONAL = ("cnn", "resnet18")  # these have maps to draw, and kernels for Muon

OTHER_NAMES = {"learning_rate": "lr", "cpu": "device", "gpu": "device", "cuda": "device"}


def check_values(config):
    """Raise ValueError for a key that is unknown or missing, or a value that it cannot have."""
    if type(config) is not dict:
        raise ValueError(f"a config must be a dict, got {shown(config)}")
    _check("", config, CONFIG | OPTIONAL, needed=CONFIG)
    if "cam" in config:
        _check("cam.", config["cam"], CAM, needed=CAM)
    check_model(config["model"])


def check_model(model):
    """`check_values` of what is in config["model"]."""
    _check("model.", {key: model[key] for key in KIND if key in model}, KIND, needed=KIND)
    kind = model["kind"]
    needed = {"layers"} & MODEL[kind].keys()
    _check("model.", model, KIND | MODEL[kind], needed, f"of a {kind}")
    for position, layer in enumerate(model.get("layers", [])):
        if type(layer) is dict:
            _check(f"model.layers[{position}].", layer, LAYER, ["channels"])


def _check(prefix, section, rules, needed=(), whose="here"):
    for key in section:
        if key not in rules:
            name = f"{prefix}{key if is_line(key) else shown(key)}"
            known = ", ".join(sorted(rules))
            raise ValueError(f"{name} is no setting {whose}{near(key, rules)}; known: {known}")
    for key in needed:
        if key not in section:
            raise ValueError(f"{prefix}{key} is missing; it must be {rules[key].words}")
    for key, value in section.items():
        check_value(f"{prefix}{key}", value, rules[key])


def check_value(name, value, rule):
    if not rule.holds(value):
        hint = near(value, rule.names)
        raise ValueError(f"{name} must be {rule.words}, got {shown(value)}{hint}")


def near(word, known):
    if not isinstance(word, str):
        return ""
    usual = OTHER_NAMES.get(word)
    found = [usual] if usual in known else difflib.get_close_matches(word.lower(), known, n=1)
    return f"; did you mean {found[0]}?" if found else ""


def shown(value):
    """`value` as Python writes it, on one line, shortened where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; a list inside itself
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= 100 else f"{text[:97]}..."
