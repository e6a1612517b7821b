"""Where the object is and what it matters: maps against boxes, pictures without the object."""

import torch

from boxes import energy_inside, upsample
from studies import edits, measures
from studies.measures import mean_with_interval, rate_with_interval
from studies.subject import by_class

SIX = (1936, 1526, 1527, 3535, 3536, 3537)  # test images: a French horn, two churches, parachutes


def locate(subject, boxed):
    """Where the evidence for the true class lies, beside a Gaussian in the middle, per class."""
    classes = subject.dataset.classes
    maps, _ = subject.explain(boxed.pixels, boxed.labels)
    smooth = upsample(maps, *boxed.masks.shape[1:])
    middle = measures.centred_gaussian(*smooth.shape[1:]).expand_as(smooth)
    area = boxed.masks.float().mean((1, 2))
    found = {"box_area": by_class(area.tolist(), boxed.labels, classes, mean_with_interval)}
    for name, m in (("map", smooth), ("centre", middle)):
        inside = energy_inside(m, boxed.masks)
        hits, threshold = measures.best_threshold_hits(m, boxed.boxes)
        columns = {
            "outside": ((1 - inside).tolist(), mean_with_interval),
            "energy_over_area": ((inside / area).tolist(), mean_with_interval),
            "pointing": (measures.pointing_hits(m, boxed.masks).tolist(), rate_with_interval),
            "box_accuracy": (hits.tolist(), rate_with_interval),
        }
        found[name] = {
            key: by_class(values, boxed.labels, classes, summary)
            for key, (values, summary) in columns.items()
        } | {"threshold": threshold}
    return found


def edit(subject, boxed, generator):
    """How often the right class is kept when something in the picture changes, per class."""
    right = subject.predict(boxed.pixels).argmax(1) == boxed.labels
    boxed = boxed[right.nonzero()[:, 0].tolist()]
    side = boxed.pixels.shape[-1]
    mean = torch.tensor(subject.dataset.mean) * 255
    empty = edits.fill_smoothly(boxed.pixels, boxed.masks)
    fake = [move_randomly(mask, generator) for mask in boxed.masks]
    steps = torch.randint(-side // 4, side // 4 + 1, (len(boxed.labels), 2), generator=generator)
    one_by_one = zip(boxed.pixels, boxed.masks, empty, steps.tolist(), strict=True)
    moved = [edits.move(p[None], m[None], e[None], *s)[0] for p, m, e, s in one_by_one]
    changed = {
        "object removed": empty,
        "as large a part beside it removed": edits.fill_smoothly(boxed.pixels, torch.stack(fake)),
        "object alone": edits.object_alone(boxed.pixels, boxed.masks, mean),
        "object moved": torch.stack(moved),
    }
    kept = {}
    for name, pixels in changed.items():
        same = (subject.predict(pixels).argmax(1) == boxed.labels).tolist()
        kept[name] = by_class(same, boxed.labels, subject.dataset.classes, rate_with_interval)
    return kept, swap(subject, boxed, empty, generator)


def move_randomly(mask, generator):
    """A mask as large elsewhere: rolled around the picture, off the object where there is room."""
    tries = torch.randint(0, len(mask), (50, 2), generator=generator).tolist()
    rolled = [torch.roll(mask, (rows, columns), (0, 1)) for rows, columns in tries]
    return min(rolled, key=lambda other: int((other & mask).sum()))


def swap(subject, boxed, empty, generator):
    """{object class: {background class: how many of so many are called one or the other}}."""
    classes, labels = subject.dataset.classes, boxed.labels
    table = {}
    for own, name in enumerate(classes):
        objects = (labels == own).nonzero()[:, 0]
        table[name] = {}
        for other in range(len(classes)):
            places = (labels == other).nonzero()[:, 0]
            if other == own or not len(places) or not len(objects):
                continue
            drawn = places[torch.randint(len(places), (len(objects),), generator=generator)]
            pasted = edits.paste(boxed.pixels[objects], boxed.masks[objects], empty[drawn])
            called = subject.predict(pasted).argmax(1)
            hits = {"object": called == own, "background": called == other}
            row = {key: int(hit.sum()) for key, hit in hits.items()}
            table[name][classes[other]] = row | {"count": len(objects)}
    return table


def explain_3536(subject, boxed):
    """Is it what stands around the parachute or its size? P(parachute) as each is mended: cut out
    closer (both), enlarged on what stands around it (size), pasted on skies (surroundings)."""
    position = boxed.indices.index(3536)
    classes = subject.dataset.classes
    pixels, mask, boxes = boxed.pixels[position], boxed.masks[position], boxed.boxes[position]
    parachute = classes.index("parachute")
    small = float(mask.float().mean())
    shares = [s for s in (small, 0.05, 0.1, 0.2, 0.35, 0.5) if s >= small]
    zooms = torch.stack([edits.crop_around(pixels, boxes, mask, share) for share in shares])
    own = edits.fill_smoothly(pixels[None], mask[None])
    white = mask.float().expand_as(pixels)
    masks = torch.stack([edits.crop_around(white, boxes, mask, share)[0] > 0.5 for share in shares])
    larger = edits.paste(zooms, masks, own)
    skies = {"as it is": pixels, "without the parachute": own[0]}
    blue = torch.tensor([135.0, 190.0, 235.0]).view(3, 1, 1).expand_as(pixels)
    skies["on sky blue"] = edits.paste(pixels[None], mask[None], blue[None])[0]
    for index in (3535, 3537):
        other = boxed.indices.index(index)
        empty = edits.fill_smoothly(boxed.pixels[[other]], boxed.masks[[other]])
        skies[f"on the sky of {index}"] = edits.paste(pixels[None], mask[None], empty)[0]
        skies[f"the sky of {index} alone"] = empty[0]
    known = subject.predict(torch.cat([zooms, larger, torch.stack(list(skies.values()))]))
    cut, enlarged, of_skies = known[:, parachute].split([len(shares), len(shares), len(skies)])
    return {
        "object_share": shares,
        "cut_out": cut.tolist(),
        "enlarged": enlarged.tolist(),
        "skies": dict(zip(skies, of_skies.tolist(), strict=True)),
    }


def describe_six(subject, boxed):
    """What the network makes of the six pictures that the text of the exercise discusses."""
    rows = [boxed.indices.index(index) for index in SIX]
    classes, chosen = subject.dataset.classes, boxed[rows]
    probabilities = subject.predict(chosen.pixels)
    maps, predicted = subject.explain(chosen.pixels)
    outside = 1 - energy_inside(upsample(maps, *chosen.masks.shape[1:]), chosen.masks)
    return [
        {
            "index": index,
            "true": classes[chosen.labels[k]],
            "predicted": classes[predicted[k]],
            "confidence": float(probabilities[k].max()),
            "church": float(probabilities[k, classes.index("church")]),
            "parachute": float(probabilities[k, classes.index("parachute")]),
            "box_area": float(chosen.masks[k].float().mean()),
            "outside": float(outside[k]),
        }
        for k, index in enumerate(SIX)
    ]
