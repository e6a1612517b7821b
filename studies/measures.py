"""Measures of class activation maps: does the picture show what the decision rests on?

They take any network with `features` and `classifier` in eval mode. Axis letters: N images, C
channels, H x W pixels, K classes, h x w the cells of the map, Z = h * w.
"""

import numpy as np
import torch
from scipy import ndimage, stats
from torch.nn import functional as F

from cam import generate_class_activation_map
from models import fold_norms
from summary import wilson

THRESHOLDS = [step / 20 for step in range(1, 20)]  # shares of the maximum of a map
BATCH = 16  # images that pass at once; so few stay in a CPU's cache


@torch.no_grad()
def predict(model, images):
    """Probabilities (N, K) of normalised images."""
    return torch.cat([model(block).softmax(1) for block in images.split(BATCH)])


def explain(model, images, classes=None):
    """(maps (N, h, w), classes (N,)): of the predicted classes where none are given."""
    model, found = fold_norms(model), []
    for start in range(0, len(images), BATCH):
        rows = slice(start, start + BATCH)
        chosen = None if classes is None else classes[rows]
        found.append(generate_class_activation_map(model, images[rows], chosen))
    return torch.cat([a.maps for a in found]), torch.cat([a.classes for a in found])


def cell_orders(maps, generator):
    """{"map", "random", "centre"}: orders (N, Z) of the cells, those that should matter first."""
    count, height, width = maps.shape
    rows = (torch.arange(height) - (height - 1) / 2)[:, None] / height
    columns = (torch.arange(width) - (width - 1) / 2) / width
    near = (rows**2 + columns**2).flatten().argsort(stable=True)
    return {
        "map": maps.flatten(1).argsort(1, descending=True),
        "random": torch.rand(count, height * width, generator=generator).argsort(1),
        "centre": near.expand(count, -1),
    }


def feature_deletion(maps, totals, order):
    """(N, Z + 1): the logit when the first 0, 1, ..., Z cells of the features are zero.

    Exact, without a forward pass: a cell takes its share of the map with it.
    """
    shares = maps.flatten(1).gather(1, order) / order.shape[1]
    zero = torch.zeros(len(maps), 1)
    return totals[:, None] - torch.cat([zero, shares.cumsum(1)], 1)


def pixel_curves(model, images, classes, order, cells, steps=16):
    """(deletion, insertion), each (N, steps + 1): the probability of a class as pixels go or come.

    Deletion sets the pixels of more and more cells to the mean colour; insertion starts from the
    mean colour and brings them back, in the same order (Petsiuk et al. 2018).
    """
    total, curves = order.shape[1], ([], [])
    rank = order.argsort(1)  # the place of every cell in the order
    for step in range(steps + 1):
        gone = (rank < round(step / steps * total)).view(-1, 1, *cells).float()
        gone = F.interpolate(gone, images.shape[-2:], mode="nearest")
        for curve, kept in zip(curves, (1 - gone, gone), strict=True):
            curve.append(predict(model, images * kept).gather(1, classes[:, None])[:, 0])
    return tuple(torch.stack(curve, 1) for curve in curves)


def pointing_hits(maps, masks):
    """(N,) whether the hottest pixel of maps (N, H, W) lies in the mask (Zhang et al. 2018). Of
    several that are equal, as those beyond the outer cells, it is the one in their middle."""
    hottest = maps == maps.amax((1, 2), keepdim=True)
    equal = hottest.sum((1, 2))
    row, column = (
        (hottest.sum(across) * torch.arange(size)).sum(1) // equal
        for across, size in ((2, maps.shape[1]), (1, maps.shape[2]))
    )
    return masks[torch.arange(len(maps)), row, column]


def best_threshold_hits(maps, boxes, thresholds=THRESHOLDS):
    """(hits (N,), threshold): whether the box around the largest hot region meets a true one.

    Hot is what reaches a share of the map's maximum; a hit is an intersection over union of 0.5.
    One threshold for all, the best (MaxBoxAcc, Choe et al. 2020). `boxes` has (n, 4) a map.
    """
    pairs = list(zip(maps.numpy(), boxes, strict=True))
    hits = {
        t: np.array([meets(region_box(m >= t * m.max()), truths) for m, truths in pairs])
        for t in thresholds
    }
    best = max(hits, key=lambda t: hits[t].mean())
    return hits[best], best


def region_box(hot):
    """(x0, y0, x1, y1) in shares of the picture around the largest connected region of `hot`."""
    regions, count = ndimage.label(hot)
    if not count:
        return 0.0, 0.0, 0.0, 0.0
    largest = 1 + np.bincount(regions.flat)[1:].argmax()
    rows, columns = ndimage.find_objects(regions)[largest - 1]
    height, width = hot.shape
    return columns.start / width, rows.start / height, columns.stop / width, rows.stop / height


def meets(box, truths):
    """Whether `box` has an intersection over union of 0.5 or more with one of `truths` (n, 4)."""

    def area(x0, y0, x1, y1):
        return max(0.0, x1 - x0) * max(0.0, y1 - y0)

    def overlap(truth):
        corners = [max(a, b) for a, b in zip(box[:2], truth[:2], strict=True)]
        corners += [min(a, b) for a, b in zip(box[2:], truth[2:], strict=True)]
        shared = area(*corners)
        return shared / (area(*box) + area(*truth) - shared)

    return any(overlap(truth) >= 0.5 for truth in truths.tolist())


def centred_gaussian(height, width, spread=0.25):
    """A map (H, W) that knows nothing but that photographers centre things."""
    rows = ((torch.arange(height) + 0.5) / height - 0.5)[:, None]
    columns = (torch.arange(width) + 0.5) / width - 0.5
    return torch.exp(-(rows**2 + columns**2) / (2 * spread**2))


def tile_shares(maps, tiles):
    """(N,) the share of the positive evidence on the chosen tiles of 2 x 2 mosaics.

    `tiles` (N, 4), true for those of the class whose map it is (Arias-Duart et al. 2022).
    """
    height, width = (side // 2 for side in maps.shape[1:])
    positive = maps.clamp(min=0)
    quarters = positive.unfold(1, height, height).unfold(2, width, width).sum((3, 4)).flatten(1)
    return (quarters * tiles).sum(1) / quarters.sum(1)


def rank_correlation(maps, others):
    """(N,) Spearman's correlation of two maps of an image, over their cells."""
    pairs = zip(maps.flatten(1).numpy(), others.flatten(1).numpy(), strict=True)
    return np.array([stats.spearmanr(a, b).statistic for a, b in pairs])


def mean_with_interval(values):
    """{"mean", "low", "high", "count"}: with a 95 % bootstrap interval over images."""
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    low = high = mean = float(values.mean()) if len(values) else float("nan")
    if len(values) > 1 and values.std() > 0:
        drawn = stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=0)
        low, high = map(float, drawn.confidence_interval)
    return {"mean": mean, "low": low, "high": high, "count": len(values)}


def rate_with_interval(hits, groups=None):
    """The same for a share of yes and no, with Wilson's 95 % interval. Hits of one group, of one
    picture say, depend on one another and count as one answer: `count` is that of the groups."""
    hits = np.asarray(hits, dtype=float)
    if not len(hits):
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "count": 0}
    count = len(hits) if groups is None else len(np.unique(groups))
    mean = float(hits.mean())
    low, high = wilson(mean * count, count)
    return {"mean": mean, "low": low, "high": high, "count": count}


def crossed_rate(hits, groups, others, draws=2000):
    """The same where a hit is of a group of each of two kinds, like an object and the background
    that it is on: with a 95 % bootstrap interval for which both are drawn anew (Owen 2007, "The
    pigeonhole bootstrap"), or Wilson's where all hits are alike. `count` is that of `groups`."""
    found = rate_with_interval(hits, groups)
    if not 0 < found["mean"] < 1:
        return found
    generator, weights = np.random.default_rng(0), np.ones((draws, len(hits)))
    for kind in (groups, others):
        _, own = np.unique(kind, return_inverse=True)
        count = own.max() + 1
        weights *= generator.multinomial(count, np.full(count, 1 / count), draws)[:, own]
    weights = weights[weights.sum(1) > 0]  # no hit may be of a drawn object on a drawn background
    means = weights @ np.asarray(hits, dtype=float) / weights.sum(1)
    low, high = map(float, np.quantile(means, (0.025, 0.975)))
    return found | {"low": low, "high": high}
