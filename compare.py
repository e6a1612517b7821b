"""Several runs side by side: one table, and their curves in one figure."""

import json
import shutil
import textwrap
from pathlib import Path

from config import defaults, flatten, flatten_telling
from outcome import kept_of
from plots import draw_compared, read_metrics
from tracking import only_warned


def compare(paths):
    """Print the table of the runs in `paths`, and draw compared.png beside the first.

    A figure of an earlier comparison, which runs/exercise_1_1/* names too, is passed over. Raises
    ValueError for a folder that holds no run.
    """
    figures = "compared.png", "compared.svg"
    paths = [path for path in map(Path, paths) if path.name not in figures]
    if not paths:
        raise ValueError("there are only figures of earlier comparisons there: name run folders")
    runs = [read_run(path) for path in paths]
    names = [run["name"] for run in runs]
    for run, path in zip(runs, paths, strict=True):
        if names.count(run["name"]) > 1:
            run["name"] = f"{path.absolute().parent.name}/{run['name']}"
    print(compared(runs, shutil.get_terminal_size().columns))
    figure = paths[0].parent / "compared.png"
    named = [(run["name"], run["curves"]) for run in runs if run["curves"]]
    if named:
        with only_warned(figure.name):
            draw_compared(named, figure)
            print(f"\ncurves: {figure}")


def read_run(folder):
    """{"name", "config", "rows", "results", "curves"} of a run folder: "rows" are those of its
    metrics.csv, "curves" a list of them, one a seed."""
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} is no run (config.json is missing): name folders like runs/exercise_1_1/*"
        )
    read = {"name": folder.absolute().name, "results": {}}
    parts = [folder, *sorted(folder.glob("seed_*"))]
    try:
        read["config"] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tables = {
            part: read_metrics(part / "metrics.csv")
            for part in parts
            if (part / "metrics.csv").is_file()
        }
        if (folder / "results.json").is_file():
            read["results"] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{folder} holds a damaged file ({error})") from None
    curves, results = [table for table in tables.values() if table], read["results"]
    whole = isinstance(read["config"], dict) and isinstance(results, dict)
    if not whole or (results and not {"val", "mean"} & results.keys()):
        raise ValueError(f"{folder} holds a damaged file (config.json or results.json)")
    finished = sorted(run.get("epochs", 0) for run in results.get("runs", [results]))
    if curves and finished != sorted(map(len, curves)):  # it was trained on since, or trains
        read["results"] = {}
    return read | {"rows": tables.get(folder, []), "curves": curves}


def compared(runs, width=80):
    """The table as text: a row a run, in the order given; wider than `width`, a block a run."""
    configs = [with_one_seed(run["config"]) for run in runs]
    keys = differing(configs)
    header = ["run", "validation", "epoch", "test", "seconds", *keys]
    names = shortened([run["name"] for run in runs])
    table = [header]
    for name, run, config in zip(names, runs, configs, strict=True):
        flat = flatten(config)
        table.append([name, *reached(run), *(shown(flat.get(key, "-")) for key in keys)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    if sum(widths) + 2 * len(widths) - 2 <= width:
        lines = [
            "  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip()
            for row in table
        ]
    else:
        lines = [line for row in table[1:] for line in as_block(header, row, width)]
    return "\n".join(
        [*lines, "", "accuracies; validation in the epoch that was kept, test with its weights"]
    )


def with_one_seed(config):
    """`config` with one key for what a run was drawn by: its seed, or the list of its seeds."""
    drawn = config.get("seeds") or config.get("seed")
    return {key: value for key, value in config.items() if key != "seeds"} | {"seed": drawn}


def as_block(header, row, width):
    """The run, what it reached, and below that its keys, wrapped where the line ends."""
    name, val, epoch, test, seconds, *values = row
    named = zip(header[5:], values, strict=True)
    pairs = [f"{key} {value}" for key, value in named if value != "-"]
    best = f" (epoch {epoch})" if epoch != "-" else ""
    text = f"validation {val}{best}, test {test}, {seconds} s"
    indent = {"initial_indent": "  ", "subsequent_indent": "  ", "break_on_hyphens": False}
    return [name, *textwrap.wrap(text, width, **indent)] + textwrap.wrap(
        ", ".join(pairs), width, **indent
    )


def reached(run):
    """(validation, its epoch, test, seconds) as texts, with what there is of a run that trains."""
    results, rows = run["results"], run["rows"]
    if "mean" in results:
        mean, std = results["mean"], results["std"]
        val, test = (
            f"{mean[key]:.4f}" + (f"+-{std[key]:.4f}" if std[key] is not None else "")
            for key in ("val_accuracy", "test_accuracy")
        )
        return val, "-", test, f"{results['seconds']:.0f}"
    if results:
        val, test = results["val"], results["test"]
        seconds = f"{results['seconds']:.0f}"
        return f"{val['accuracy']:.4f}", str(val["best_epoch"]), f"{test['accuracy']:.4f}", seconds
    if rows:
        kept = kept_of(rows, (defaults | run["config"])["keep"])
        return f"{kept['val/accuracy']:.4f}", f"{kept['epoch']:.0f}", "-", "-"
    return "-", "-", "-", "-"


def differing(configs):
    """The keys, flattened, that do not have one value in all configs."""
    sizes = {f"model.{key}" for key in ("image_size", "in_channels", "num_classes")}
    flats = [
        {key: value for key, value in flatten_telling(config).items() if key not in sizes}
        for config in configs
    ]  # without the sizes, which follow from the data
    keys = dict.fromkeys(key for flat in flats for key in flat)
    return [key for key in keys if len({json.dumps(flat.get(key, "-")) for flat in flats}) > 1]


def shown(value):
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def shortened(names):
    """The names without what all of them begin with, whole words of it."""
    start = 0
    while len(names) > 1 and len(set(names)) == len(names):
        ends = {name.find("-", start) for name in names}
        end = ends.pop()
        if ends or end < 0 or len({name[:end] for name in names}) > 1:
            break
        start = end + 1
    return [name[start:] for name in names]
