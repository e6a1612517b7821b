"""The trust study as text: what a reader should know before believing a picture."""

from benchmarks.report import columns

PLAIN = ("sky blue", "grey", "sunset", "green", "sky blue, noise of 50")


def percent(summary):
    """A mean with its interval, like 62 % (58 to 66)."""
    if not summary["count"]:
        return "-"
    mean, low, high = (100 * summary[key] for key in ("mean", "low", "high"))
    return f"{mean:.0f} % ({low:.0f} to {high:.0f})"


def number(summary):
    if not summary["count"]:
        return "-"
    mean, low, high = (f"{summary[key]:z.2f}" for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def table_of(study):
    parts = [
        six_table(study),
        where_table(study, "unseen"),
        where_table(study, "seen"),
        kept_table(study, "unseen"),
        kept_table(study, "seen"),
        taken_table(study, "unseen"),
        taken_table(study, "seen"),
        remains_table(study),
        swap_table(study, "unseen"),
        swap_table(study, "seen"),
        sky_table(study),
        table_3536(study),
        curve_table(study),
        mosaic_table(study),
        randomised_table(study),
    ]
    return "\n\n".join(parts)


def six_table(study):
    rows = [
        (
            str(row["index"]),
            row["true"],
            row["predicted"],
            *(f"{row[key]:.2f}" for key in ("confidence", "church", "parachute")),
            f"{row['box_area']:.0%}",
            f"{row['outside']:.0%}",
        )
        for row in study["six"]
    ]
    header = ("image", "true", "predicted", "confidence", "P(church)", "P(parachute)",
              "box's area", "evidence outside")  # fmt: skip
    return f"The six pictures of the exercise's text\n{columns(header, rows)}"


def where_table(study, name):
    found = study[name]["where"]
    rows = []
    for one in ["all", *study["classes"]]:
        rows.append(
            (
                one,
                percent(found["box_area"][one]),
                percent(found["map"]["outside"][one]),
                percent(found["centre"]["outside"][one]),
                number(found["map"]["energy_over_area"][one]),
                percent(found["map"]["pointing"][one]),
                percent(found["centre"]["pointing"][one]),
                percent(found["map"]["box_accuracy"][one]),
            )
        )
    header = ("class", "box's area", "evidence outside", "of a Gaussian", "inside / area",
              "points inside", "Gaussian does", "box accuracy")  # fmt: skip
    title = f"Where the evidence for the true class lies, {study[name]['images']} {name} images"
    return f"{title}\n{columns(header, rows)}"


def kept_table(study, name):
    kept = study[name]["kept"]
    rows = [
        (one, *(percent(kept[change][one]) for change in kept))
        for one in ["all", *study["classes"]]
    ]
    title = (
        f"How often the right answer is kept, of the {name} images that had it, where the box "
        f"leaves a tenth"
    )
    return f"{title}\n{columns(('class', *kept), rows)}"


def taken_table(study, name):
    taken = study[name]["taken"]
    rows = [(one, *(percent(taken[change][one]) for change in taken)) for one in study["classes"]]
    title = f"How often these {name} images, without the object, are called another class"
    return f"{title}\n{columns(('class', *taken), rows)}"


def remains_table(study):
    """Of the unseen parachutes one by one."""
    rows = [
        (
            str(row["index"]),
            row["left"],
            row["called"],
            row["painted_over"],
            f"{row['noise']:.0%}",
            "" if row["counts"] else "not counted",
        )
        for row in study["parachutes"]["pictures"]
    ]
    header = ("image", "the box leaves", "called", "painted over", "parachute with noise", "")
    shares = ", ".join(
        f"{percent(found)} of {found['count']} with {left}"
        for left, found in study["parachutes"]["noise"].items()
    )
    return (
        f"Parachutes without the object, one by one\n{columns(header, rows)}\n"
        f"called parachutes with noise in its place: {shares}"
    )


def swap_table(study, name):
    """How often what is pasted on the emptied backgrounds of other classes is named, how often
    they are, and how often a class is where neither is of it: pasted are whole boxes, then what is
    cut out of them."""
    swapped = study[name]["swapped"]
    rows = []
    for one in study["classes"]:
        summaries = [swapped[what][key][one] for what in ("boxes", "cut out")
                     for key in ("as_object", "as_background", "as_neither")]  # fmt: skip
        share = percent(swapped["cut_share"][one])
        rows.append((one, *map(percent, summaries[:3]), share, *map(percent, summaries[3:])))
    header = ("class", "box named", "background named", "named as neither",
              "of the box is cut out", "that named", "background named", "as neither")  # fmt: skip
    title = f"Boxes, and what is cut out of them, on emptied backgrounds of others, {name} images"
    return f"{title}\n{columns(header, rows)}"


def sky_table(study):
    at = study["classes"].index("parachute")
    rows = []
    for name, probabilities in study["colours"]["skies"].items():
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        rows.append((name, f"{probabilities[at]:.2f}", study["classes"][best]))
    header = ("picture without an object", "P(parachute)", "called")
    return f"Skies, and what is none\n{columns(header, rows)}"


def table_3536(study):
    found = study["3536"]
    rows = [
        (f"{words} {share:.0%}", f"{p:.2f}")
        for key, words in (
            ("cut_out", "cut out, so that the parachute fills"),
            ("enlarged", "the parachute enlarged on the rest, to"),
        )
        for share, p in zip(found["object_share"], found[key], strict=True)
    ]
    rows += [(name, f"{p:.2f}") for name, p in found["skies"].items()]
    return f"Image 3536: surroundings or size?\n{columns(('picture', 'P(parachute)'), rows)}"


def curve_table(study):
    rows = []
    kinds = [study["curves"][kind] for kind in ("features", "deletion", "insertion")]
    for order in ("map", "random", "centre"):
        rows.append((order, *(number(kind[order]["area"]) for kind in kinds)))
    for order in ("random", "centre"):
        more = (number(kind[order]["more_than_map"]) for kind in kinds)
        rows.append((f"{order}, more than map", *more))
    header = ("order", "logit, features deleted", "P, pixels deleted", "P, pixels inserted")
    title = (
        f"Mean of the curves of {study['curves']['images']} test images (deleted: lower is better)"
    )
    return f"{title}\n{columns(header, rows)}"


def mosaic_table(study):
    rows = []
    for name, others in study["mosaics"].items():
        mean = sum(s["mean"] for s in others.values()) / len(others)
        thief = min(others, key=lambda other: others[other]["mean"])
        rows.append((name, f"{mean:.0%}", f"{thief} {percent(others[thief])}"))
    header = ("class", "on its tiles", "least beside")
    title = "Mosaics of two classes: evidence on the right tiles (half by chance)"
    return f"{title}\n{columns(header, rows)}"


def randomised_table(study):
    rows = [
        (
            "the trained, of another image" if name == "another image" else f"fresh down to {name}",
            *(number(found[key]) for key in ("signed", "absolute")),
        )
        for name, found in study["randomised"].items()
    ]
    header = ("network", "rank correlation with the trained map", "its size, sign left out")
    return f"Do the maps depend on what was learned?\n{columns(header, rows)}"


def answers(study):
    """{question: answer} of what README asks of several networks, each as text."""
    at = study["classes"].index("parachute")
    skies = study["colours"]["skies"]
    kept, taken, where, swapped = (
        study["unseen"][key] for key in ("kept", "taken", "where", "swapped")
    )
    left, shuffled = study["parachutes"]["noise"]["sky alone"], study["randomised"]
    smooth, noise, cut = "object removed", "object removed, noise", swapped["cut out"]
    row = next(row for row in study["six"] if row["index"] == 3536)

    def beside(change, name):
        return f"{percent(kept[change][name])}, {percent(taken[change][name])}"

    def areas(kind):
        orders = [study["curves"][kind][order] for order in ("map", "centre", "random")]
        return ", ".join(f"{order['area']['mean']:.2f}" for order in orders)

    def on_grounds(name):
        return f"{percent(cut['as_background'][name])}, {percent(cut['as_neither'][name])}"

    return {
        "parachutes still named with noise in their place, others then called parachutes": beside(
            noise, "parachute"
        ),
        "the parachutes among them of which only sky is left": f"{percent(left)} of "
        f"{left['count']}",
        "with room beside the object: right answers kept with noise for it, beside it": ", ".join(
            percent(kept[change]["all"])
            for change in (f"{noise}, room beside it", "noise in as large a part beside it")
        ),
        "all of them, painted over smoothly": beside(smooth, "parachute"),
        "other objects called parachutes: where one stood, elsewhere": on_grounds("parachute"),
        "parachutes where other classes stood, still named": percent(cut["as_object"]["parachute"]),
        "P(parachute) of plain sky blue, grey, orange, green, noisy sky blue": ", ".join(
            f"{skies[name][at]:.2f}" for name in PLAIN
        ),
        "image 3536: P(church), P(parachute)": f"{row['church']:.2f}, {row['parachute']:.2f}",
        "right answers of all classes kept: noise for the object, painted over": ", ".join(
            percent(kept[change]["all"]) for change in (noise, smooth)
        ),
        "with the box alone": percent(kept["box alone"]["all"]),
        "with the object cut out alone": percent(kept["object cut out alone"]["all"]),
        "spaniels still named with noise for the dog, others then called spaniels": beside(
            noise, "English springer"
        ),
        "chain saws still named with noise for the saw, others then called saws": beside(
            noise, "chain saw"
        ),
        "mean P as pixels go: the map's order, from the middle, random": areas("deletion"),
        "mean P as pixels come": areas("insertion"),
        "hottest points in a box: the map's, the middle": ", ".join(
            percent(where[name]["pointing"]["all"]) for name in ("map", "centre")
        ),
        "rank correlation, no sign: maps of a fresh last layer, of other images": ", ".join(
            number(shuffled[name]["absolute"]) for name in ("classifier", "another image")
        ),
    }
