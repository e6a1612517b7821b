"""Where the object is and what it matters: maps against boxes, pictures without the object."""

import torch

from boxes import energy_inside
from studies import edits, measures
from studies.measures import crossed_rate, mean_with_interval, rate_with_interval
from studies.subject import by_class

NOISES = 20  # draws of noise in the place of every object
AROUND = 0.1  # of the picture at least must lie around an object that is taken out of it
ROOM = 0.1  # of the object at most is covered by what counts as beside it
LEFT = {  # what else than sky the boxes of the test's parachutes leave in the picture: by eye
    **dict.fromkeys((3537, 3540, 3541, 3542, 3543, 3548), "a jumper or smoke"),
    **dict.fromkeys((3536, 3546), "land"),
}
SIX = (1936, 1526, 1527, 3535, 3536, 3537)  # test images: a French horn, two churches, parachutes


def locate(subject, boxed):
    """Where the evidence for the true class lies, beside a Gaussian in the middle, per class."""
    classes = subject.dataset.classes
    maps, _ = subject.explain(boxed.pixels, boxed.labels)
    smooth = subject.smooth(maps)
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


def call_with_noise(subject, pixels, masks, generator):
    """(NOISES, N) what pictures are called with noise of the colours around where the mask is."""
    noises = (edits.fill_with_pixels(pixels, masks, generator) for _ in range(NOISES))
    return torch.stack([subject.predict(noise).argmax(1) for noise in noises])


def edit(subject, boxed, noisy, generator):
    """What the network says when something in a picture changes, of pictures that it has right and
    whose box leaves something around it: (how often the right class is kept, per class; how often
    pictures of other classes are called a class without their object, the control of that; what
    `swap` finds of whole boxes and of objects that are cut out of them). `noisy` is what
    `call_with_noise` says of the objects of all."""
    classes = subject.dataset.classes
    chosen = counted(subject, boxed).nonzero()[:, 0]
    boxed, noisy = boxed[chosen.tolist()], noisy[:, chosen]
    pixels, masks, side = boxed.pixels, boxed.masks, boxed.pixels.shape[-1]
    mean = torch.tensor(subject.dataset.mean) * 255
    empty = edits.fill_smoothly(pixels, masks)
    cut = edits.cut_along(pixels, masks, empty)
    beside = torch.stack([move_randomly(mask, generator) for mask in masks])
    overlap = (beside & masks).sum((1, 2)) / masks.sum((1, 2))
    room = (overlap <= ROOM).nonzero()[:, 0]
    steps = torch.randint(-side // 4, side // 4 + 1, (len(boxed.labels), 2), generator=generator)
    one_by_one = zip(pixels, masks, empty, steps.tolist(), strict=True)
    moved = [edits.move(p[None], m[None], e[None], *s)[0] for p, m, e, s in one_by_one]
    every = torch.arange(len(masks))
    changed = {
        "object removed": (every, empty),
        "object removed, room beside it": (room, empty[room]),
        "as large a part beside it removed": (
            room,
            edits.fill_smoothly(pixels[room], beside[room]),
        ),
        "box alone": (every, edits.alone(pixels, masks, mean)),
        "object cut out alone": (every, edits.alone(pixels, cut, mean)),
        "box moved": (every, torch.stack(moved)),
    }
    called_with = {
        name: (rows, subject.predict(p).argmax(1)) for name, (rows, p) in changed.items()
    }
    noisy_beside = call_with_noise(subject, pixels[room], beside[room], generator)
    called_with |= {
        "object removed, noise": (every.repeat(NOISES), noisy.flatten()),
        "object removed, noise, room beside it": (room.repeat(NOISES), noisy[:, room].flatten()),
        "noise in as large a part beside it": (room.repeat(NOISES), noisy_beside.flatten()),
    }
    kept, taken = {}, {}
    for name, (rows, called) in called_with.items():
        labels = boxed.labels[rows]
        hits = called == labels
        kept[name] = {"all": rate_with_interval(hits, rows)}
        for own, one in enumerate(classes):
            kept[name][one] = rate_with_interval(hits[labels == own], rows[labels == own])
        if name in ("object removed", "object removed, noise"):
            taken[name] = {
                one: rate_with_interval(called[labels != own] == own, rows[labels != own])
                for own, one in enumerate(classes)
            }
    shares = (cut.sum((1, 2)) / masks.sum((1, 2))).tolist()
    swapped = {
        "cut_share": by_class(shares, boxed.labels, classes, mean_with_interval),
        "boxes": swap(subject, boxed, masks, empty, generator),
        "cut out": swap(subject, boxed, cut, empty, generator),
    }
    return kept, taken, swapped


def counted(subject, boxed):
    """Which of the images the network has right, where the box leaves something around it."""
    right = subject.predict(boxed.pixels).argmax(1) == boxed.labels
    return right & (1 - boxed.masks.float().mean((1, 2)) >= AROUND)


def empty_each(subject, boxed, noisy):
    """Of the boxed test images of one class, one by one, what each is called as it is, painted
    over, and how often it is still called that with noise in the object's place, `noisy` of
    `call_with_noise`; and that share apart by what of LEFT is left, of those that are counted."""
    classes, pixels, masks = subject.dataset.classes, boxed.pixels, boxed.masks
    pictures = [pixels, edits.fill_smoothly(pixels, masks)]
    whole, painted = subject.predict(torch.cat(pictures)).argmax(1).split(len(pixels))
    hits, counts = noisy == boxed.labels, counted(subject, boxed)
    left = [LEFT.get(index, "sky alone") for index in boxed.indices]
    alike = {
        kind: counts & torch.tensor([one == kind for one in left])
        for kind in ("a jumper or smoke", "land", "sky alone")
    }
    rows = torch.arange(len(pixels)).expand(NOISES, -1)
    return {
        "pictures": [
            {
                "index": index,
                "called": classes[whole[k]],
                "painted_over": classes[painted[k]],
                "noise": hits[:, k].float().mean().item(),
                "left": left[k],
                "counts": bool(counts[k]),
            }
            for k, index in enumerate(boxed.indices)
        ],
        "noise": {
            kind: rate_with_interval(hits[:, which].flatten(), rows[:, which].flatten())
            for kind, which in alike.items()
        },
    }


def move_randomly(mask, generator):
    """A mask as large elsewhere, of 50 places the one that covers least of the object."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    spans = [(int(lines[0]), len(mask) - int(lines[-1])) for lines in (rows, columns)]
    tries = [torch.randint(-before, after, (50,), generator=generator) for before, after in spans]
    rolled = [torch.roll(mask, (y, x), (0, 1)) for y, x in torch.stack(tries, 1).tolist()]
    return min(rolled, key=lambda other: int((other & mask).sum()))


def swap(subject, boxed, masks, empty, generator):
    """What `masks` show on the emptied pictures of other classes: {"pairs": {object class:
    {background class: how many of so many are called one or the other}}}, and per class how often
    it is named as the object, "as_object", as the background, "as_background", and where it is
    neither, "as_neither", the control of both.

    A picture takes part several times, so that these intervals are over objects and backgrounds,
    not over pairs. `count` is that of the objects, for "as_background" and "as_neither" that of the
    backgrounds.
    """
    classes, labels = subject.dataset.classes, boxed.labels
    table, seen = {}, []
    for own, name in enumerate(classes):
        objects = (labels == own).nonzero()[:, 0]
        table[name] = {}
        for other in range(len(classes)):
            places = (labels == other).nonzero()[:, 0]
            if other == own or not len(places) or not len(objects):
                continue
            drawn = places[torch.randint(len(places), (len(objects),), generator=generator)]
            pasted = edits.paste(boxed.pixels[objects], masks[objects], empty[drawn])
            called = subject.predict(pasted).argmax(1)
            hits = {"object": called == own, "background": called == other}
            row = {key: int(hit.sum()) for key, hit in hits.items()}
            table[name][classes[other]] = row | {"count": len(objects)}
            seen += zip(objects.tolist(), drawn.tolist(), called.tolist(), strict=True)
    own, ground, called = torch.tensor(seen).T if seen else torch.zeros(3, 0, dtype=torch.long)
    found = {"pairs": table, "as_object": {}, "as_background": {}, "as_neither": {}}
    for label, name in enumerate(classes):
        of_object, of_ground, hits = labels[own] == label, labels[ground] == label, called == label
        neither = ~of_object & ~of_ground
        for key, which, kinds in (
            ("as_object", of_object, (own, ground)),
            ("as_background", of_ground, (ground, own)),
            ("as_neither", neither, (ground, own)),
        ):
            found[key][name] = crossed_rate(hits[which], *(kind[which] for kind in kinds))
    return found


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
    outside = 1 - energy_inside(subject.smooth(maps), chosen.masks)
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
