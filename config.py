"""The configuration: shared defaults, presets, flags, and what a run is resumed from.

Imports nothing heavy.
"""

import contextlib
import copy
import json
import os
import sys
import time
from datetime import datetime
from pathlib import Path

from checks import check_config, fit_model, only_draws, rank
from flags import find_flag, parse_flags
from rules import MODEL, check_values, shown

defaults = {  # --help shows what stands beside a key
    # data
    "data_dir": "data",  # the folder that data sets are read from and downloaded to
    "val_fraction": 0.1,  # share of the training images held out; the split is fixed by the seed
    "image_size": 0,  # pixels a side: larger images are shrunk to it, own pictures brought to it
    "resize": "squash",  # images that are not square are squashed, cropped or padded
    "deskew": False,  # grey images are sheared until what they show stands upright
    "hold_out_boxed": False,  # imagenette: train without the 366 images whose objects are boxed
    "on_bad_image": "error",  # "skip" leaves out pictures that cannot be read, and names them
    # augmentation of the training images
    "shift": 0,  # up to so many pixels in both directions
    "rotate": 0.0,  # up to so many degrees either way
    "zoom": 0.0,  # 0.1 draws a scale between 0.9 and 1.1
    "elastic": 0.0,  # deviation, in pixels, of a smooth random field at its knots, 5 a side
    "crop": 1.0,  # smallest share of the area that a random crop keeps
    "crop_size": 0,  # pixels a side that a crop is drawn at; 0 draws it as large as the image
    "flip": False,  # left-right, every image in every second epoch; not for digits
    "cutout": 0,  # a square of so many pixels is greyed out
    # optimisation
    "optimizer": "adam",  # sgd has Nesterov momentum, muon is for convolutions
    "momentum": 0.9,  # sgd and muon alone read it
    "weight_decay": 0.0,  # decoupled from the gradient in adamw and muon, added to it in the others
    "schedule": "constant",  # of the learning rate over the whole run: or "cosine", "one_cycle"
    "warmup_epochs": 0.0,  # epochs in which the learning rate climbs from 0 to lr
    "label_smoothing": 0.0,  # share of every label that is spread over all classes
    "teacher": "none",  # a trained run: its answers are learnt instead of the labels
    # run
    "seed": 0,  # fixes the split, the initial weights, the order, the augmentation and dropout
    "seeds": [],  # several: the experiment runs once a seed and reports mean and deviation
    "device": "auto",  # cuda when available, then mps, then cpu
    "precision": "auto",  # of training: bfloat16 on GPUs that have it, float32 elsewhere
    "compile": "auto",  # the step as one call, where the run is long enough to pay for it
    "keep": "best",  # the weights of the best epoch by validation, or of the "last" one
    "checkpoint_every": 1,  # epochs between two saves of `last`
    "run_dir": "auto",  # runs/<exercise>/<date-time-dataset-model-seed>
    "resume": "none",  # a run folder: go on where it stopped; as a flag it brings its config, too
    "wandb_mode": "auto",  # online when logged in, else offline; "disabled" does not import it
    "preset": "none",  # settings of the script that are laid over its config first
}

# what a resumed run may say differently: how long it runs, where it computes and where it logs;
# `compile` then stays as it began
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
    "teacher",  # where it lies: that it is the same one is seen by its weights
    "cam",
}
# what the maps of a --checkpoint are told; all else is that of its training
EXPLAINED = {"checkpoint", "cam", "run_dir", "resume", "device", "wandb_mode", "data_dir"}


def merge(base, overrides):
    """A deep copy of `base` with `overrides` laid over it, section by section.

    A section of another "kind" replaces the one that is there: its settings are others.
    """
    if not isinstance(overrides, dict):
        raise ValueError(f"a config must be a dict, got {shown(overrides)}")
    merged = copy.deepcopy(base)
    for key, value in overrides.items():
        below = merged.get(key)
        nested = isinstance(value, dict) and isinstance(below, dict)
        nested = nested and value.get("kind", below.get("kind")) == below.get("kind")
        merged[key] = merge(below, value) if nested else plain(value)
    return merged


def plain(value):
    """A deep copy of a config's value as JSON has it: NumPy's numbers, tuples, ranges and paths are
    what a notebook may give."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | range):
        with contextlib.suppress(RecursionError):  # of a list inside itself: its check names it
            return [plain(inner) for inner in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return copy.deepcopy(value)


def flatten(config, prefix=""):
    """{"model": {"dropout": 0.1}} -> {"model.dropout": 0.1}"""
    flat = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def flatten_telling(config):
    """`flatten` of what tells a run from others: without what changes no number of it."""
    hidden = RESUMABLE - {"epochs", "preset", "teacher"}
    return flatten({key: value for key, value in config.items() if key not in hidden})


def differences(config, other):
    """{"lr": (0.1, 0.2)}: the keys, flattened, in which two configs differ."""
    a, b = flatten(config), flatten(other)
    return {key: (a.get(key), b.get(key)) for key in sorted(a | b) if a.get(key) != b.get(key)}


def check_unchanged(started, config):
    """Raise ValueError where a resumed run's config is not the one that it `started` with, in
    anything that is not RESUMABLE. A key that came later had its default."""
    started = defaults | started
    changed = {
        key: pair
        for key, pair in differences(started, config).items()
        if key.split(".")[0] in started.keys() - RESUMABLE
    }
    if changed:
        listed = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in changed.items())
        raise ValueError(
            f"--resume {config['resume']}: the run was started with another config ({listed}); "
            f"resume with the same, or start a new run"
        )


def check_explained(own, config):
    """Raise ValueError where a --checkpoint is named and `config` differs from the script's `own`
    in what is that of its training."""
    ignored = sorted({key.split(".")[0] for key in differences(own, config)} - EXPLAINED)
    if only_draws(config) and ignored:
        raise ValueError(
            f"--checkpoint {config['checkpoint']} brings the {', '.join(ignored)} of its training: "
            f"leave that out; --cam.indices and --cam.per_class choose the images"
        )


def parse_config(config, presets=None, args=None):
    """`config` with the flags of the command line laid over it, checked.

    Every key is a typed flag (`--lr 1e-3`, `--model.layers 784 128 10`). `--preset NAME` lays one
    of `presets` over the config first, and so does `--dataset NAME` where a preset is called like
    the data set. `--resume FOLDER` starts from that run's config, `--checkpoint FILE` takes those
    flags alone that say where and how its maps are drawn. What a user can get wrong ends in one
    line on stderr and exit code 2.
    """
    args = sys.argv[1:] if args is None else list(args)
    presets = presets or {}
    try:
        base = merge(defaults, config)
        resume, preset = find_flag(args, "--resume"), find_flag(args, "--preset")
        explains = find_flag(args, "--checkpoint") not in (None, "none")
        if resume not in (None, "none"):
            elsewhere = find_flag(args, "--run_dir")
            folders = [Path(f).expanduser().resolve() for f in (elsewhere or "auto", resume)]
            if elsewhere not in (None, "auto") and folders[0] != folders[1]:
                raise ValueError(
                    f"--run_dir {elsewhere}: a run goes on where it is, in {resume}: leave it out"
                )
            started = merge({}, read_run_config(resume))
            model = started.get("model", base.get("model"))  # whole: its defaults are not ours
            base = merge(base, started) | {"model": model, "resume": resume}
        elif preset is None and not explains:
            preset = choose_preset(base, find_flag(args, "--dataset"), presets)
        if preset in presets:
            base = merge(base, presets[preset]) | {"preset": preset}
        check_values(base)  # flags take their types from it
        base = with_kind(base, find_flag(args, "--model.kind"))
        parsed = check_config(parse_flags(base, ["none", *presets], args))
        check_explained(merge(defaults, config), parsed)
        if explains and find_flag(args, "--data_dir"):  # "data" is a choice, too, where it is named
            parsed["data_dir"] = str(Path(parsed["data_dir"]).absolute())
        return parsed
    except BrokenPipeError:
        end_unread()
    except (ValueError, OSError) as error:
        refuse(error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def choose_preset(config, dataset, presets):
    """The preset that the dict names, or else the one that is called like --dataset, if any."""
    named = config["preset"]
    if named == "none":
        announce_preset(config, dataset, presets)
        return dataset if dataset in presets else "none"
    if not isinstance(named, str) or named not in presets:
        known = ", ".join(["none", *presets])
        raise ValueError(f"preset {shown(named)} is none of this script's: {known}")
    return named


def announce_preset(config, dataset, presets):
    """Print what the preset of a data set sets instead of what; where the data set is written into
    the dict, which brings nothing else, what it would set."""
    name = dataset or str(config.get("dataset"))
    changed = differences(config, merge(config, presets.get(name, {})))
    changed.pop("dataset", None)
    told = ", ".join(f"{key} {new} instead of {old}" for key, (old, new) in changed.items())
    if told and rank() == 0:
        brought = f"preset {name}: {told} (--preset none leaves that out)"
        print(brought if dataset else f"--preset {name} would set {told}")


def with_kind(config, kind):
    """`config` for a network of another kind: without the settings that this one does not have."""
    model = config["model"]
    if kind not in MODEL or model["kind"] == kind:
        return config
    kept = {key: value for key, value in model.items() if key in MODEL[kind]}
    if (left_out := model.keys() - kept - {"kind"}) and rank() == 0:
        print(f"model.kind {kind}: without {', '.join(sorted(left_out))}")
    kept |= {"pretrained": False} if kind == "resnet18" else {}
    if "layers" in kept:  # what a CNN gives as {"channels": 64, "pool": 1} is a number elsewhere
        kept["layers"] = [n["channels"] if isinstance(n, dict) else n for n in kept["layers"]]
        if kind == "cnn":  # of an MLP: the ends are the values of an image and the classes
            kept["layers"] = kept["layers"][1:-1]
    return config | {"model": {"kind": kind} | kept}


def end_unread():
    """End the process with exit code 141 where whoever read along, `head` say, has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor does the end print
    raise SystemExit(141) from None


def refuse(error):
    """Say on stderr, in one line, what the user can mend, and end the process with exit code 2.

    Of several processes rank 0 says it: torchrun ends the others meanwhile. One that alone has
    something to say says it after a while.
    """
    if rank():
        time.sleep(10 + rank() / 4)
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(error))
    with contextlib.suppress(OSError):  # nobody may read, or the disk be full
        print(f"error: {line}", file=sys.stderr, flush=True)
    raise SystemExit(2) from None


def read_run_config(folder):
    """The config that the run in `folder` was started with."""
    path = Path(folder).expanduser() / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"--resume {folder}: no run there (config.json is missing); give the folder that a run "
            f"printed as its run folder, like runs/exercise_1_1/..."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--resume {folder}: config.json is damaged ({error})") from None
    if isinstance(config, dict) and only_draws(config):
        raise ValueError(
            f"--resume {folder}: that run drew maps and trained nothing: draw them in a new "
            f"folder, by --checkpoint {config['checkpoint']}"
        )
    return config


def complete_config(config, exercise="run", own=()):
    """A checked copy of `config` in which nothing is open: defaults, model sizes, run folder.

    It must have the keys of the exercise's `own` config.
    """
    config = merge(defaults, config)
    if missing := sorted(set(own) - config.keys()):
        raise ValueError(f"{missing[0]} is missing: lay your changes over {exercise}.config")
    config = check_config(config)
    config["model"] = fit_model(config)
    if config["resume"] != "none":
        config["run_dir"] = config["resume"]
    if ".." in Path(config["run_dir"]).parts:  # making a/../b would leave an a behind
        config["run_dir"] = str(Path(config["run_dir"]).resolve())
    if config["run_dir"] == "auto":
        now = datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
        seed = "seeds" if config["seeds"] else config["seed"]
        name = f"{config['dataset']}-{config['model']['kind']}-{seed}"
        name = "maps" if only_draws(config) else name
        config["run_dir"] = str(Path("runs") / exercise / f"{now}-{name}")
    return config
