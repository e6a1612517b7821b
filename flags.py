"""The command line: every key of a config as a typed flag, by tyro."""

import contextlib
import copy
import difflib
import io
import os
import re
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, TypedDict

import tyro

from rules import CAM, CONFIG, KIND, MODEL, OPTIONAL, OTHER_NAMES

# what tyro says -> what a user needs to know
PLAIN = [
    (r"Missing from ([^:]+): STR (.*) \(required\)", r"\1: name \2"),
    (r"Missing from ([^:]+): (--\S+) \S+ (.*) \(required\)", r"\1: \2 is missing: \3"),
    (r"Unrecognized options: ([^\s,]+).*", r"unknown flag \1; --help lists all"),
    (r"Error parsing (\S+): invalid literal for int\(\) .*: (.*)", r"\1 \2: not a whole number"),
    (r"Error parsing (\S+): could not convert string to float: (.*)", r"\1 \2: not a number"),
    (
        r"Error parsing (\S+): Could not find valid parse for arguments: \[.*\{.*\]",
        r"\1 takes whole numbers alone: layers with settings of their own go into the config",
    ),
    (
        r"Error parsing (\S+): Could not find valid parse for arguments: \[(.*)\]",
        r"\1 \2: whole numbers are needed, with spaces between them, as in \1 1 2 3",
    ),
]
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
NOTE = re.compile(r'^ +"(\w+)": .*?,  # (.+)$', re.MULTILINE)


def find_flag(args, name):
    """The value that follows `name` among the arguments, where it stands last; None without one.
    Like tyro it takes --data-dir for --data_dir."""
    found = None
    for argument, following in pairwise([*args, "--"]):
        flag, assigned, value = argument.partition("=")
        if flag.replace("-", "_") != name.replace("-", "_"):
            continue
        if assigned:
            found = value
        elif not following.startswith("--"):
            found = following
    return found


def _stands_in(args, name):
    return any(argument.replace("-", "_") == name.replace("-", "_") for argument in args)


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
    parsed, unknown = ask_tyro(
        kinds, default=copy.deepcopy(base), args=args, return_unknown_args=True
    )
    if unknown:
        raise ValueError(_unknown(unknown[0], base))
    for name in ("--seeds", "--cam.indices"):
        if find_flag(args, name) is None and _stands_in(args, name):
            raise ValueError(f"{name} needs numbers, with spaces between them: {name} 0 1 2")
    if (
        layers
        and parsed["model"]["layers"] == channels
        and find_flag(args, "--model.layers") is None
    ):
        parsed["model"]["layers"] = copy.deepcopy(layers)
    return dict(parsed)


def ask_tyro(kind, **settings):
    """What tyro.cli returns; ValueError with its complaint in one line. --help prints and exits."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), at_least_wide(60):
            return tyro.cli(
                kind,
                prog=" ".join(program()),
                description=purpose(),
                use_underscores=True,
                **settings,
            )
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
        raise ValueError(_in_plain_words(_first_paragraph(complaint.getvalue()))) from None


@contextlib.contextmanager
def at_least_wide(columns):
    """Text is laid out for a terminal of so many columns or more; of very few tyro makes columns of
    three letters, or does not end."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(max(columns, shutil.get_terminal_size().columns))
    try:
        yield
    finally:
        os.environ.pop("COLUMNS")
        os.environ.update({"COLUMNS": before} if before is not None else {})


def program():
    """The words that started this program, as it is told: its script, or python -m and a module."""
    module = getattr(sys.modules["__main__"], "__spec__", None)  # of python -m
    return ["python", "-m", module.name] if module else [Path(sys.argv[0]).name]


def purpose():
    """What the program that was started says of itself: its docstring's first paragraph."""
    return (sys.modules["__main__"].__doc__ or "").partition("\n\n")[0].strip()


def _first_paragraph(box):
    """The message in tyro's frame, on one line: what stands between the first two rules."""
    groups = [[]]
    for line in COLOUR.sub("", box).splitlines():  # where the output is a terminal it has colours
        text = line.strip("│╭╮╰╯ ")
        if text.startswith("─") or set(text) == {"-"}:
            groups.append([])
        else:
            groups[-1].append(text)
    return " ".join(groups[min(1, len(groups) - 1)])


def _in_plain_words(complaint):
    for pattern, words in PLAIN:
        complaint = re.sub(pattern, words, complaint)
    return complaint


def flag_names(config, prefix="--"):
    """{"dropout": "--model.dropout", ...}: every flag by its last word and by its whole name."""
    names = {}
    for key, value in config.items():
        if isinstance(value, dict):
            names |= flag_names(value, f"{prefix}{key}.")
        else:
            names |= {key: prefix + key, prefix + key: prefix + key}
    return names


def _unknown(flag, config):
    """What is wrong with a flag that no key has, or a word that is no flag's value."""
    if flag.lower() in ("true", "false"):
        return f"{flag}: a switch stands alone, --flip turns it on and --no_flip off"
    if not flag.startswith("-"):
        return f"{flag} belongs to no flag; only lists take several values, as in --seeds 0 1 2"
    names = flag_names(config)
    kind = config["model"]["kind"]
    setting = flag.removeprefix("--").removeprefix("model.").partition("=")[0]
    having = [other for other, settings in MODEL.items() if setting in settings]
    if flag.startswith("--model.") and kind in having:
        return f"{flag}: the model of this config does not have {setting}; write it into the dict"
    if setting not in names and having:
        return f"{flag} is for {' and '.join(having)}: --model.kind {having[0]}, this is a {kind}"
    names |= {other: names[key] for other, key in OTHER_NAMES.items() if key in names}
    near = difflib.get_close_matches(flag.replace("-", "_").lstrip("_"), names, n=1, cutoff=0.5)
    near = near or difflib.get_close_matches(flag, names, n=1)
    meant = f"did you mean {names[near[0]]}? " if near else ""
    return f"unknown flag {flag}; {meant}--help lists all"
