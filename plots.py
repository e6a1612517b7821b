"""The figures of a run: curves from metrics.csv and the confusion matrix."""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from distributed import first_only

TRAIN, VAL = "#0072b2", "#d55e00"  # Okabe and Ito: safe for colour-blind readers


@first_only
def draw_curves(run_dir):
    """plots/curves.png: loss and accuracy of training and validation against the epoch."""
    with (Path(run_dir) / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    epochs = [int(row["epoch"]) for row in rows]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, metric, unit in zip(
        axes, ("loss", "accuracy"), (" (nats per image)", ""), strict=True
    ):
        for split, colour, style in (("train", TRAIN, "-"), ("val", VAL, "--")):
            values = [float(row[f"{split}/{metric}"]) for row in rows]
            label = {"train": "training", "val": "validation"}[split]
            marker = "o" if len(epochs) < 10 else None
            axis.plot(epochs, values, style, color=colour, label=label, marker=marker, markersize=4)
        axis.set(xlabel="epoch", ylabel=f"{metric}{unit}")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    save_figure(figure, Path(run_dir) / "plots" / "curves.png")


@first_only
def draw_confusion(confusion, classes, run_dir):
    """plots/confusion.png: `confusion` (K, K) counts, rows true, coloured by the row's shares."""
    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    side = 2.6 + 0.42 * len(classes)
    figure, axis = plt.subplots(figsize=(side + 0.6, side), layout="constrained")
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= 30:
        for true in range(len(classes)):
            for predicted in range(len(classes)):
                count = int(confusion[true, predicted])
                colour = "white" if shares[true, predicted] > 0.5 else "#333333"
                if count:
                    axis.text(
                        predicted, true, count, ha="center", va="center", color=colour, size=7
                    )
    axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axis.set_yticks(range(len(classes)), classes)
    axis.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    save_figure(figure, Path(run_dir) / "plots" / "confusion.png")


def save_figure(figure, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
