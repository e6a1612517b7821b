"""What the evidence does: deletion and insertion, mosaics, plain colours, networks unlearned."""

import copy

import numpy as np
import torch

from studies import edits, measures
from studies.measures import mean_with_interval
from studies.subject import Subject


def delete(subject, dataset, generator, per_class=8):
    """Mean curves of deletion and insertion, by the map, at random and from the centre outwards."""
    members = [torch.where(dataset.labels == k)[0] for k in range(len(dataset.classes))]
    rows = [m[torch.randperm(len(m), generator=generator)[:per_class]] for m in members]
    images = dataset.normalise(dataset.images[torch.cat(rows)])
    maps, classes = measures.explain(subject.model, images)
    bias = subject.model.classifier.bias.detach()[classes]
    found, areas = {"images": len(images)}, {}
    for name, order in measures.cell_orders(maps, generator).items():
        logits = measures.feature_deletion(maps, maps.mean((1, 2)) + bias, order)
        pixels = measures.pixel_curves(subject.model, images, classes, order, maps.shape[1:])
        curves = dict(zip(("deletion", "insertion"), pixels, strict=True), features=logits)
        for kind, curve in curves.items():
            area = areas[kind, name] = curve.mean(1)
            more = area - areas[kind, "map"]  # image by image; the map is the first order
            found.setdefault(kind, {})[name] = {
                "curve": curve.mean(0).tolist(),
                "area": mean_with_interval(area.tolist()),
                "more_than_map": mean_with_interval(more.tolist()),
            }
    return found


def focus(subject, dataset, generator, count=10):
    """Mean share of the positive evidence on the right tiles of mosaics, target by distractor."""
    classes = dataset.classes
    members = [(dataset.labels == label).nonzero()[:, 0] for label in range(len(classes))]
    shares = {}
    for target, name in enumerate(classes):
        shares[name] = {}
        for other in range(len(classes)):
            if other == target:
                continue
            pick = [m[torch.randint(len(m), (count, 2), generator=generator)]
                    for m in (members[target], members[other])]  # fmt: skip
            places = torch.rand(count, 4, generator=generator).argsort(1)
            four = torch.cat(pick, 1).gather(1, places)
            pixels = edits.mosaics(dataset.images[four].float())
            maps, _ = subject.explain(pixels, torch.full((count,), target))
            found = measures.tile_shares(maps, places < 2)
            shares[name][classes[other]] = mean_with_interval(found.tolist())
    return shares


def colours(subject, parachutes, generator):
    """Probabilities of all classes on skies, on a grid of plain colours, on shuffled pictures."""
    size = parachutes.shape[-1]
    named = edits.skies(size, generator)
    rows = subject.predict(torch.stack(list(named.values()))).tolist()
    shuffled = subject.predict(edits.shuffle_pixels(parachutes, generator)).mean(0)
    hues, saturations, values = (
        torch.linspace(*span).tolist() for span in ((0, 23 / 24, 24), (0.15, 0.9, 4), (0.2, 1, 9))
    )
    grid = edits.hsv_grid(hues, saturations, values, size)
    probabilities = torch.cat([subject.predict(block) for block in grid.split(96)])
    axes = {"hues": hues, "saturations": saturations, "values": values}
    shape = (len(hues), len(saturations), len(values), -1)
    return {
        "skies": dict(zip(named, rows, strict=True))
        | {"parachute pictures, pixels shuffled": shuffled.tolist()},
        "grid": axes | {"probabilities": probabilities.view(shape).tolist()},
    }


def randomise(subject, dataset, generator, count=50, draws=10):
    """Rank correlation of the maps with the trained, as layers lose their weights, last first:
    {layer: {"signed", "absolute"}}, means over the images with intervals over the draws of weights.
    "another image" is the control: the trained maps with those of other images."""
    rows = torch.randperm(len(dataset), generator=generator)[:count]
    pixels = dataset.images[rows].float()
    trained, classes = subject.explain(pixels)
    layers = ["classifier", *(f"layer {k}" for k in range(len(subject.model.layers), 0, -1))]
    correlations = {name: [] for name in [*layers, "another image"]}
    for draw in range(draws):
        fresh = Subject(copy.deepcopy(subject.model), subject.dataset)
        parts = [fresh.model.classifier, *reversed(fresh.model.layers)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw)
            for name, part in zip(layers, parts, strict=True):
                for module in part.modules():
                    if hasattr(module, "reset_parameters"):
                        module.reset_parameters()
                maps, _ = fresh.explain(pixels, classes)
                correlations[name].append(measures.rank_correlation(trained, maps))
        others = trained.roll(draw + 1, 0)
        correlations["another image"].append(measures.rank_correlation(trained, others))
    return {
        name: {
            "signed": mean_with_interval([np.nanmean(one) for one in found]),
            "absolute": mean_with_interval([np.nanmean(abs(one)) for one in found]),
        }
        for name, found in correlations.items()
    }
