"""Many class activation maps: a picture each, the raw maps, a manifest and the page of them all.

`gallery.html` is the page's template. Python writes every picture into it as a figure, so that it
shows them without scripts too; the script filters, sorts and opens them.
"""

import contextlib
import html
import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image
from tqdm import tqdm

from boxes import box_mask, energy_inside
from cam_pictures import save_cam_visualization, save_thumbnail
from distributed import first_only, own_part, wait
from files import write_json
from upsampling import upsample

TEMPLATE = Path(__file__).with_name("gallery.html")
TOP = 5  # probabilities a picture


def draw_gallery(folder, dataset, indices, activation, paths, boxes=None, grid=False, about=None):
    """Write a picture an image of `indices`, maps.npy (n, h, w), manifest.json and index.html.

    `paths` are those of the pictures below `folder`, without ending; `boxes` has the boxes (n, 4)
    of the objects by index, where they are known; `about` is for the manifest. Labels below 0 are
    unknown. Returns the rows of
    the manifest, one a picture. All pictures share one colour scale, which one cell in 200 of them
    passes: to the largest of thousands of maps the others would be pale. Several processes on the
    machine of rank 0 draw together.
    """
    limit = float(np.quantile(activation.maps.abs().numpy(), 0.995))
    rows = []
    for position, (index, path) in enumerate(zip(indices, paths, strict=True)):
        row = describe_activation(activation[position], dataset, int(dataset.labels[index]))
        row |= measure_boxes(activation[position], dataset, (boxes or {}).get(index))
        names = {"index": index, "path": f"{path}.png", "thumbnail": f"{path}.webp"}
        rows.append(names | row | {"limit": limit})

    def draw(position):
        row, index, one = rows[position], indices[position], activation[position]
        image, label = dataset.images[index], int(dataset.labels[index])
        true = label if label >= 0 else None
        box = (boxes or {}).get(index)
        place = folder / row["path"]
        save_cam_visualization(image, one, place, dataset.classes, true, limit, box, grid)
        save_thumbnail(image, one, folder / row["thumbnail"], limit)

    own = own_part(range(len(rows)))
    with ThreadPoolExecutor() as pool:
        work = pool.map(draw, own)
        list(tqdm(work, "drawing", len(own), leave=False, disable=None, unit=" pictures"))
    wait()  # for the pictures of the other processes
    first_only(write_pages)(folder, rows, activation, dataset.classes, about or {})
    return rows


def write_pages(folder, rows, activation, classes, about):
    remove_earlier(folder, rows)
    np.save(folder / "maps.npy", activation.maps.numpy())
    worst = max(row["completeness_error"] for row in rows)
    manifest = about | {"worst_completeness_error": worst, "images": rows}
    write_json(folder / "manifest.json", manifest)
    write_gallery(folder, rows, "Class activation maps", classes)
    print(
        f"{len(rows)} map{'s' * (len(rows) > 1)}, which sum up to their logits but for {worst:.1e} "
        f"of an image's largest: {folder / 'index.html'}"
    )


def remove_earlier(folder, rows):
    """Delete the pictures that the manifest of an earlier call lists and this one has not drawn."""
    earlier = []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        earlier = [row[kind] for row in content["images"] for kind in ("path", "thumbnail")]
    drawn = {row[kind] for row in rows for kind in ("path", "thumbnail")}
    gone = set(earlier) - drawn
    if gone:
        print(f"{folder}: the {len(gone) // 2} maps that were there make room for these")
    for name in gone:
        path = (folder / name).resolve()
        if path.is_relative_to(folder.resolve()):
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the folder of a class that has others
                path.parent.rmdir()


def describe_activation(one, dataset, label):
    """What the manifest says of one activation: classes by name, numbers as they are."""
    shown, against = int(one.classes[0]), one.against
    return {
        "true": dataset.classes[label] if label >= 0 else None,
        "predicted": dataset.classes[int(one.logits[0].argmax())],
        "shown": dataset.classes[shown],
        "contrast": None if against is None else dataset.classes[int(against[0])],
        "confidence": float(one.confidence[0]),
        "probabilities": one.logits[0].softmax(0).tolist(),
        "logit": float(one.totals[0]),  # of a contrast: the difference of two
        "completeness_error": float(one.completeness_error()[0]),
    }


def measure_boxes(one, dataset, boxes):
    """How much of the positive evidence lies in and off the object, and the object's size."""
    if boxes is None:
        return {"inside": None, "outside": None, "box_area": None}
    height, width = dataset.images.shape[-2:]
    mask = box_mask(boxes, height, width)
    smooth = upsample(one.maps.float(), height, width, one.centres)
    inside = float(energy_inside(smooth, mask[None])[0])
    known = inside == inside  # not where nothing speaks for the class
    return {
        "inside": inside if known else None,
        "outside": 1 - inside if known else None,
        "box_area": float(mask.float().mean()),
    }


def folder_name(class_name):
    """A name as one folder or file: no separators or dots, at most 80 characters."""
    return re.sub(r"[^\w\- ]", "_", class_name).strip()[:80] or "_"


def write_gallery(folder, rows, title, classes):
    """Write folder/index.html, which shows `rows`, those of cam's manifest, by ascending index.

    `classes` are the K names, in the order of a row's `probabilities`. Paths are relative to
    `folder`; the first picture must be there, for it gives the tiles' shape. A row without
    `thumbnail` shows its `path`, one without `contrast`, `inside`, `outside` or `box_area` leaves
    them out. All names are shown as text, whatever they hold.
    """
    rows = sorted(rows, key=lambda row: row["index"])
    content = {"classes": list(classes), "rows": [embed(row) for row in rows]}
    scale, limit = describe_scale(rows)
    parts = {
        "title": html.escape(title),
        "scale": scale,
        "sum": "the difference of the biases of its classes is that of their logits"
        if any(row.get("contrast") for row in rows)
        else "the bias of its class is the logit",
        "limit": limit,
        "worst": describe_worst(rows),
        "shape": f"{measure_shape(Path(folder), rows):.4f}",
        "lines": str(max((len(list_lines(row, "")) for row in rows), default=0)),
        "figures": "\n".join(write_figure(row) for row in rows),
        # a parser of HTML that meets no "<" cannot leave the script element
        "content": json.dumps(content, separators=(",", ":")).replace("<", "\\u003c"),
    }
    page = TEMPLATE.read_text(encoding="utf-8")
    for name, text in parts.items():  # no text holds "<!--" itself: all are escaped
        page = page.replace(f"<!-- {name} -->", text)
    path = Path(folder) / "index.html"
    path.write_text(page, encoding="utf-8", errors="replace")


def embed(row):
    """What the script needs of a row: the figure has its paths, null stands for what is absent."""
    best = sorted(enumerate(row["probabilities"]), key=lambda pair: -pair[1])[:TOP]
    return {
        "index": row["index"],
        "true": name_of(row),
        "wrong": None if row["true"] is None else is_wrong(row),
        "predicted": row["predicted"],
        "shown": row["shown"],
        "contrast": row.get("contrast"),
        "top": [[label, finite(round(share, 5))] for label, share in best],
        **{name: finite(row[name]) for name in ("confidence", "logit", "limit")},
        "error": finite(row["completeness_error"]),
        **{name: finite(row.get(name)) for name in ("inside", "outside", "box_area")},
    }


def finite(number):
    """None for NaN and infinity, which JSON lacks."""
    return number if number is not None and math.isfinite(number) else None


def write_figure(row):
    """One picture as an item of the list; its alt text says what its caption shows."""
    share = f"{max(row['probabilities']):.2f}"  # of the predicted class
    alt = f"{name_of(row)}, image {row['index']}, predicted {row['predicted']} {share}"
    subject = describe_map(row)
    alt += f", {subject}" if subject else ""
    caption = "".join(
        f"<b>{html.escape(text)}</b><i>{number}</i>" for text, number in list_lines(row, share)
    )
    marked = ' class="wrong"' if is_wrong(row) else ""
    return (
        f'<li{marked}><a href="{address(row["path"])}"><img loading="lazy" decoding="async" '
        f'src="{address(row.get("thumbnail") or row["path"])}" alt="{html.escape(alt)}">'
        f'<span aria-hidden="true">{caption}</span></a></li>'
    )


def is_wrong(row):
    return row["true"] is not None and row["predicted"] != row["true"]


def name_of(row):
    """The true class, or the file's name where nobody knows it."""
    return Path(row["path"]).stem if row["true"] is None else row["true"]


def list_lines(row, share):
    """The caption of a picture: lines of a text and a number."""
    mark = "" if row["true"] is None else "✗ " if is_wrong(row) else "✓ "
    lines = [(name_of(row), row["index"]), (f"{mark}{row['predicted']}", share)]
    if subject := describe_map(row):
        lines.append((subject, ""))
    if row.get("outside") is not None:
        lines.append(("outside box", f"{row['outside']:.2f}"))
    return lines


def describe_map(row):
    """Which class the map is of, where it is not that of the predicted class alone."""
    if row.get("contrast"):
        return f"map of {row['shown']} against {row['contrast']}"
    return "" if row["shown"] == row["predicted"] else f"map of {row['shown']}"


def address(path):
    """A path as an attribute's URL: no scheme, query or fragment can hide in it."""
    return quote(path, errors="surrogateescape")


def describe_scale(rows):
    """What the colours of all pictures share, and where their scale ends."""
    limits = {row["limit"] for row in rows}
    if len(limits) != 1:
        return "on a colour scale for each picture", "limit"
    return "on one colour scale for all, which one cell in 200 passes", f"{limits.pop():.3g}"


def describe_worst(rows):
    """The largest completeness error, one that is no number counting as the largest of all."""
    if not rows:
        return "There are no pictures."
    errors = [(row["completeness_error"], row["index"]) for row in rows]
    error, index = max(errors, key=lambda pair: (not math.isfinite(pair[0]), pair[0]))
    return f"Worst completeness error: {error:.1e} of the largest logit (image {index})."


def measure_shape(folder, rows):
    """Width over height of the first picture on the page; 1 where there is none."""
    if not rows:
        return 1.0
    with Image.open(folder / (rows[0].get("thumbnail") or rows[0]["path"])) as picture:
        return picture.width / picture.height
