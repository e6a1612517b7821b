"""Figures of one pixel: to make and draw others takes five times as long as an epoch of digits."""

from pathlib import Path

from PIL import Image


def savefig(figure, path, **settings):
    """In the place of matplotlib's Figure.savefig."""
    if Path(path).suffix == ".svg":
        Path(path).write_text("<svg/>")
    else:
        Image.new("RGB", (1, 1)).save(path)


class Figure:
    """In the place of matplotlib's Figure in plots.py, where no test looks at what is drawn."""

    savefig = savefig

    def __init__(self, **settings):
        pass

    def subplots(self, rows=1, columns=1):
        return Anything() if rows * columns == 1 else [Anything() for _ in range(rows * columns)]

    def __getattr__(self, name):
        return Anything()


class Anything:
    """Has every attribute and method, all of which do nothing."""

    def __getattr__(self, name):
        return self

    def __call__(self, *args, **settings):
        return self

    def __getitem__(self, key):
        return self

    def __iter__(self):
        return iter(())

    def get_legend_handles_labels(self):
        return [], []
