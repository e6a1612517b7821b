"""The figures of the trust study."""

import colorsys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, ImageDraw

from cam_pictures import PANEL, blend, outline, to_pixels
from plots import TRAIN, VAL, save_figure
from studies import edits

CONTROL = "#888888"
ORDERS = {  # colour, line, label
    "map": (TRAIN, "-", "hottest first"),
    "random": (CONTROL, "--", "at random"),
    "centre": (VAL, ":", "from the centre"),
}

DRAWN = (
    "object removed",
    "object removed, noise",
    "object removed, room beside it",
    "as large a part beside it removed",
    "box alone",
    "object cut out alone",
)


def draw_study(study, folder):
    """outside.png, kept.png, colours.png, curves.png and mosaics.png in `folder`."""
    draw_outside(study, folder)
    draw_kept(study, folder)
    draw_colours(study, folder)
    draw_curves(study, folder)
    draw_mosaics(study, folder)


def bars(axis, summaries, offset, height, **style):
    """Horizontal bars of means with their intervals, one a class."""
    places = np.arange(len(summaries)) + offset
    means = np.array([s["mean"] for s in summaries])
    errors = np.array([[s["mean"] - s["low"], s["high"] - s["mean"]] for s in summaries]).T
    line = {"elinewidth": 1, "capsize": 2, "ecolor": "#222222"}
    axis.barh(places, means, height, xerr=np.clip(errors, 0, None), error_kw=line, **style)


def label_classes(axis, names):
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def draw_outside(study, folder):
    found, names = study["unseen"]["where"], ["all", *study["classes"]]
    figure, axis = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    of_map = [found["map"]["outside"][name] for name in names]
    even = [1 - found["box_area"][name]["mean"] for name in names]
    of_centre = [found["centre"]["outside"][name] for name in names]
    bars(axis, of_map, -0.18, 0.34, color=TRAIN, label="the map's evidence for the true class")
    bars(axis, of_centre, 0.18, 0.34, color="#d0d0d0", label="a Gaussian in the middle")
    axis.plot(even, range(len(names)), "|", color=VAL, markersize=16, markeredgewidth=2,
              label="an even map: the area outside the box")  # fmt: skip
    label_classes(axis, names)
    axis.set_xlabel(f"share outside the object's box, {study['unseen']['images']} unseen images")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    save_figure(figure, folder / "outside.png")


def draw_kept(study, folder):
    """The control, where there is one, is how often pictures of other classes are called this."""
    kept, taken = study["unseen"]["kept"], study["unseen"]["taken"]
    names = ["all", *study["classes"]]
    figure, axes = plt.subplots(2, 3, figsize=(9.5, 7), layout="constrained")
    for place, (axis, change) in enumerate(zip(axes.flat, DRAWN, strict=True)):
        summaries = kept[change]
        bars(axis, [summaries[name] for name in names], 0, 0.6, color=TRAIN)
        if change in taken:
            control = [taken[change][name]["mean"] for name in study["classes"]]
            axis.plot(control, range(1, len(names)), "|", color=VAL, markersize=12,
                      markeredgewidth=2, label="others that are then called this")  # fmt: skip
        axis.set_title(f"{change}\n({summaries['all']['count']} pictures)", fontsize=9)
        label_classes(axis, names if place % 3 == 0 else [""] * len(names))
    for axis in axes[1]:
        axis.set_xlabel("right answer kept", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=9)
    save_figure(figure, folder / "kept.png")


def draw_emptied(boxed, noise, pictures, folder, across=7):
    """emptied.png: the pictures of `boxed`, painted over without the object, and with `noise` in
    its place, `across` in a row; below each what it is called then, of `pictures` of `empty_each`.
    Grey are the names of those that do not count."""
    painted = edits.fill_smoothly(boxed.pixels, boxed.masks)
    blocks = range(0, len(pictures), across)
    figure, axes = plt.subplots(
        3 * len(blocks), figsize=(across * 1.36, 4.9 * len(blocks)), layout="constrained"
    )
    for start, rows in zip(blocks, np.split(axes, len(blocks)), strict=True):
        some, part = slice(start, start + across), pictures[start : start + across]
        colours = ["black" if row["counts"] else CONTROL for row in part]
        for axis, name, images, words in (
            (rows[0], "as it is", boxed.pixels, [f"{r['index']}: {r['called']}" for r in part]),
            (rows[1], "painted over", painted, [r["painted_over"] for r in part]),
            (rows[2], "noise", noise, [f"{r['noise']:.0%} parachute" for r in part]),
        ):
            draw_row(axis, images[some], words, colours)
            axis.set_ylabel(name)
    figure.savefig(folder / "emptied.png", dpi=150)  # photographs gain nothing from SVG
    plt.close(figure)


def draw_row(axis, images, words, colours):
    """Pixels (N, C, H, W) side by side, some words in a colour below each."""
    row = torch.cat(list(images), 2).permute(1, 2, 0).clamp(0, 255).byte()
    axis.imshow(row.numpy(), interpolation="nearest")
    side = images.shape[-1]
    axis.set_yticks([])
    axis.set_xticks([side * (k + 0.5) for k in range(len(images))], words, fontsize=9)
    axis.tick_params(length=0)
    for label, colour in zip(axis.get_xticklabels(), colours, strict=True):
        label.set_color(colour)
    axis.spines[:].set_visible(False)


def draw_six(dataset, indices, activation, boxes, folder):
    """six.png: images of `dataset`, boxed, and below each the map of what it is called; a map's
    colours end where it is strongest."""
    photos, overlays, names = [], [], []
    for k, index in enumerate(indices):
        photo = to_pixels(dataset.images[index]).resize((PANEL, PANEL), Image.Resampling.BICUBIC)
        values = activation.maps[k].float()
        overlays.append(blend(photo, values, float(values.abs().max()), activation.centres))
        outline(ImageDraw.Draw(photo), boxes[index], 0, 0)
        photos.append(photo)
        called = dataset.classes[int(activation.classes[k])]
        names.append(f"{called} {activation.confidence[k]:.2f}")
    true = [f"{i}: {dataset.classes[dataset.labels[i]]}" for i in indices]
    figure, axes = plt.subplots(2, figsize=(9.5, 3.8), layout="constrained")
    for axis, pictures, words in ((axes[0], photos, true), (axes[1], overlays, names)):
        pixels = torch.stack([torch.tensor(np.array(p)).permute(2, 0, 1) for p in pictures])
        draw_row(axis, pixels, words, ["black"] * len(words))
    axes[0].set_ylabel("image, its box")
    axes[1].set_ylabel("map, called")
    figure.savefig(folder / "six.png", dpi=150)
    plt.close(figure)


def draw_colours(study, folder, name="parachute"):
    """The colours of the grid, and below each how surely a picture of it alone is called `name`."""
    grid = study["colours"]["grid"]
    hues, saturations, values = (grid[key] for key in ("hues", "saturations", "values"))
    probability = np.array(grid["probabilities"])[..., study["classes"].index(name)]
    size = (2, len(saturations))
    figure, axes = plt.subplots(*size, figsize=(11, 4.6), sharex=True, sharey=True,
                                layout="constrained")  # fmt: skip
    extent = (0, 360, values[0] - 0.05, values[-1] + 0.05)
    style = {"extent": extent, "origin": "lower", "aspect": "auto", "interpolation": "nearest"}
    for k, saturation in enumerate(saturations):
        shown = [[colorsys.hsv_to_rgb(h, saturation, v) for h in hues] for v in values]
        axes[0, k].imshow(shown, **style)
        drawn = axes[1, k].imshow(probability[:, k].T, cmap="cividis", vmin=0, vmax=1, **style)
        axes[0, k].set_title(f"saturation {saturation:.2f}", fontsize=9)
        axes[1, k].set_xlabel("hue, degrees")
    for axis in axes[:, 0]:
        axis.set_ylabel("value")
    figure.colorbar(drawn, ax=axes[1], label=f"P({name})")
    save_figure(figure, folder / "colours.png")


def draw_curves(study, folder):
    curves = study["curves"]
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.3), layout="constrained")
    titles = {
        "features": ("cells of the features deleted", "logit of the predicted class"),
        "deletion": ("pixels deleted", "its probability"),
        "insertion": ("pixels inserted", "its probability"),
    }
    for axis, (kind, (xlabel, ylabel)) in zip(axes, titles.items(), strict=True):
        for order, (colour, style, label) in ORDERS.items():
            curve = curves[kind][order]["curve"]
            share = np.linspace(0, 1, len(curve))
            axis.plot(share, curve, style, color=colour, label=label)
        axis.set(xlabel=f"share of the {xlabel}", ylabel=ylabel)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    save_figure(figure, folder / "curves.png")


def draw_mosaics(study, folder):
    names = study["classes"]
    share = np.full((len(names), len(names)), np.nan)
    for row, name in enumerate(names):
        for column, other in enumerate(names):
            if other != name:
                share[row, column] = study["mosaics"][name][other]["mean"]
    figure, axis = plt.subplots(figsize=(6.4, 5.4), layout="constrained")
    drawn = axis.imshow(share, cmap="PuOr_r", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(share):
        if not np.isnan(value):
            colour = "white" if abs(value - 0.5) > 0.35 else "#222222"
            style = {"ha": "center", "va": "center", "color": colour, "size": 8}
            axis.text(column, row, f"{100 * value:.0f}", **style)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="class of the other two tiles", ylabel="class whose map it is")
    figure.colorbar(drawn, label="share of the evidence on its own two tiles")
    save_figure(figure, folder / "mosaics.png")
