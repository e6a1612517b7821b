"""Many class activation maps: a picture each, the raw maps, a manifest and a page of them all."""

import html
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from boxes import box_mask, energy_inside, upsample
from cam_pictures import save_cam_visualization, save_thumbnail
from tracking import write_json


def draw_gallery(folder, dataset, indices, activation, paths, boxes=None, grid=False):
    """Write a picture an image of `indices`, maps.npy (n, h, w), manifest.json and index.html.

    `paths` are those of the pictures below `folder`, without ending; `boxes` has the boxes (n, 4)
    of the objects by index, where they are known. Labels below 0 are unknown. Returns the rows of
    the manifest, one a picture. All pictures share one colour scale.
    """
    limit = float(activation.maps.abs().max())
    rows = []
    for position, (index, path) in enumerate(zip(indices, paths, strict=True)):
        row = describe(activation[position], dataset, int(dataset.labels[index]))
        row |= measure_boxes(activation[position], dataset, (boxes or {}).get(index))
        names = {"index": index, "path": f"{path}.png", "thumbnail": f"{path}.webp"}
        rows.append(names | row | {"limit": limit})

    def draw(position):
        row, index, one = rows[position], indices[position], activation[position]
        image, label = dataset.images[index], int(dataset.labels[index])
        about = (dataset.classes, label if label >= 0 else None)
        box = (boxes or {}).get(index)
        save_cam_visualization(image, one, folder / row["path"], *about, limit, box, grid)
        save_thumbnail(image, one, folder / row["thumbnail"], limit)

    with ThreadPoolExecutor() as pool:
        work = pool.map(draw, range(len(rows)))
        list(tqdm(work, "drawing", len(rows), leave=False, disable=None, unit=" pictures"))
    np.save(folder / "maps.npy", activation.maps.numpy())
    worst = max(row["completeness_error"] for row in rows)
    write_json(folder / "manifest.json", {"worst_completeness_error": worst, "images": rows})
    write_page(folder / "index.html", rows)
    print(
        f"{len(rows)} maps in {folder}, index.html shows them; worst |mean + bias - logit| "
        f"{worst:.1e} of the logit"
    )
    return rows


def describe(one, dataset, label):
    """What the manifest says of one activation: classes by name, numbers as they are."""
    shown, against = int(one.classes[0]), one.against
    return {
        "true": dataset.classes[label] if label >= 0 else None,
        "predicted": dataset.classes[int(one.logits[0].argmax())],
        "shown": dataset.classes[shown],
        "contrast": None if against is None else dataset.classes[int(against[0])],
        "confidence": float(one.confidence[0]),
        "probabilities": one.logits[0].softmax(0).tolist(),
        "logit": float(one.logits[0, shown]),
        "completeness_error": float(one.completeness_error()[0]),
    }


def measure_boxes(one, dataset, boxes):
    """How much of the positive evidence lies in and off the object, and the object's size."""
    if boxes is None:
        return {"inside": None, "outside": None, "box_area": None}
    height, width = dataset.images.shape[-2:]
    mask = box_mask(boxes, height, width)
    inside = float(energy_inside(upsample(one.maps.float(), height, width), mask[None])[0])
    known = inside == inside  # not where nothing speaks for the class
    return {
        "inside": inside if known else None,
        "outside": 1 - inside if known else None,
        "box_area": float(mask.float().mean()),
    }


def folder_name(class_name):
    """A name as one folder or file: no separators or dots, at most 80 characters."""
    return re.sub(r"[^\w\- ]", "_", class_name).strip()[:80] or "_"


def write_page(path, rows):
    """A page that shows all pictures, without script or network."""
    figures = [
        f'<figure><a href="{html.escape(row["path"])}"><img loading="lazy" '
        f'src="{html.escape(row["path"])}" alt="{html.escape(row["true"] or "")}, image {row["index"]}">'
        f"</a><figcaption>{row['index']}: {html.escape(row['true'])}, predicted "
        f"{html.escape(row['predicted'])}, {row['confidence']:.3f}</figcaption></figure>"
        for row in rows
    ]
    style = (
        "body{font:16px sans-serif;margin:1.5rem;color:#222}figure{display:inline-block;"
        "margin:.5rem;width:min(32rem,100%)}img{width:100%}"
    )
    path.write_text(
        "<!doctype html>\n<html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width"><title>Class activation maps</title>'
        f"<style>{style}</style><h1>Class activation maps</h1>"
        "<p>Red speaks for the class, blue against it; one colour scale for all.</p>\n"
        + "\n".join(figures)
        + "\n</html>\n",
        encoding="utf-8",
    )
