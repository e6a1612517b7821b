"""The figures of a run: curves from metrics.csv and the confusion matrix."""

import csv
import warnings
from itertools import islice
from pathlib import Path
from statistics import fmean

import matplotlib
import torch
from matplotlib import font_manager
from matplotlib.figure import Figure

from checks import started_config
from distributed import first_only

# matplotlib's own font has no letters of these scripts: of what a system brings for them, what is
# installed here is asked where it lacks one
OTHER_SCRIPTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "WenQuanYi Zen Hei"),  # Linux
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Nirmala UI", "Segoe UI"),  # Windows
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS"),  # macOS
)
installed = font_manager.get_font_names()
matplotlib.rcParams["font.family"] += [font for font in OTHER_SCRIPTS if font in installed]
# where all of them do, a box is drawn: no need to say so every time
warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)

TRAIN, VAL = "#0072b2", "#d55e00"  # Okabe and Ito: safe for colour-blind readers
SPLITS = (("train", TRAIN, "-"), ("val", VAL, "--"))
NAMES = {"train": "training", "val": "validation"}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
MOST_NAMED = 60  # classes of a confusion matrix; of more it is drawn without their names
STYLES, MARKERS = ("-", "--", "-.", ":"), "osv^D*PXh"  # so that grey print tells them apart, too


def draw_curves(run_dir):
    """plots/curves.png: loss and accuracy of training and validation against the epoch."""
    draw_seeds(run_dir, [run_dir])


def read_metrics(path):
    """The rows of a metrics.csv, numbers as floats; nan where there is none."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        return [{key: float(value or "nan") for key, value in row.items()} for row in rows]


def curve_axes(height=3.4):
    """(figure, its two axes): loss and accuracy against the epoch."""
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, label in zip(axes, ("loss (nats per image)", "accuracy (share)"), strict=True):
        axis.set(xlabel="epoch", ylabel=label)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


@first_only
def draw_seeds(run_dir, folders):
    """run_dir/plots/curves.png of the runs in `folders`, one a seed: of several their mean, and a
    band from the lowest to the highest."""
    runs = [read_metrics(Path(folder) / "metrics.csv") for folder in folders]
    figure, axes = curve_axes()
    for axis, metric in zip(axes, ("loss", "accuracy"), strict=True):
        for split, colour, style in SPLITS:
            epochs, mean, *band = spread(runs, f"{split}/{metric}")
            if len(runs) > 1:
                axis.fill_between(epochs, *band, color=colour, alpha=0.2, linewidth=0)
            look = {"marker": "o" if len(epochs) < 10 else None, "markersize": 4}
            axis.plot(epochs, mean, style, color=colour, label=NAMES[split], **look)
        axis.legend(frameon=False)
    config = started_config(Path(folders[0]))
    if config.get("teacher", "none") != "none":
        axes[0].set_title("training: against the teacher's answers", size=9)
    elif config.get("label_smoothing"):
        axes[0].set_title(
            f"training: against labels smoothed by {config['label_smoothing']:g}", size=9
        )
    if len(runs) > 1:
        figure.suptitle(f"mean of {len(runs)} seeds; band: lowest to highest", size=10)
    save_figure(figure, Path(run_dir) / "plots" / "curves.png")


def spread(runs, key):
    """(epochs, mean, lowest, highest) of `key` in several runs, each its rows of metrics.csv, as
    far as all of them have come."""
    columns = list(zip(*([row[key] for row in rows] for rows in runs), strict=False))
    epochs = [row["epoch"] for row in runs[0]][: len(columns)]
    return epochs, list(map(fmean, columns)), list(map(min, columns)), list(map(max, columns))


def draw_compared(runs, path):
    """One figure of several runs [(name, its seeds, each its rows of metrics.csv)]: validation
    curves, of several seeds the mean in a band from the lowest to the highest."""
    figure, axes = curve_axes(height=3.6 + 0.18 * len(runs))
    for number, (name, seeds) in enumerate(runs):
        label = name if len(seeds) == 1 else f"{name}, {len(seeds)} seeds"
        label = f" {drawable(label)}" if name[:1] == "_" else drawable(label)  # "_" would hide it
        colour = COLOURS[number % 7]
        look = {"color": colour, "marker": MARKERS[number % 9], "markersize": 4}
        look |= {"linestyle": STYLES[number % 4], "markevery": max(1, len(seeds[0]) // 8)}
        for axis, metric in zip(axes, ("loss", "accuracy"), strict=True):
            epochs, mean, *band = spread(seeds, f"val/{metric}")
            if len(seeds) > 1:
                axis.fill_between(epochs, *band, color=colour, alpha=0.2, linewidth=0)
            axis.plot(epochs, mean, label=label, **look)
    for axis in axes:
        axis.set_ylabel(f"validation {axis.get_ylabel()}")
    lines, names = axes[0].get_legend_handles_labels()
    legend = figure.legend(lines, names, loc="outside lower left", frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    save_figure(figure, path)


@first_only
def draw_confusion(confusion, classes, run_dir):
    """plots/confusion.png: `confusion` (K, K) counts, rows true, coloured by the row's shares."""
    total = int(confusion.sum())
    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    named = len(classes) <= MOST_NAMED
    side = 2.6 + 0.42 * (len(classes) if named else 25)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= 30:
        for true in range(len(classes)):
            for predicted in range(len(classes)):
                count = int(confusion[true, predicted])
                colour = "white" if shares[true, predicted] > 0.5 else "#333333"
                if count:
                    axis.text(
                        predicted, true, count, ha="center", va="center", color=colour, size=7
                    )
    if named:
        plain = {"parse_math": False}  # a name with dollars is a name
        names = list(map(fitting(classes).get, classes))
        axis.set_xticks(range(len(classes)), names, rotation=45, ha="right", **plain)
        axis.set_yticks(range(len(classes)), names, **plain)
    axis.set(xlabel="predicted class", ylabel="true class", title=f"{total:,} test images")
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    save_figure(figure, Path(run_dir) / "plots" / "confusion.png")


@first_only
def draw_samples(dataset, batches, run_dir):
    """plots/samples.png: the first images of `batches`, as trained, with their classes."""
    shown = list(islice((pair for batch in batches for pair in zip(*batch, strict=True)), 32))
    images = torch.stack([image.cpu() for image, _ in shown])
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (dataset.mean, dataset.std))
    titles = [dataset.classes[label] for _, label in shown]
    path = Path(run_dir) / "plots" / "samples.png"
    draw_grid(images * std + mean, titles, path)
    print(f"what it is trained on: {path}")


def draw_grid(images, titles, path, head="", columns=8):
    """One picture of images (n, C, H, W) in [0, 1], each with a title of some lines above it, and
    a line above all."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    side = max(height, width)
    above = max(1, round((0.06 + 0.16 * max(t.count("\n") + 1 for t in titles)) * side))
    gap = max(1, side // 12)
    page = torch.ones(3, rows * (height + above), columns * (width + gap) - gap)
    tall = 9 * page.shape[1] / page.shape[2] + 0.1  # inches
    above_all = 0.3 if head else 0
    figure = Figure(figsize=(9, tall + above_all))
    figure.text(0.01, 1 - 0.1 / (tall + above_all), head, va="top")
    axis = figure.subplots()
    short = fitting(line for title in titles for line in title.split("\n"))
    for number, (image, title) in enumerate(zip(images, titles, strict=True)):
        row, column = divmod(number, columns)
        top, left = row * (height + above) + above, column * (width + gap)
        page[:, top : top + height, left : left + width] = image.clamp(0, 1)
        lines = "\n".join(short[line] for line in title.split("\n"))
        place = left - 0.5, top - 0.03 * side - 0.5
        axis.text(*place, lines, size=8, va="bottom", parse_math=False)
    axis.imshow(page.permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.set_axis_off()
    axis.set_position([0.01, 0.01, 0.98, 0.98 * tall / (tall + above_all)])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)  # pixels gain nothing by an SVG


def fitting(names):
    """{name: itself, or shortened where it would run into what stands beside it}: at the end, in
    the middle or at the beginning, wherever different names stay different."""
    cuts = (
        lambda name: f"{name[:14]}...",
        lambda name: f"{name[:7]}...{name[-7:]}",
        lambda name: f"...{name[-14:]}",
    )
    plain = {name: drawable(name) for name in names}
    tries = [{n: p if len(p) < 19 else cut(p) for n, p in plain.items()} for cut in cuts]
    names = set(plain.values())
    return next((short for short in tries if len(set(short.values())) == len(names)), tries[0])


def drawable(name):
    """`name` with a question mark for every byte of a file's name that is not UTF-8."""
    return name.encode(errors="replace").decode()


def save_figure(figure, path):
    """Write `figure` to `path`, a PNG, and beside it as SVG, the same bytes for the same figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    figure.set_layout_engine("none")  # what was laid out stays, and is not reckoned twice
    with matplotlib.rc_context({"svg.hashsalt": "lab01"}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
