"""What a finished run prints: its numbers with their spread, and the commands that come next."""

from statistics import median

from checks import only_draws
from commands import next_commands

Z = 1.959963984540054  # the normal quantile of a 95 % interval


def wilson(hits, total):
    """The 95 % interval of a share of `hits` in `total` > 0 (Wilson 1927)."""
    share, spread = hits / total, Z**2 / total
    centre = share + spread / 2
    margin = Z * (share * (1 - share) / total + spread / total / 4) ** 0.5
    return max(0.0, (centre - margin) / (1 + spread)), min(1.0, (centre + margin) / (1 + spread))


def result_block(results, training):
    """The text of one run; `training` is the Training that it left behind, maybe an empty one."""
    val, test, keep = results["val"], results["test"], results["config"].get("keep", "best")
    low, high = wilson(int(test["confusion"].trace()), int(test["confusion"].sum()))
    rows = [
        ("validation", f"accuracy {val['accuracy']:.4f}, loss {val['loss']:.4f}"),
        ("", f"its {keep} epoch: {val['best_epoch']} of {results['epochs']}"),
        ("test", f"accuracy {test['accuracy']:.4f} ({low:.4f} to {high:.4f}, 95 % Wilson)"),
        ("", f"loss {test['loss']:.4f} (mean per image)"),
    ]
    if only_draws(results["config"]):
        rows.pop(1)  # nothing was trained
    if training.classes:
        rows.append(("most wrong", most_wrong(test["confusion"], training.classes)))
    rows.append(("time", describe_time(results["seconds"], training.history)))
    rows.append(("run folder", results["run_dir"]))
    return block(rows, next_commands(results, training.has_map))


def seeds_block(results, training):
    """The text of one run a seed: mean and, of several, standard deviation, and a line a seed."""
    mean, std, runs = results["mean"], results["std"], results["runs"]
    several, rows = len(runs) > 1, []
    for split, key in (("test", "test"), ("validation", "val")):
        for metric in (f"{key}_accuracy", f"{key}_loss"):
            spread = f" +- {std[metric]:.4f}" if several else ""
            rows.append((metric.replace(f"{key}_", f"{split} "), f"{mean[metric]:.4f}{spread}"))
    said = f"mean +- standard deviation of {len(runs)} seeds"
    rows.append(("", said if several else "of one seed, which has no standard deviation"))
    for seed, run in zip(results["seeds"], runs, strict=True):
        text = f"test {run['test']['accuracy']:.4f}, validation {run['val']['accuracy']:.4f}"
        rows.append((f"seed {seed}", f"{text} (epoch {run['val']['best_epoch']})"))
    rows.append(("time", describe_time(results["seconds"], [])))
    rows.append(("run folder", results["run_dir"]))
    return block(rows, next_commands(results, training.has_map))


def block(rows, commands):
    """Rows of (name, text) in two columns, then every command on a line of its own."""
    wide = max(len(name) for name, _ in rows) + 2
    lines = [f"{name:<{wide}}{text}" for name, text in rows]
    lines += ["", "next:"] + [f"  {purpose}:\n    {command}" for purpose, command in commands]
    return "\n".join(["", *lines])


def most_wrong(confusion, classes):
    """The class with the largest share of wrong answers, and what it is taken for."""
    wrong = confusion.clone().fill_diagonal_(0)
    counts = confusion.sum(1)
    if not wrong.any():
        return "nothing was"
    label = int((wrong.sum(1) / counts.clamp(min=1)).argmax())
    other = int(wrong[label].argmax())
    return (
        f"class {classes[label]}: {int(wrong[label].sum())} of {int(counts[label])}, "
        f"{int(wrong[label, other])} of them taken for {classes[other]}"
    )


def describe_time(seconds, history):
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
    text = text if seconds >= 60 else f"{seconds:.1f} s"
    if not history:
        return text
    speed = median(row["train/images_per_second"] for row in history)
    return f"{text}, {speed:,.0f} images a second while training"
