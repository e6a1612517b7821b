"""Pictures changed on purpose: objects and backgrounds removed, moved and swapped, mosaics, skies.

Pictures are float pixels (N, C, H, W) in [0, 255]; masks (N, H, W) are true on the object.
"""

import colorsys

import torch
from torch.nn import functional as F


def fill_smoothly(pixels, masks):
    """`pixels` with what the masks cover grown in from around it.

    Every covered pixel takes the mean of the known ones of the finest level of a pyramid that has
    any near it.
    """
    known = (~masks[:, None]).float()
    levels = [(pixels * known, known)]
    while levels[-1][1].shape[-1] > 1:
        colours, weights = (F.avg_pool2d(t, 2, ceil_mode=True) for t in levels[-1])
        levels.append((colours, weights))
    filled = levels[-1][0] / levels[-1][1].clamp(min=1e-6)
    for colours, weights in reversed(levels[:-1]):
        filled = F.interpolate(filled, weights.shape[-2:], mode="bilinear")
        share = weights.clamp(max=1)
        own = colours / weights.clamp(min=1e-6)
        filled = share * own + (1 - share) * filled
    return torch.where(masks[:, None], filled, pixels)


def fill_with_pixels(pixels, masks, generator):
    """`pixels` with what the masks cover replaced by pixels drawn at random from around it: its
    colours, but nothing smooth. Of a picture that is covered
    whole they are drawn from all of it."""
    weights = (~masks).flatten(1).float()
    weights[weights.sum(1) == 0] = 1.0
    drawn = torch.multinomial(weights, weights.shape[1], replacement=True, generator=generator)
    flat = pixels.flatten(2)
    noise = flat.gather(2, drawn[:, None].expand_as(flat)).view_as(pixels)
    return torch.where(masks[:, None], noise, pixels)


def cut_along(pixels, masks, empty, levels=40):
    """The part of every mask that differs by more than `levels` of 255, in one channel at least,
    from `empty`, what was grown in from around it: the object without most of its background."""
    return masks & ((pixels - empty).abs().amax(1) > levels)


def alone(pixels, masks, mean):
    """What the masks show, on the mean colour (C,) of the data set."""
    return torch.where(masks[:, None], pixels, mean.view(-1, 1, 1))


def paste(pixels, masks, background):
    """The object of `pixels` at its place on another picture."""
    return torch.where(masks[:, None], pixels, background)


def move(pixels, masks, background, rows, columns):
    """The object on `background`, shifted by whole pixels; what leaves the picture is lost."""
    shifted, where = torch.zeros_like(pixels), torch.zeros_like(masks)
    height, width = masks.shape[1:]
    to_rows = slice(max(0, rows), min(height, height + rows))
    to_columns = slice(max(0, columns), min(width, width + columns))
    from_rows = slice(max(0, -rows), min(height, height - rows))
    from_columns = slice(max(0, -columns), min(width, width - columns))
    shifted[:, :, to_rows, to_columns] = pixels[:, :, from_rows, from_columns]
    where[:, to_rows, to_columns] = masks[:, from_rows, from_columns]
    return torch.where(where[:, None], shifted, background)


def crop_around(pixels, boxes, mask, share):
    """The square part of one picture (C, H, W) of which the object fills `share`, at the old size.

    `boxes` (n, 4) in [0, 1] are around it, `mask` (H, W) is true on it. At most the whole picture,
    at least all boxes; moved where it would leave the picture.
    """
    x0, y0 = boxes[:, :2].amin(0).tolist()
    x1, y1 = boxes[:, 2:].amax(0).tolist()
    side = (mask.float().mean().item() / share) ** 0.5
    side = min(1.0, max(side, x1 - x0, y1 - y0))
    left, top = (min(max((a + b - side) / 2, 0.0), 1 - side) for a, b in ((x0, x1), (y0, y1)))
    grid = F.affine_grid(
        torch.tensor([[[side, 0, 2 * left + side - 1], [0, side, 2 * top + side - 1]]]),
        [1, *pixels.shape],
        align_corners=False,
    )
    settings = {"mode": "bilinear", "padding_mode": "border", "align_corners": False}
    return F.grid_sample(pixels[None], grid, **settings)[0]


def mosaics(pixels):
    """Four pictures each (N, 4, C, H, W) as one of 2 x 2 tiles (N, C, 2H, 2W)."""
    rows = [torch.cat([pixels[:, k], pixels[:, k + 1]], 3) for k in (0, 2)]
    return torch.cat(rows, 2)


def hsv_grid(hues, saturations, values, size):
    """Pictures (n, 3, size, size) of one colour each, hue by hue."""
    colours = [colorsys.hsv_to_rgb(h, s, v) for h in hues for s in saturations for v in values]
    colours = torch.tensor(colours) * 255
    return colours[:, :, None, None].expand(-1, -1, size, size)


def skies(size, generator):
    """{name: picture (3, size, size)}: plain, graded and noisy skies, and what is none."""
    plain = {
        "sky blue": (135, 190, 235),
        "deep blue": (40, 90, 180),
        "grey": (150, 150, 150),
        "white": (245, 245, 245),
        "sunset": (250, 160, 90),
        "green": (60, 130, 50),
        "black": (10, 10, 10),
    }
    made = {
        name: torch.tensor(colour, dtype=torch.float32).view(3, 1, 1).expand(3, size, size)
        for name, colour in plain.items()
    }
    down = torch.linspace(0, 1, size).view(1, -1, 1)
    blue, white = made["deep blue"], made["white"]
    made["deep blue above, white below"] = blue * (1 - down) + white * down
    made["white above, deep blue below"] = white * (1 - down) + blue * down
    noise = torch.randn(3, size, size, generator=generator)
    made["sky blue, noise of 10"] = (made["sky blue"] + 10 * noise).clamp(0, 255)
    made["sky blue, noise of 50"] = (made["sky blue"] + 50 * noise).clamp(0, 255)
    made["grey, noise of 50"] = (made["grey"] + 50 * noise).clamp(0, 255)
    return made


def shuffle_pixels(pixels, generator):
    """The pixels of every picture in a random order: its colours without its shapes."""
    order = torch.rand(len(pixels), 1, pixels[0, 0].numel(), generator=generator).argsort(2)
    flat = pixels.flatten(2)
    return flat.gather(2, order.expand_as(flat)).view_as(pixels)
