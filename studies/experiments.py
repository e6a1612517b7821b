"""Runs that README speaks of, in results/: what they reached, and how they were made."""

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch

from checkpoint import load_checkpoint, save_checkpoint
from plots import read_metrics

RESULTS = Path(__file__).parents[1] / "results"
LARGEST_WEIGHTS = 2 * 2**20  # bytes
APART = re.compile(r"(.+)-seed_\d+")  # the name of a seed that was trained and added by itself


@dataclass(frozen=True)
class Experiment:
    """What a run, or those of several seeds, left in results/<name>/."""

    name: str
    results: dict
    manifest: dict
    metrics: list  # of every seed its rows of metrics.csv, {"epoch": 1.0, "val/loss": ...}
    mirrored: list  # of every seed the test accuracy with mirror images, where it was measured

    @property
    def runs(self):
        return self.results.get("runs", [self.results])

    @property
    def epochs(self):
        return self.runs[0]["epochs"]

    def values(self, split, metric):
        """A number a seed, of the epoch that validation chose."""
        return [run[split][metric] for run in self.runs]

    def last(self, key):
        """A number a seed, of the last epoch."""
        return [rows[-1][key] for rows in self.metrics]

    @property
    def minutes(self):
        return self.results["seconds"] / 60

    @property
    def minutes_a_seed(self):
        """Of seeds that were trained one by one."""
        return fmean(run["seconds"] for run in self.runs) / 60


def load_experiments(folder=RESULTS):
    """{name: Experiment} of all that was added; a seed that was added by itself, from a folder
    called <name>-seed_<n>, is one more run of the experiment <name>."""
    experiments = {}
    for path in sorted(folder.glob("*/results.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        if "exercise" in results:
            manifest = json.loads(path.with_name("manifest.json").read_text(encoding="utf-8"))
            seeds = [f"-seed_{run['config']['seed']}" for run in results.get("runs", [])] or [""]
            metrics = [read_metrics(path.with_name(f"metrics{seed}.csv")) for seed in seeds]
            name, mirrored = path.parent.name, path.with_name("mirrored.json")
            both = json.loads(mirrored.read_text(encoding="utf-8")) if mirrored.is_file() else {}
            experiments[name] = Experiment(
                name, results, manifest, metrics, both.get("mirrored", [])
            )
    for name in [name for name in experiments if APART.fullmatch(name)]:
        whole = APART.fullmatch(name)[1]
        if whole not in experiments:
            raise ValueError(f"{folder / name} is one more seed of {whole}: add that, too")
        experiments[whole] = with_seed(experiments[whole], experiments.pop(name))
    return experiments


def with_seed(experiment, seed):
    """An Experiment with the runs of another one. Raises ValueError where it has that seed."""
    runs = experiment.runs + seed.runs
    seeds = [run["config"]["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"results/{seed.name} repeats a seed of {experiment.name}: {seeds}")
    measured = experiment.mirrored and seed.mirrored  # of all seeds or of none
    return replace(
        experiment,
        results={
            "runs": runs,
            "seconds": experiment.results["seconds"] + seed.results["seconds"],
        },
        metrics=experiment.metrics + seed.metrics,
        mirrored=experiment.mirrored + seed.mirrored if measured else [],
    )


def add(run, results=RESULTS):
    """Take the finished run in the folder `run` into results/, its weights where they are small.

    Raises FileNotFoundError where it has not finished.
    """
    name, folders = find_finished(run)
    target = results / name
    target.mkdir(parents=True, exist_ok=True)
    for pattern in ("metrics*.csv", "manifest*.json", "mirrored.json"):
        for old in target.glob(pattern):
            old.unlink()
    first = folders[0] / "manifest.json"
    shutil.copyfile(first, target / "manifest.json")
    for folder in folders:
        suffix = f"-{folder.name}" if folder != Path(run) else ""
        manifest = folder / "manifest.json"
        shutil.copyfile(folder / "metrics.csv", target / f"metrics{suffix}.csv")
        if started(manifest) != started(first):  # a seed that was trained apart
            shutil.copyfile(manifest, target / f"manifest{suffix}.json")
    shutil.copyfile(Path(run) / "results.json", target / "results.json")
    if not APART.fullmatch(name):
        add_weights(folders[0] / "checkpoints" / "best.pt", results / "weights" / f"{name}.pt")
    print(f"{run} is in {target}")


def started(manifest):
    """What started a run, of its manifest.json."""
    about = json.loads(manifest.read_text(encoding="utf-8"))
    return [about[key] for key in ("command", "commit", "device", "threads")]


def find_finished(run):
    """(its name in results/, the folder of the run or those of its seeds).

    Raises FileNotFoundError where it has not finished.
    """
    source = Path(run)
    if not (source / "results.json").is_file():
        raise FileNotFoundError(f"{run}: no results.json there; give a run that has finished")
    outcome = json.loads((source / "results.json").read_text(encoding="utf-8"))
    seeds = [source / f"seed_{seed}" for seed in outcome.get("seeds", [])]
    return f"{outcome['exercise']}-{source.name}", seeds or [source]


def add_weights(source, target):
    """The weights alone, in bfloat16 where float32 is too large, or not at all."""
    state = load_checkpoint(source)
    kept = {key: state[key] for key in ("epoch", "config", "data")}
    target.parent.mkdir(exist_ok=True)
    for dtype in (torch.float32, torch.bfloat16):
        weights = {
            k: v.to(dtype) if v.is_floating_point() else v for k, v in state["model"].items()
        }
        save_checkpoint(target, kept | {"model": weights, "history": []})
        if target.stat().st_size <= LARGEST_WEIGHTS:
            return
    target.unlink()
    print(f"the weights of {source} are too large to be kept")
