"""The page that shows class activation maps: `index.html` beside the pictures, without network.

`gallery.html` is its template. Python writes every picture into it as a figure, so that it shows
them without scripts too; the script filters, sorts and opens them.
"""

import html
import json
import math
from pathlib import Path
from urllib.parse import quote

from PIL import Image

TEMPLATE = Path(__file__).with_name("gallery.html")
TOP = 5  # probabilities a picture


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
        "true": row["true"],
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
    alt = f"{row['true']}, image {row['index']}, predicted {row['predicted']} {share}"
    subject = describe_map(row)
    alt += f", {subject}" if subject else ""
    caption = "".join(
        f"<b>{html.escape(text)}</b><i>{number}</i>" for text, number in list_lines(row, share)
    )
    marked = ' class="wrong"' if row["predicted"] != row["true"] else ""
    return (
        f'<li{marked}><a href="{address(row["path"])}"><img loading="lazy" decoding="async" '
        f'src="{address(row.get("thumbnail") or row["path"])}" alt="{html.escape(alt)}">'
        f'<span aria-hidden="true">{caption}</span></a></li>'
    )


def list_lines(row, share):
    """The caption of a picture: lines of a text and a number."""
    wrong = row["predicted"] != row["true"]
    verdict = f"{'✗' if wrong else '✓'} {row['predicted']}"
    lines = [(row["true"], row["index"]), (verdict, share)]
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
    return "on one colour scale for all", f"{limits.pop():.3g}"


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
