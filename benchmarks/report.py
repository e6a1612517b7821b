"""What the benchmarks share: contenders in child processes, one table, one file of results."""

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from checkpoint import load_last
from tracking import git_commit, processor_name


@dataclass
class Output:
    """The flag that benchmarks share."""

    out: str = ""
    """folder; left out it is results/, or runs/ for a look with other settings"""

    @property
    def folder(self):
        return Path(self.out or ("results" if self == type(self)() else "runs"))


def machine_name():
    """A word for this machine: its processor and the number of its cores."""
    model = processor_name().lower()
    word = "".join(c if c.isalnum() else "-" for c in model).strip("-")
    return f"{word}-{os.cpu_count()}-cores"


def run_contender(module, name, *arguments):
    """Run `python -m module --contender name` on its own; what it printed last, as JSON.

    A contender whose package is missing or that fails is reported as {"error": reason}.
    """
    command = [sys.executable, "-m", module, "--contender", name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no message"
        return {"error": reason[:100]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def seconds_an_epoch(folder, images):
    """Seconds that the steps of every epoch took in the run at `folder`, on so many images."""
    return [images / row["train/images_per_second"] for row in load_last(folder)["history"]]


def spread(values):
    return {"median": median(values), "min": min(values), "max": max(values)}


def columns(header, rows):
    """Rows of text under a header, the first column to the left."""
    table = [header, *rows]
    widths = [max(len(row[k]) for row in table) for k in range(len(header))]
    lines = []
    for row in table:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def print_table(title, header, rows):
    print(f"\n{title}\n{columns(header, rows)}")


def write_results(name, results, folder, machine=None):
    """Lay `results` under `name` into benchmarks-<machine>.json, with what made them."""
    path = Path(folder) / f"benchmarks-{machine or machine_name()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    everything = json.loads(path.read_text()) if path.is_file() else {}
    everything[name] = {
        "command": f"python -m benchmarks.{name.split('-')[0]} {' '.join(sys.argv[1:])}".strip(),
        "commit": git_commit(),
        "machine": machine_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    } | results
    path.write_text(json.dumps(everything, indent=2) + "\n")
    print(f"\nwritten to {path}")
