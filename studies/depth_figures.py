"""The figures of the depth study, as PNG and SVG, byte for byte the same from the same results."""

from itertools import product
from statistics import fmean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogFormatter, MaxNLocator, NullLocator

from studies.depth_table import GROUPS, last_of, pick

STYLES = {  # colour (Okabe and Ito), line and marker: apart in grey, too; blue is without skips
    "plain": ("#0072b2", "-", "s"),
    "plain, He": ("#56b4e9", "--", "^"),
    "residual": ("#d55e00", "-.", "o"),
    "dropout 0.5": ("#e69f00", "-", "o"),
    "no dropout": ("#d55e00", "--", "s"),
}
ACCURACIES = [0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99]


class PlainFormatter(LogFormatter):
    """0.9, not 9e-01."""

    def __call__(self, value, position=None):
        return f"{value:g}" if super().__call__(value, position) else ""


def draw_figures(results, folder):
    """depth and gradients-<depth>, or curves for the stall, as .png and .svg in `folder`."""
    with plt.rc_context({"svg.hashsalt": "depth"}):
        if results["settings"]["network"] == "stall":
            save(draw_curves(results), folder / "curves")
            return
        save(draw_depth(results), folder / "depth")
        for depth in results["settings"]["depths"]:
            save(draw_gradients(results, depth), folder / f"gradients-{depth}")


def save(figure, path):
    figure.savefig(f"{path}.png", dpi=150)
    figure.savefig(f"{path}.svg", metadata={"Date": None})
    plt.close(figure)


def style_of(arm):
    colour, line, marker = STYLES[arm.removesuffix(" + BatchNorm")]
    return {"color": colour, "linestyle": line, "marker": marker, "markersize": 5}


def draw_band(axis, places, values, **style):
    """The mean over the seeds and their range; `values` has a list of seeds a place."""
    values = np.array(values, dtype=float)  # None becomes nan
    axis.plot(places, values.mean(1), **style)
    band = {"color": style["color"], "alpha": 0.2, "linewidth": 0}
    axis.fill_between(places, values.min(1), values.max(1), **band)


def tidy(axis):
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def draw_depth(results):
    """Accuracy above, loss below, against the depth; without and with BatchNorm side by side."""
    settings, groups = results["settings"], GROUPS[results["settings"]["network"]]
    size = (2, len(groups))
    figure, axes = plt.subplots(*size, figsize=(1.2 + 4.3 * len(groups), 6.4), sharex=True,
                                sharey="row", squeeze=False, layout="constrained")  # fmt: skip
    depths = sorted(settings["depths"])
    for column, (title, arms) in enumerate(groups.items()):
        for row, key in enumerate(("val/accuracy", "train/loss")):
            axis = axes[row, column]
            for arm in arms:
                values = [last_of(results, arm, depth, key) for depth in depths]
                draw_band(axis, depths, values, label=arm.removesuffix(" + BatchNorm"),
                          **style_of(arm))  # fmt: skip
            tidy(axis)
        axes[0, column].set_title(title, fontsize=10)
        layers = "convolutions" if settings["network"] == "cnn" else "linear layers"
        axes[1, column].set_xlabel(layers)
    for axis in axes[0]:
        largest = fmean(cell["largest_class"] for cell in results["cells"])
        axis.axhline(largest, color="#777777", linewidth=1, linestyle=":")
        where = (depths[0], largest)
        axis.annotate("always the largest class", where, (0, 3), textcoords="offset points",
                      fontsize=8, color="#555555")  # fmt: skip
    best = max(cell["history"][-1]["val/accuracy"] for cell in results["cells"])
    scale_accuracy(axes[0, 0], best)
    axes[0, 0].set_ylabel("validation accuracy")
    axes[1, 0].set_ylabel("training loss, nats per image")
    scale_logs(axes[1])
    axes[1, 0].yaxis.set_major_formatter("{x:g}")
    axes[1, 0].yaxis.set_minor_formatter(PlainFormatter())
    low, high = axes[1, 0].get_ylim()
    if low > 0 and high < 10 * low:  # a decade would have too few ticks
        axes[1, 0].yaxis.set_major_locator(MaxNLocator(6))
        axes[1, 0].yaxis.set_minor_locator(NullLocator())
    axes[0, 0].set_xscale("log", base=2)
    axes[0, 0].set_xticks(depths, [str(depth) for depth in depths])
    axes[0, 0].xaxis.set_minor_locator(NullLocator())
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def scale_logs(axes):
    """Logarithmic axes that share their range, where anything at all is above zero."""
    lines = [line.get_ydata() for axis in axes for line in axis.get_lines()]
    if any((np.asarray(values) > 0).any() for values in lines):
        axes[0].set_yscale("log")


def scale_accuracy(axis, best):
    """Even steps for every factor of the error, so that 0.97 and 0.98 are as far as 0.4 and 0.6;
    even steps of the accuracy where none comes near 1."""
    if best < 0.85:
        axis.set_ylim(0, 1.1 * best)
        return

    def error(accuracy):
        return -np.log10(np.clip(1 - np.asarray(accuracy, dtype=float), 1e-4, None))

    axis.set_yscale("function", functions=(error, lambda value: 1 - 10 ** -np.asarray(value)))
    top = min(1 - (1 - best) / 1.3, 1 - 1e-4)
    ticks = [tick for tick in ACCURACIES if tick <= top]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ylim(0, top)


def draw_gradients(results, depth):
    """Norms of the gradient in every layer: at the start left, trained right, biases below."""
    groups = GROUPS[results["settings"]["network"]]
    whens = {"init": "at initialisation", "trained": "after training"}
    figure, axes = plt.subplots(2, 2, figsize=(9.8, 6.8), sharex=True, sharey="row",
                                layout="constrained")  # fmt: skip
    for column, (when, title) in enumerate(whens.items()):
        for row, kind in enumerate(("weights", "biases")):
            for number, arms in enumerate(groups.values()):
                for arm in arms:
                    draw_norms(axes[row, column], pick(results, arm, depth), when, kind,
                               number > 0, arm)  # fmt: skip
            tidy(axes[row, column])
        axes[0, column].set_title(title, fontsize=10)
        axes[1, column].set_xlabel("layer, from input to output")
        axes[1, column].xaxis.get_major_locator().set_params(integer=True)
    for row, kind in enumerate(("weights", "biases")):
        axes[row, 0].set_ylabel(f"norm of the loss's gradient, {kind}")
        scale_logs(axes[row])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_norms(axis, cells, when, kind, hollow, arm):
    """The median over the seeds, in the layers' order; norms of zero leave a gap."""
    norms = np.array([cell["gradients"][when][kind] for cell in cells], dtype=float)
    norms = np.median(norms, 0)
    style = style_of(arm) | {"markevery": max(1, len(norms) // 10), "label": arm}
    if hollow:
        style |= {"markerfacecolor": "white", "linewidth": 1}
    axis.plot(range(1, len(norms) + 1), np.where(norms > 0, norms, np.nan), **style)


def draw_curves(results):
    """Accuracy and loss of training, dropout off, and validation against the epoch."""
    (depth,) = results["settings"]["depths"]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    units = {"accuracy": "accuracy", "loss": "loss, nats per image"}
    splits = {"train_without_dropout": "training, dropout off", "val": "validation"}
    (arms,) = GROUPS["stall"].values()
    for axis, (key, unit) in zip(axes, units.items(), strict=True):
        for arm, (split, words) in product(arms, splits.items()):
            histories = [cell["history"] for cell in pick(results, arm, depth)]
            epochs = range(1, min(map(len, histories)) + 1)
            values = [[h[epoch - 1][f"{split}/{key}"] for h in histories] for epoch in epochs]
            style = style_of(arm) | {"markevery": max(1, len(values) // 8), "linestyle": "-"}
            if split != "val":
                style |= {"markerfacecolor": "white", "linestyle": "--"}
            draw_band(axis, epochs, values, label=f"{arm}: {words}", **style)
        axis.set(xlabel="epoch", ylabel=unit)
        axis.xaxis.get_major_locator().set_params(integer=True)
        tidy(axis)
    figure.get_layout_engine().set(wspace=0.06)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure
