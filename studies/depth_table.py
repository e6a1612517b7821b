"""The depth study as text, at most 80 columns wide."""

from statistics import fmean, median, stdev

from scipy import stats

from benchmarks.report import columns

GROUPS = {  # arms that stand side by side in a table, and their differences
    "mlp": {
        "without BatchNorm": ("plain", "plain, He", "residual"),
        "with BatchNorm": (
            "plain + BatchNorm",
            "plain, He + BatchNorm",
            "residual + BatchNorm",
        ),
    },
    "cnn": {"with BatchNorm": ("plain", "residual")},
    "stall": {"exercise 1.2's MLP": ("dropout 0.5", "no dropout")},
}


def pick(results, arm, depth):
    """The cells of an arm and a depth, seed by seed."""
    return [
        cell
        for cell in results["cells"]
        if (cell["config"]["arm"], cell["config"]["depth"]) == (arm, depth)
    ]


def last_of(results, arm, depth, key):
    """The values of the last epoch, one a seed; None where the loss was not finite."""
    return [cell["history"][-1][key] for cell in pick(results, arm, depth)]


def spread(values, scale=1.0, digits=2, sign=""):
    """Mean and standard deviation over the seeds, like 97.53 +- 0.12; of one seed 97.53."""
    if None in values:
        return "not finite"
    values = [scale * value for value in values]
    deviation = f" +- {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):{sign}.{digits}f}{deviation}"


def table_of(results):
    """All tables, a blank line between them."""
    settings = results["settings"]
    parts = [heading(results)]
    for title, arms in GROUPS[settings["network"]].items():
        if settings["network"] == "stall":
            parts.append(stall_table(results, arms))
            continue
        for key, scale, digits, what in (
            ("val/accuracy", 100, 2, "validation accuracy, %"),
            ("train/loss", 1, 4, "training loss of the last epoch, nats per image"),
        ):

            def value(arm, depth, key=key, scale=scale, digits=digits):
                return spread(last_of(results, arm, depth, key), scale, digits)

            rows = depth_rows(settings, arms, value)
            parts.append(f"{title}: {what}\n{columns(('depth', *arms), rows)}")
        parts.append(difference_table(results, title, arms))
        parts.append(gradient_table(results, title, arms))
        parts.append(size_table(results, title, arms))
    return "\n\n".join(parts)


def heading(results):
    settings, cells = results["settings"], results["cells"]
    images = f"{settings['images']:,} training images" if settings["images"] else "all images"
    largest = fmean(cell["largest_class"] for cell in cells)
    network = "width 128-64-64" if settings["network"] == "stall" else f"width {settings['width']}"
    lines = [
        f"{settings['network']} on {settings['dataset']}: mean +- standard deviation of "
        f"{len(settings['seeds'])} seeds",
        f"{network}, {images}, {settings['epochs']} epochs, batch {settings['batch_size']},",
        f"Adam, lr {settings['lr']:g} ({settings['schedule']}), {settings['precision']}; "
        f"judged after the last epoch",
        f"the largest class holds {100 * largest:.2f} % of the validation images",
        f"{results['seconds']:.0f} s on {results['machine']}, {results['threads']} threads, "
        f"torch {results['torch']}",
    ]
    return "\n".join(lines)


def depth_rows(settings, arms, cell):
    return [(str(d), *(cell(arm, d) for arm in arms)) for d in settings["depths"]]


def difference_table(results, title, arms):
    """Differences in validation accuracy within a seed, a star where 95 % are on one side."""
    pairs = [(arms[-1], arms[0])]
    if len(arms) == 3:
        pairs += [(arms[-1], arms[1]), (arms[1], arms[0])]
    rows = []
    for depth in results["settings"]["depths"]:
        row = [str(depth)]
        for pair in pairs:
            one, other = (last_of(results, arm, depth, "val/accuracy") for arm in pair)
            if None in one + other:
                row.append("not finite")
                continue
            differences = [a - b for a, b in zip(one, other, strict=True)]
            star = "*" if is_clear(differences) else " "
            row.append(f"{spread(differences, 100, sign='+')} {star}")
        rows.append(row)
    short = [" - ".join(arm.removesuffix(" + BatchNorm") for arm in pair) for pair in pairs]
    return (
        f"{title}: difference in points of accuracy, within a seed\n"
        f"{columns(('depth', *short), rows)}\n"
        f"* the 95 % interval of the mean (Student's t) leaves 0 out"
    )


def is_clear(differences):
    """Whether the 95 % interval of the mean difference leaves 0 out; never for a single seed."""
    count = len(differences)
    if count < 2:
        return False
    margin = stats.t.ppf(0.975, count - 1) * stdev(differences) / count**0.5
    return abs(fmean(differences)) > margin


def gradient_table(results, title, arms):
    """Medians over the seeds of the gradient's norm in the first layer's weights."""
    columns_of, rows = [(arm, when) for arm in arms for when in ("init", "trained")], []
    for depth in results["settings"]["depths"]:
        row = [str(depth)]
        for arm, when in columns_of:
            norms = [c["gradients"][when]["weights"][0] for c in pick(results, arm, depth)]
            row.append("not finite" if None in norms else f"{median(norms):.1e}")
        rows.append(row)
    short = {arm: arm.removesuffix(" + BatchNorm").removeprefix("plain, ") for arm in arms}
    header = ("depth", *(w if w == "trained" else f"{short[a]}, {w}" for a, w in columns_of))
    text = columns(header, rows)
    return f"{title}: norm of the first layer's weight gradient, median of seeds\n{text}"


def size_table(results, title, arms):
    """Layers with weights, bridges aside, and parameters."""

    def size(arm, depth):
        cell = pick(results, arm, depth)[0]
        return f"{cell['layers']} / {cell['parameters']:,}"

    rows = depth_rows(results["settings"], arms, size)
    return f"{title}: layers with weights / parameters\n{columns(('depth', *arms), rows)}"


def stall_table(results, arms):
    """Accuracy and loss of the last epoch, and the best epoch of the validation."""
    (depth,) = results["settings"]["depths"]
    rows = []
    for split, name in (
        ("train", "training, as trained"),
        ("train_without_dropout", "training, dropout off"),
        ("val", "validation"),
    ):
        for key, scale, unit in (("accuracy", 100, ", %"), ("loss", 1, ", nats per image")):
            cells = [spread(last_of(results, arm, depth, f"{split}/{key}"), scale) for arm in arms]
            rows.append((f"{name}: {key}{unit}", *cells))
    best = []
    for arm in arms:
        histories = [cell["history"] for cell in pick(results, arm, depth)]
        best.append([max(row["val/accuracy"] for row in history) for history in histories])
    rows.append(("validation: best epoch's accuracy, %", *(spread(b, 100) for b in best)))
    sizes = [f"{pick(results, arm, depth)[0]['parameters']:,}" for arm in arms]
    rows.append(("parameters", *sizes))
    return columns(("after the last epoch", *arms), rows)
