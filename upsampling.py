"""Where the cells of a class activation map lie in the image, and maps of the image's size.

Axis letters: N maps, h x w cells, H x W pixels. Places are shares of the image, from 0 to 1.
"""

import torch
from torch import nn
from torch.nn.modules.utils import _pair


def cell_centres(model, cells, pixels):
    """The centres of the rows (h,) and of the columns (w,) of the last map of a network, whose
    `cells` are (h, w), for images of `pixels` (H, W).

    Kernels, strides and paddings tell, layer by layer (Araujo et al. 2019, "Computing Receptive
    Fields of Convolutional Neural Networks"). Of a network that they do not explain the cells are
    taken to tile the image.
    """
    first, step, sizes = 0.0, 1, list(pixels)
    for name, layer in model.named_modules():
        beside = "shortcut" in name or "downsample" in name
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) and not beside:
            if layer.padding == "same":
                return tiled(cells)
            (kernel, _), (stride, _), (padding, _) = (
                _pair(getattr(layer, key)) for key in ("kernel_size", "stride", "padding")
            )
            first += step * ((kernel - 1) / 2 - padding)
            step *= stride
            sizes = [(size + 2 * padding - kernel) // stride + 1 for size in sizes]
    if sizes != list(cells):
        return tiled(cells)
    both = zip(cells, pixels, strict=True)
    return tuple((first + 0.5 + step * torch.arange(count).double()) / side for count, side in both)


def tiled(cells):
    """The centres of rows (h,) and columns (w,) where cells (h, w) tile the image."""
    return tuple((torch.arange(count).double() + 0.5) / count for count in cells)


def upsample(maps, height, width, centres=None):
    """Maps (N, h, w) as smooth maps (N, height, width), linear between the centres of the cells and
    constant beyond the outer ones.

    `centres` are those of `cell_centres`. Without them the cells tile the image: whole factors then
    keep the mean.
    """
    rows, columns = centres or tiled(maps.shape[1:])
    return blending(rows, height).to(maps) @ maps @ blending(columns, width).to(maps).T


def nearest(values, height, width, centres):
    """An array (h, w, ...) as (height, width, ...): every pixel has the values of the cell whose
    centre is the nearest."""
    rows, columns = centres
    return values[blending(rows, height).argmax(1)][:, blending(columns, width).argmax(1)]


def blending(centres, pixels):
    """(pixels, cells): how much of every cell a pixel takes, a share each."""
    step = centres[1] - centres[0] if len(centres) > 1 else 1.0
    pixel = (torch.arange(pixels).double() + 0.5) / pixels
    place = ((pixel - centres[0]) / step).clamp(0, len(centres) - 1)
    return (1 - (place[:, None] - torch.arange(len(centres))).abs()).clamp(min=0)
