"""Random deformations of training images: one affine warp an image, and cutout.

Axis letters: N images, C channels, H x W pixels.
"""

import torch
from torch.nn import functional as F


def draw_augmentation(count, size, config, generator):
    """Random inverse affine maps (count, 2, 3) and cutout centres (count, 2), or None where unused.

    The maps are in the units of `torch.nn.functional.affine_grid`: the picture spans [-1, 1].
    """
    height, width = size
    uniform = torch.rand(count, 8, generator=generator)  # drawn always: one key never moves another
    signed = uniform * 2 - 1
    angle = torch.deg2rad(signed[:, 0] * config["rotate"])
    scale = 1 + signed[:, 1] * config["zoom"]
    pixels = torch.round(signed[:, 2:4] * (config["shift"] + 0.5 - 1e-6))  # whole: nothing blurs
    mirror = torch.where(uniform[:, 4] < 0.5, -1.0, 1.0) if config["flip"] else torch.ones(count)
    side = torch.sqrt(config["crop"] + (1 - config["crop"]) * uniform[:, 5])  # of the kept square
    centres = (uniform[:, 6:8] * torch.tensor([height + 1.0, width + 1.0])).floor().long()
    moved = pixels * torch.tensor([2 / width, 2 / height]) if config["shift"] else pixels * 0
    if config["crop"] < 1:  # the kept square lies anywhere inside the picture
        moved = moved + (1 - side)[:, None] * (uniform[:, 6:8] * 2 - 1)
    warps = affine_maps(angle, scale / side, moved, mirror, height / width)
    unused = not (config["rotate"] or config["zoom"] or config["shift"] or config["flip"])
    return (
        None if unused and config["crop"] == 1 else warps,
        centres if config["cutout"] else None,
    )


def affine_maps(angle, scale, moved, mirror, aspect=1.0):
    """Maps (n, 2, 3) from output to input coordinates: turn by `angle` (radians), enlarge by
    `scale`, mirror where -1, then look `moved` (n, 2) away from the centre."""
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    rows = [cos * mirror, -sin * aspect, moved[:, 0], sin / aspect * mirror, cos, moved[:, 1]]
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def warp(images, maps):
    """Sample images (n, C, H, W) at affine maps (n, 2, 3), bilinear, edges mirrored: float32."""
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(
        images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


def cut_out(images, centres, side):
    """Set a square of `side` pixels around each centre (n, 2) to 0, the mean, in place.

    DeVries and Taylor 2017: the square may reach over the edge.
    """
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) - centres[:, :1] + side // 2
    columns = torch.arange(width, device=images.device) - centres[:, 1:] + side // 2
    hidden = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[
        :, None
    ]
    images.masked_fill_(hidden[:, None], 0.0)
