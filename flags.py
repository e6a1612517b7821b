"""The command line: every key of a config as a typed flag, by tyro."""

import contextlib
import copy
import difflib
import io
import re
import sys
from pathlib import Path
from typing import Annotated, Literal, TypedDict

import tyro

from rules import CAM, CONFIG, KIND, MODEL, OPTIONAL

NOTE = re.compile(r'^ +"(\w+)": .*?,  # (.+)$', re.MULTILINE)


def find_flag(args, name):
    """The value that follows `name` among the arguments, or none."""
    for position, argument in enumerate(args):
        if argument.startswith(f"{name}="):
            return argument.removeprefix(f"{name}=")
        if argument == name and position + 1 < len(args):
            return args[position + 1]
    return None


def read_notes(*files):
    """{key: the comment beside it} of Python files, the first that has one: its line of --help."""
    notes = {}
    for file in files:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            found = NOTE.findall(Path(file).read_text(encoding="utf-8"))
            notes = dict(reversed(found)) | notes
    return notes


def _annotation(config, rules, notes):
    """The type of a config, from its values; its rules and notes are what --help says of a key."""

    def flag(key, value):
        if isinstance(value, dict):
            return _annotation(value, rules[key], notes)
        names = rules[key].names
        explained = names or isinstance(value, bool)
        words = notes.get(key) or (None if explained else rules[key].words)
        shown = tyro.conf.arg(help=words, metavar=f"{{{','.join(names)}}}" if names else None)
        kind = list[int] if isinstance(value, list) else type(value)
        if kind is int and rules[key].words.startswith("a number"):
            kind = float  # written as 1, it may still become 0.5
        return Annotated[kind, shown]

    return TypedDict("Config", {key: flag(key, value) for key, value in config.items()})


def parse_flags(base, presets, args):
    """`base` with the flags in `args` laid over it; `presets` are the names that --preset takes.

    Raises ValueError with what is wrong in one line. --help prints and exits.
    """
    layers = base["model"].get("layers")  # a ResNet-18 has none
    channels = [layer["channels"] if isinstance(layer, dict) else layer for layer in layers or []]
    if layers:
        base = base | {"model": base["model"] | {"layers": channels}}  # a flag takes numbers alone
    sections = {"model": KIND | MODEL[base["model"]["kind"]], "cam": CAM}
    notes = read_notes(Path(__file__).with_name("config.py"), sys.argv[0])
    kinds = _annotation(base, CONFIG | OPTIONAL | sections, notes)
    named = Literal[(*presets, base["preset"])]
    kinds.__annotations__["preset"] = Annotated[named, tyro.conf.arg(help=notes["preset"])]
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
        raise ValueError(_unknown(unknown[0], flag_names(base)))
    if (
        layers
        and parsed["model"]["layers"] == channels
        and find_flag(args, "--model.layers") is None
    ):
        parsed["model"]["layers"] = copy.deepcopy(layers)
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
    return " ".join(groups[min(1, len(groups) - 1)])


def flag_names(config, prefix="--"):
    """{"dropout": "--model.dropout", ...}: every flag by its last word and by its whole name."""
    names = {}
    for key, value in config.items():
        if isinstance(value, dict):
            names |= flag_names(value, f"{prefix}{key}.")
        else:
            names |= {key: prefix + key, prefix + key: prefix + key}
    return names


def _unknown(flag, names):
    names = names | {"learning_rate": names.get("lr", "--lr")}
    near = difflib.get_close_matches(flag.replace("-", "_").lstrip("_"), names, n=1, cutoff=0.5)
    near = near or difflib.get_close_matches(flag, names, n=1)
    meant = f"did you mean {names[near[0]]}? " if near else ""
    return f"unknown flag {flag}; {meant}--help lists all"
