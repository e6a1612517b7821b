"""README's figures of the four exercises: curves over the epochs, with what the seeds differ by."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

# Okabe and Ito, safe for colour-blind readers; each means the same in all figures
BLUE, ORANGE, GREEN, VIOLET = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
COLOURS = {"default": BLUE, "best": GREEN, "wide": VIOLET, "residual": ORANGE}


def draw_figures(experiments, folder):
    """Write mlp, cnn and imagenette as PNG and SVG into `folder`, as far as there are results."""
    folder.mkdir(exist_ok=True)
    for name, (draw, needed) in FIGURES.items():
        if drawable(name, experiments):
            save(draw(*(experiments[key] for key in needed)), folder / name)


def drawable(name, experiments):
    """Whether there are results for all that the figure shows."""
    return all(key in experiments for key in FIGURES[name][1])


def draw_mlp(plain, skip, best, wide):
    figure, (losses, accuracies, tests) = plt.subplots(
        1, 3, figsize=(11, 3.4), layout="constrained", width_ratios=(3, 3, 2.4)
    )
    for experiment, colour, name in ((plain, BLUE, "MLP (1.1)"), (skip, ORANGE, "SkipMLP (1.2)")):
        band(losses, experiment, "train/loss", colour, "-", f"{name}, training")
        band(losses, experiment, "val/loss", colour, "--", f"{name}, validation")
        band(accuracies, experiment, "val/accuracy", colour, "-", name)
    losses.set(ylabel="loss (nats per image)", ylim=(0, 0.6))
    accuracies.set(ylabel="validation accuracy", ylim=(0.9, 0.985))
    rows = [
        (plain, BLUE, "o", "MLP"),
        (skip, ORANGE, "s", "SkipMLP"),
        (best, GREEN, "^", "MLP,\nbest"),
        (wide, VIOLET, "D", "MLP,\nwide"),
    ]
    for position, (experiment, colour, marker, _) in enumerate(rows):
        values = experiment.values("test", "accuracy")
        spots = position + np.linspace(-0.15, 0.15, len(values))
        tests.plot(spots, values, marker, color=colour, markersize=5, alpha=0.8)
        tests.hlines(np.mean(values), position - 0.3, position + 0.3, color=colour)
    tests.set_xticks(range(4), [name for *_, name in rows])
    tests.set(ylabel="test accuracy, a seed each; line: mean", xlim=(-0.5, 3.5))
    return finish(figure, (losses, accuracies), tests)


def draw_cnns(*experiments):
    figure, (losses, accuracies) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for experiment in experiments:
        name = experiment.name.rpartition("-")[2]
        colour, count = COLOURS[name], len(experiment.runs)
        seeds = f"{count} seeds" if count > 1 else "1 seed"
        for axis, metric in ((losses, "loss"), (accuracies, "accuracy")):
            band(axis, experiment, f"train/{metric}", colour, "-", f"{name} ({seeds}), training")
            band(axis, experiment, f"val/{metric}", colour, "--", f"{name}, validation")
    losses.set(ylabel="loss (nats per image)")
    accuracies.set(ylabel="accuracy")
    return finish(figure, (losses, accuracies))


def band(axis, experiment, key, colour, style, label):
    """The mean over the seeds as a line, their smallest to largest value as a band."""
    values = np.array([[row[key] for row in rows] for rows in experiment.metrics])
    epochs = [row["epoch"] for row in experiment.metrics[0]]
    axis.plot(epochs, values.mean(0), style, color=colour, label=label, linewidth=1.3)
    if len(values) > 1:
        axis.fill_between(
            epochs, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0
        )


def finish(figure, curves, *others):
    for axis in curves:
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False, fontsize="small")
    for axis in (*curves, *others):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def save(figure, path):
    """PNG and SVG, the same bytes for the same results."""
    with matplotlib.rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path.with_suffix(".png"), dpi=130, metadata={"Software": None})
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)


FIGURES = {  # of every figure: what draws it, and from which results
    "mlp": (
        draw_mlp,
        [f"exercise_{run}" for run in ("1_1-default", "1_2-default", "1_1-best", "1_1-wide")],
    ),
    "cnn": (
        draw_cnns,
        [f"exercise_1_3-{name}" for name in ("default", "best", "wide", "residual")],
    ),
    "imagenette": (
        draw_cnns,
        [f"exercise_2_3-{name}" for name in ("default", "best", "wide")],
    ),
}
