"""Where the object is: the bounding boxes of 500 Imagenette images, and what of a map lies in them.

The boxes are ILSVRC's, which come with its validation images; 134 of those are in Imagenette's
`val` and 366 in its `train`. Coordinates are shares of the picture, (x0, y0, x1, y1) in [0, 1].
"""

import csv
from pathlib import Path

import torch
from PIL import Image

from images import PICTURES, list_images, warn_once

FILE = "imagenette_boxes.csv"


def load_boxes(data_dir, split, resize="squash"):
    """{place of the picture in the sorted split "train" or "val": boxes (n, 4)}.

    They are those of the square pictures that `resize` makes; what a crop leaves out has none, nor
    has a picture that is not there. Empty where data_dir holds no imagenette_boxes.csv. Raises
    ValueError where it is not one.
    """
    path = Path(data_dir) / FILE
    if not path.is_file():
        return {}
    folder = path.parent / PICTURES / split
    places = {file: place for place, file in enumerate(list_images(folder)[0])}
    boxes, rows = {}, 0
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                picture = folder / row["path"]
                rows += row["split"] == split
                if row["split"] == split and picture in places:
                    sides = torch.tensor([float(row["width"]), float(row["height"])])
                    corners = torch.tensor([float(row[key]) for key in ("x0", "y0", "x1", "y1")])
                    box = corners.view(2, 2) / sides
                    box = box if resize == "squash" else box_in_square(box, picture, resize)
                    box = box.clamp(0, 1)
                    if (box[0] < box[1]).all():
                        boxes.setdefault(places[picture], []).append(box.flatten())
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} is damaged or of another form: {error!r}") from None
    if rows and not boxes:
        warn_once(f"{path}: none of its {rows} rows of {split} has a box of a picture in {folder}")
    return {index: torch.stack(found) for index, found in boxes.items()}


def box_in_square(box, file, resize):
    """A box (2, 2), shares of the picture in `file`, as shares of the square that crop or pad make
    of it. What is cut off lies outside [0, 1]."""
    with Image.open(file) as picture:
        sides = torch.tensor(picture.size, dtype=torch.float32)
    shown = sides.min() if resize == "crop" else sides.max()
    return (box * sides - (sides - shown) / 2) / shown


def box_mask(boxes, height, width):
    """Which pixels (height, width) lie in one of `boxes` (n, 4): bool, true inside."""
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    x0, y0, x1, y1 = (boxes[:, k, None] for k in range(4))
    inside_rows, inside_columns = (rows >= y0) & (rows < y1), (columns >= x0) & (columns < x1)
    return (inside_rows[:, :, None] & inside_columns[:, None, :]).any(0)


def energy_inside(maps, masks):
    """(N,) the share of the positive evidence of maps (N, H, W) that lies where masks are true.

    Wang et al. 2020, "energy-based pointing game". NaN where a map has no positive evidence.
    """
    positive = maps.clamp(min=0)
    return (positive * masks).sum((1, 2)) / positive.sum((1, 2))
