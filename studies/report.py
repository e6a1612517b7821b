"""README.md, FINDINGS.md and their figures, written from results/: no number of a result is typed
by hand.

    python -m studies.report                                   # both pages and assets/, anew
    python -m studies.report --add runs/exercise_1_1/default   # first, a finished run to results/

The text is studies/*.md.jinja; what stands in {{ }} there is computed here.
"""

import json
import math
import re
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from scipy import stats

from exits import exit_cleanly, read_flags
from files import write_whole
from studies.experiments import RESULTS, add, load_experiments
from studies.report_figures import draw_figures
from studies.trust_table import answers, number, percent
from summary import wilson

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "FINDINGS.md")
REFERENCE = {  # what the text reports of one run each, of the test images where nothing is said
    "1.1": 0.9733,
    "1.2": 0.9756,
    "1.3": 0.761,
    "1.1 record": 0.9965,  # of an MLP: Ciresan et al. 2010, "Deep, big, simple neural nets"
    "1.1 loss": 0.0016719,
    "1.2 loss": 0.001513,
    "1.1 validation": 0.97,
    "1.2 validation": 0.976,
    "1.3 validation": 0.765,
}
TRAINED_ON = 8522  # of Imagenette's 9,469 training images, nine in ten
WIDE_TRAINED_ON = 8996  # nineteen in twenty
DEPTHS = ("mlp", "cnn", "stall", "cifar10")  # the studies in results/depth/
NETWORKS = ("best", "wide")  # that ImageNet is reckoned for, on a core and on a GPU
BY_THE_STATUE = 3536  # the one of the text's six pictures that its network has wrong
SAID = {  # what the text sees in the maps of its network
    1936: "sees the horn",
    1526: "sees windows and tower",
    1527: "sky makes it a parachute",
    3535: "a parachute by the sky alone",
    3536: "no sky, so taken for a church",
    3537: "a parachute by the sky alone",
}


def share(values, digits=4):
    """0.9739, or of several seeds 0.9739 ± 0.0009: mean and standard deviation."""
    values = values if isinstance(values, list) else [values]
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{spread}"


def seeds_of(experiment):
    count = len(experiment.runs)
    return "one seed" if count == 1 else f"{count} seeds"


def paired(ours, theirs):
    """{"mean", "low", "high", "worst"} of the differences of paired values, in points, with the
    95 % interval of Student's t, and the largest."""
    differences = [100 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    mean, error = fmean(differences), stdev(differences) / len(differences) ** 0.5
    bounds = stats.t.interval(0.95, len(differences) - 1, mean, error) if error else (mean, mean)
    low, high = bounds
    return {"mean": mean, "low": low, "high": high, "worst": max(differences)}


def told(gain):
    """3.34 (1.74 to 4.94): what `paired` returns."""
    return f"{gain['mean']:.2f} ({gain['low']:.2f} to {gain['high']:.2f})"


def best_within(experiment, epochs):
    """Of every seed the highest validation accuracy of the first `epochs`."""
    return [max(row["val/accuracy"] for row in rows[:epochs]) for rows in experiment.metrics]


def load_json(name):
    path = RESULTS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def render(page):
    """The text of one of PAGES."""
    environment = Environment(
        loader=FileSystemLoader(ROOT / "studies"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"share": share, "percent": percent, "number": number}
    runs = load_experiments()
    benchmarks = load_json("benchmarks-amd-epyc-2-cores.json")
    depth = {name: load_json(f"depth/{name}/results.json") for name in DEPTHS}
    ingredients = {n: load_json(f"ingredients/{n}/results.json") for n in ("cnn", "mlp")}
    text = environment.get_template(f"{page}.jinja").render(
        runs=runs,
        reference=REFERENCE,
        paired=paired,
        told=told,
        seeds_of=seeds_of,
        wilson=wilson,
        depth=depth,
        imagenet=tell_imagenet(
            benchmarks["scale"]["photos"], *(runs[f"exercise_2_3-{n}"].runs for n in NETWORKS)
        ),
        **tell_depth(depth["mlp"]),
        cnn=tell_depth(depth["cnn"]),
        flat=tell_depth(depth["cifar10"]),
        stall=tell_stall(depth["stall"]),
        ingredients=tell_ingredients(ingredients["cnn"]),
        mlp_ingredients=tell_ingredients(ingredients["mlp"]),
        mlp_ingredients_settings=ingredients["mlp"] and ingredients["mlp"]["settings"],
        mlp_ingredients_minutes=ingredients["mlp"] and ingredients["mlp"]["seconds"] / 60,
        ingredients_settings=ingredients["cnn"] and ingredients["cnn"]["settings"],
        **tell_trust(load_json("trust/trust.json")),
        networks=tell_networks(runs),
        early=best_within(
            runs["exercise_1_3-default"], runs["exercise_1_3-default_seven_tenths"].epochs
        ),
        **tell_speed(benchmarks),
    )
    text = re.sub(r"\n{3,}", "\n\n", re.sub(r" +\n", "\n", text))
    return "\n\n".join(map(reflow, text.split("\n\n")))


def reflow(block):
    """Prose in lines of a readable length; tables, code, pictures and headings as they are."""
    if block.lstrip()[:1] in "|#`!<.-" or "```" in block or block.startswith(" "):
        return block
    end = "\n" if block.endswith("\n") else ""
    bound = block.replace(" %", "\0%")  # a number and its unit stay on one line
    filled = textwrap.fill(bound, 105, break_long_words=False, break_on_hyphens=False)
    return filled.replace("\0", " ") + end


def tell_trust(trust):
    """What the text says of results/trust/trust.json."""
    at = trust["classes"].index("parachute")
    grid = np.array(trust["colours"]["grid"]["probabilities"])[..., at]
    mosaics = [
        round(100 * fmean(summary["mean"] for summary in others.values()))
        for others in trust["mosaics"].values()
    ]
    return {
        "trust": trust,
        "kept": trust["unseen"]["kept"],
        "taken": trust["unseen"]["taken"],
        "noise": "object removed, noise",
        "surest": {"probability": grid.max(), "count": grid.size},
        "where": trust["unseen"]["where"],
        "skies": trust["colours"]["skies"],
        "swapped": trust["unseen"]["swapped"],
        "mosaics": mosaics,
        "on_parachutes": named_on(trust["unseen"]["swapped"]["cut out"]["pairs"], "parachute"),
        "more": lambda kind, order: number(trust["curves"][kind][order]["more_than_map"]),
        "less": lambda kind, order: number(negated(trust["curves"][kind][order]["more_than_map"])),
        "area": lambda kind, order: f"{trust['curves'][kind][order]['area']['mean']:.2f}",
        "said": SAID,
    }


def named_on(pairs, background):
    """The share of the objects on emptied pictures of the class `background` that are named, with
    Wilson's interval over the objects, each of which is on one of them."""
    rows = [others[background] for others in pairs.values() if background in others]
    hits, count = (sum(row[key] for row in rows) for key in ("object", "count"))
    low, high = wilson(hits, count)
    return {"mean": hits / count, "low": low, "high": high, "count": count}


def negated(summary):
    return summary | {"mean": -summary["mean"], "low": -summary["high"], "high": -summary["low"]}


def tell_networks(experiments):
    """Of every network that was asked the same: {"name", "accuracy", "answers", "six": what it says
    of the text's pictures, "sure": how sure it is of all but 3536}, the one of results/trust first,
    then those of its others/."""
    reached = {
        run["run_dir"]: run["test"]["accuracy"]
        for experiment in experiments.values()
        for run in experiment.runs
    }
    networks = []
    for path in ("trust/trust.json", *sorted(RESULTS.glob("trust/others/*/trust.json"))):
        study = load_json(path)
        run_dir = str(Path(study["checkpoint"]).parents[1])
        name = Path(path).parent.name.replace("_", " ")
        painted = study["unseen"]["taken"]["object removed"]["parachute"]["mean"]
        confidences = [row["confidence"] for row in study["six"] if row["index"] != BY_THE_STATUE]
        sure = [f"{bound(confidences):.2f}" for bound in (min, max)]
        networks.append(
            {"name": name, "accuracy": reached[run_dir], "answers": answers(study)}
            | {"painted": round(100 * painted), "six": study["six"]}
            | {"sky": percent(study["parachutes"]["noise"]["sky alone"])}
            | {"sure": " to ".join(dict.fromkeys(sure))}
        )
    return networks


def tell_depth(study):
    """What the text says of a study of depth: accuracies by arm and number of layers."""
    if study is None:
        return {}
    reached = {}
    for cell in study["cells"]:
        key = cell["config"]["arm"], cell["config"]["depth"]
        reached.setdefault(key, []).append(cell["history"][-1]["val/accuracy"])
    return {
        "deep": lambda arm, layers: share(reached[arm, layers], 3),
        "ahead": lambda arm, other, layers: paired(reached[arm, layers], reached[other, layers]),
        "arms": list(dict.fromkeys(arm for arm, _ in reached)),
        "depths": study["settings"]["depths"],
        "width": study["settings"]["width"],
    }


def tell_stall(study):
    """tell(arm, key): that of the last epoch in results/depth/stall, or its highest, over its
    seeds."""
    cells = study["cells"] if study else []

    def tell(arm, key, highest=False):
        histories = [[row[key] for row in c["history"]] for c in cells if c["config"]["arm"] == arm]
        return share([max(values) if highest else values[-1] for values in histories], 3)

    return tell


def tell_ingredients(study):
    """What is left out of a preset best, what that reaches a seed, and what it costs, in points:
    nothing first, then what costs most."""
    reached = {}
    for cell in study["cells"] if study else []:
        plain, mirrored = reached.setdefault(cell["config"]["arm"], ([], []))
        plain.append(cell["history"][-1]["val/accuracy"])
        mirrored.append(cell.get("mirrored"))  # digits have no mirror image
    rows = [
        {"name": name, "plain": plain, "mirrored": mirrored}
        | {"cost": paired(reached["nothing"][0], plain) if name != "nothing" else None}
        | {"always": all(a > b for a, b in zip(reached["nothing"][0], plain, strict=True))}
        for name, (plain, mirrored) in reached.items()
    ]
    return sorted(rows, key=lambda row: -row["cost"]["mean"] if row["cost"] else -math.inf)


def tell_imagenet(photos, runs, on_gpu):
    """What ImageNet-1k at 128 pixels would take at the measured rates: decoding on two cores, steps
    on one, or on a GPU."""
    images, bytes_each = 1_281_167, 3 * 128**2
    rate = fmean(TRAINED_ON * run["epochs"] / run["seconds"] for run in runs)
    hours = images / rate / 3600
    gpu_rate = fmean(WIDE_TRAINED_ON * run["epochs"] / run["seconds"] for run in on_gpu)
    return {
        "gigabytes": images * bytes_each / 1e9,
        "decode_minutes": images / photos["images_a_second"] / 60,
        "rate": rate,
        "epoch_hours": hours,
        "days": 40 * hours / 24,
        "dollars": 40 * hours * 0.05,
        "gpu_rate": gpu_rate,
        "gpu_hours": 40 * images / gpu_rate / 3600,
    }


def tell_speed(benchmarks):
    """What the text says of the benchmarks."""
    cifar, cam = benchmarks["cifar"]["contenders"], benchmarks["cam"]["contenders"]

    def learned(name):
        return f"{cifar[name]['val_accuracy_mean']:.3f} ± {cifar[name]['val_accuracy_std']:.3f}"

    return {
        "benchmarks": benchmarks,
        "startup": benchmarks["startup"]["seconds"]["total"],
        "seeds_seconds": benchmarks["overhead"]["one_and_eight_seeds"]["seconds"],
        "parts": benchmarks["overhead"]["parts_of_an_epoch"],
        "cifar": cifar,
        "learned": learned,
        "maps": {name: f"{row['images_a_second']:.0f}" for name, row in cam.items()},
        "scale": benchmarks["scale"]["sizes"],
        "scale_images": benchmarks["scale"]["images"],
        "scale_size": benchmarks["scale"]["size"],
        "photos": benchmarks["scale"]["photos"],
        "million": benchmarks.get("scale-1000000", {"sizes": {"1x": None}})["sizes"]["1x"],
        "contenders": {
            "Keras 3 on JAX, fit": "Keras 3 on JAX, `fit`",
            "JAX scan": "JAX `scan` over the epoch",
            "LAB01, compiled step": "LAB01, compiled step, the default from 30,000 steps on",
        },
    }


@dataclass
class Flags:
    add: tuple[str, ...] = ()
    """finished runs to take into results/ first"""


@exit_cleanly
def main(flags):
    for run in flags.add:
        add(run)
    warnings.simplefilter("error")
    draw_figures(load_experiments(), ROOT / "assets")
    for page in PAGES:
        write_whole(ROOT / page, render(page))
    print(f"{', '.join(PAGES)} and assets/ are those of results/")


if __name__ == "__main__":
    main(read_flags(Flags))
