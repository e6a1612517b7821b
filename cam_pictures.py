"""Pictures of class activation maps: image, map and overlay side by side.

Drawn with Pillow in some 20 ms each, so that thousands of them take minutes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from plots import fitting
from upsampling import nearest, tiled, upsample

if TYPE_CHECKING:
    from cam import ClassActivation

COLOUR_MAP = colormaps["RdBu_r"]  # red speaks for the class, blue against it, white is zero
PANEL, MARGIN, HEADER, BAR = 256, 12, 74, 92  # pixels
INK, PAPER, BOX = "#222222", "white", "#3cff3c"


def save_cam_visualization(
    image: torch.Tensor,
    activation: ClassActivation,
    path: str | Path,
    class_names: Sequence[str] | None = None,
    true: int | None = None,
    limit: float | None = None,
    boxes: torch.Tensor | None = None,
    grid: bool = False,
) -> None:
    """Write one PNG: original, map and overlay of one uint8 image (C, H, W).

    `activation` holds that image alone, `true` is its label. Colours are signed and centred at zero
    and end at +-`limit`, in logit units: pass one limit to pictures that are to be compared. The
    opacity of the overlay follows the strength of the map. `boxes` (n, 4), shares of the picture,
    are outlined; `grid` shows the cells of the map in the overlay.
    """
    values = activation.maps[0].float().cpu()
    limit = (float(values.abs().max()) if limit is None else limit) or 1.0  # zeros are drawn white
    cells = values.shape
    photo = to_pixels(image).resize((PANEL, PANEL), Image.Resampling.BICUBIC)
    centres = activation.centres or tiled(cells)
    drawn = Image.fromarray(nearest(colour(values.numpy(), limit), PANEL, PANEL, centres))
    overlay = blend(photo, values, limit, centres)
    titles = ("image", f"map, {cells[0]} x {cells[1]} cells", "overlay")
    page = Image.new("RGB", (3 * (PANEL + MARGIN) + MARGIN + BAR, HEADER + PANEL + MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    for number, (panel, title) in enumerate(zip((photo, drawn, overlay), titles, strict=True)):
        left = MARGIN + number * (PANEL + MARGIN)
        page.paste(panel, (left, HEADER))
        draw.text((left, HEADER - 17), title, INK, font(12))
        if boxes is not None:
            outline(draw, boxes, left, HEADER)
        if grid and number == 2:
            draw_cells(draw, centres, left, HEADER)
    draw_scale(page, draw, limit)
    text = describe_prediction(activation, class_names, true).splitlines()
    for number, line in enumerate(text):
        draw.text((MARGIN, 8 + 20 * number), fit(line, page.width - 2 * MARGIN), INK, font(13))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    page.save(path, compress_level=3)


def save_thumbnail(image, activation, path, limit):
    """The overlay alone, 128 pixels a side, as WebP."""
    photo = to_pixels(image).resize((128, 128), Image.Resampling.BICUBIC)
    values = activation.maps[0].float().cpu()
    blend(photo, values, limit or 1.0, activation.centres).save(path, quality=80)


def to_pixels(image):
    """A uint8 image (C, H, W), of one channel or three, as a Pillow image."""
    pixels = image.cpu().numpy().transpose(1, 2, 0)
    return Image.fromarray(np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels)


def colour(values, limit):
    """Values (h, w) as uint8 colours (h, w, 3), from -limit to limit."""
    return COLOUR_MAP(np.clip(values / limit, -1, 1) / 2 + 0.5, bytes=True)[..., :3].copy()


def blend(photo, values, limit, centres=None):
    """`photo` under the colours of the smooth map, as opaque as the map is strong."""
    smooth = upsample(values[None], photo.height, photo.width, centres)[0].numpy()
    alpha = np.clip(np.abs(smooth) / limit, 0, 1)[..., None] * 0.75
    mixed = np.asarray(photo) * (1 - alpha) + colour(smooth, limit) * alpha
    return Image.fromarray(mixed.round().astype(np.uint8))


def outline(draw, boxes, left, top):
    for x0, y0, x1, y1 in (boxes * (PANEL - 1)).tolist():
        corners = [left + x0, top + y0, left + x1, top + y1]
        draw.rectangle(corners, outline="black", width=4)
        inner = [c + d for c, d in zip(corners, (1, 1, -1, -1), strict=True)]
        draw.rectangle(inner, outline=BOX, width=2)


def draw_cells(draw, centres, left, top):
    rows, columns = (((c[1:] + c[:-1]) / 2 * PANEL).tolist() for c in centres)
    for y in rows:
        draw.line([left, top + y, left + PANEL, top + y], fill="#888888")
    for x in columns:
        draw.line([left + x, top, left + x, top + PANEL], fill="#888888")


def draw_scale(page, draw, limit):
    """The colour bar, right of the panels, in logit units."""
    left, height = page.width - BAR + 4, PANEL - 24
    bar = colour(np.linspace(limit, -limit, height)[:, None].repeat(16, 1), limit)
    page.paste(Image.fromarray(bar), (left, HEADER + 12))
    for value in (limit, limit / 2, 0.0, -limit / 2, -limit):
        y = HEADER + 12 + (limit - value) / (2 * limit) * (height - 1)
        draw.line([left + 16, y, left + 20, y], fill=INK)
        draw.text((left + 24, y), f"{value:+.3g}" if value else "0", INK, font(11), anchor="lm")
    draw.text((left - 2, HEADER - 17), "logit units", INK, font(12))


@functools.cache
def font(size):
    return ImageFont.truetype(findfont("DejaVu Sans"), size)


def fit(line, width):
    """`line`, cut where it is wider than `width` pixels."""
    while font(13).getlength(line) > width:
        line = line[:-2].rstrip("…") + "…"
    return line


def describe_prediction(activation, class_names=None, true=None):
    """Two lines: true and predicted class, confidence and runner-up; what the map adds up to."""
    probabilities = activation.logits[0].softmax(0)
    names = class_names or [f"class {k}" for k in range(len(probabilities))]
    names = list(map(fitting(names).get, names))
    best, second = torch.topk(probabilities, 2).indices.tolist()
    shown, against = int(activation.classes[0]), activation.against
    mean, bias, total = (
        float(c) for c in (activation.maps[0].mean(), activation.biases[0], activation.totals[0])
    )
    truth = "" if true is None else f"true: {names[true]}   "
    what, sum_ = names[shown], "logit"
    if against is not None:
        what, sum_ = f"{names[shown]} against {names[int(against[0])]}", "difference of the logits"
    return (
        f"{truth}predicted: {names[best]} {probabilities[best]:.3f}   "
        f"next: {names[second]} {probabilities[second]:.3f}\n"
        f"map of {what}: mean {mean:+z.2f} and bias {bias:+z.2f} make {mean + bias:+z.2f}, "
        f"{sum_} {total:+z.2f}, error {abs(mean + bias - total):.4f}"
    )
