"""Random deformations of training images: one affine warp, one elastic field, and cutout.

Axis letters: N images, C channels, H x W pixels, k x k the knots of a field.
"""

import torch
from torch.nn import functional as F

KNOTS = 5  # a side, of an elastic field: on MNIST one every 7 pixels


def draw_augmentation(count, size, config, generator, mirrored=None):
    """Random inverse affine maps (count, 2, 3), elastic fields (count, 2, k, k) and cutout centres
    (count, 2), or None where unused.

    `mirrored` (count,) says which images are, none by default. Maps and fields are in the units of
    `torch.nn.functional.affine_grid`: the picture spans [-1, 1].
    """
    height, width = size
    drawn = (config["crop_size"] or height, config["crop_size"] or width)
    # columns: 0 rotate, 1 zoom, 2 and 3 shift, 5 the side of a crop, 6 and 7 its place; 4 is not
    # read. All are drawn whatever the config uses, so that no key changes what another draws.
    uniform = torch.rand(count, 8, generator=generator)
    signed = uniform * 2 - 1
    angle = torch.deg2rad(signed[:, 0] * config["rotate"])
    scale = 1 + signed[:, 1] * config["zoom"]
    pixels = torch.round(signed[:, 2:4] * (config["shift"] + 0.5 - 1e-6))  # whole: nothing blurs
    mirror = torch.ones(count) if mirrored is None else torch.where(mirrored, -1.0, 1.0)
    side = torch.sqrt(config["crop"] + (1 - config["crop"]) * uniform[:, 5])  # of the kept square
    moved = pixels * torch.tensor([2 / width, 2 / height])
    if config["crop"] < 1:  # the kept square lies anywhere inside the picture
        moved = moved + (1 - side)[:, None] * (uniform[:, 6:8] * 2 - 1)
    warps = affine_maps(angle, scale / side, moved, mirror, height / width)
    fields = None
    if config["elastic"]:
        knots = torch.randn(count, 2, KNOTS, KNOTS, generator=generator)
        fields = knots * config["elastic"] * torch.tensor([2 / width, 2 / height]).view(2, 1, 1)
    centres = None
    if config["cutout"]:  # drawn last, so that nothing else is another with it
        places = torch.rand(count, 2, generator=generator)
        # an even square lies between two pixels, so that there is a place more for its middle
        centres = (places * (torch.tensor(drawn) + 1.0 - config["cutout"] % 2)).floor().long()
    unused = config["crop"] == 1 and mirrored is None
    unused = unused and not any(config[key] for key in ("rotate", "zoom", "shift", "elastic"))
    return None if unused else warps, fields, centres


def affine_maps(angle, scale, moved, mirror, aspect=1.0):
    """Maps (n, 2, 3) from output to input coordinates: turn by `angle` (radians), enlarge by
    `scale`, mirror where -1, then look `moved` (n, 2) away from the centre."""
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    rows = [cos * mirror, -sin * aspect, moved[:, 0], sin / aspect * mirror, cos, moved[:, 1]]
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def warp(images, maps, fields=None, size=0):
    """Sample images (n, C, H, W) at affine maps (n, 2, 3), bilinear: in the type of the maps,
    `size` pixels a side where that is given.

    `fields` (n, 2, k, k) are what the parts of a picture are moved by, x and y, smoothly between
    the knots (elastic deformation: Simard et al. 2003). Beyond its edges a coloured picture is
    mirrored; a grey one goes on as its edge is, since a mirror would set pieces of a second digit
    beside the first.
    """
    sides = (size, size) if size else images.shape[-2:]
    grid = sampling_grid(maps, fields, sides).permute(0, 2, 3, 1)
    beyond = "reflection" if images.shape[1] > 1 else "border"
    return F.grid_sample(
        images.to(maps.dtype), grid, mode="bilinear", padding_mode=beyond, align_corners=False
    )


def sampling_grid(maps, fields, sides):
    """Where each of H x W pixels looks (n, 2, H, W), x and y: maps and fields in one product.

    Every coordinate is a sum over curves along the rows times curves along the columns, those of
    the fields and, for the maps, the position itself and 1. F.affine_grid, with the fields drawn
    by F.interpolate, takes several times as long as the sampling.
    """
    knots = 0 if fields is None else fields.shape[-1]
    both = (curves(knots, side).to(maps.dtype) for side in sides)  # not all devices have float64
    rows, columns = (matrix.to(maps.device) for matrix in both)
    weights = maps.new_zeros(len(maps), 2, knots + 2, knots + 2)
    if knots:
        weights[:, :, :knots, :knots] = fields
    weights[:, :, -1, -2] = maps[:, :, 0]  # x
    weights[:, :, -2, -1] = maps[:, :, 1]  # y
    weights[:, :, -1, -1] = maps[:, :, 2]
    return rows @ weights @ columns.T


def curves(knots, side):
    """(side, knots + 2): the bicubic curve through 1 at each knot and 0 at the others, then the
    position of each of `side` pixels in [-1, 1], then 1."""
    position = (2 * torch.arange(side, dtype=torch.float64)[:, None] + 1) / side - 1
    linear = torch.cat([position, torch.ones_like(position)], dim=1)
    if not knots:
        return linear
    basis = torch.eye(knots, dtype=torch.float64)[None, None]
    bicubic = F.interpolate(basis, (knots, side), mode="bicubic", align_corners=True)
    return torch.cat([bicubic[0, 0].T, linear], dim=1)


def cut_out(images, centres, side):
    """Set a square of `side` pixels around each centre (n, 2), row and column, of the images
    (n, C, H, W) to 0, the mean, in place.

    DeVries and Taylor 2017: the square may reach over the edge.
    """
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) - centres[:, :1] + side // 2
    columns = torch.arange(width, device=images.device) - centres[:, 1:] + side // 2
    hidden = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[
        :, None
    ]
    images.masked_fill_(hidden[:, None], 0.0)
