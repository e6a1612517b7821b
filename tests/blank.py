"""Figures of one pixel: to draw them takes three times as long as an epoch of digits."""

from pathlib import Path

from PIL import Image


def savefig(figure, path, **settings):
    """In the place of matplotlib's Figure.savefig, where no test looks at what is drawn."""
    if Path(path).suffix == ".svg":
        Path(path).write_text("<svg/>")
    else:
        Image.new("RGB", (1, 1)).save(path)
