"""Data: the split, the batches, the warp against torchvision, and the cache against PIL."""

import hashlib

import numpy as np
import pytest
import torch
from conftest import DATA
from PIL import Image
from torch.nn import functional as F

import exercise_1_1
import exercise_1_3
import exercise_2_3
import rules
from augmentation import affine_maps, cut_out, draw_augmentation, sampling_grid, warp
from cache import read_image
from config import defaults
from dataset import BLOCK_BYTES, ImageDataset, batches, deskew, load_datasets, shrink
from images import list_images, read_idx


@pytest.fixture
def numbered():
    """37 images, each of one colour, its number."""
    labels = torch.arange(37)
    pixels = labels.to(torch.uint8)[:, None, None, None].repeat(1, 3, 8, 8)
    return ImageDataset(pixels, labels, [str(n) for n in range(37)], [0.1] * 3, [0.3] * 3)


@pytest.fixture
def plain(digits_config):
    return digits_config | {"batch_size": 8}


def test_the_split_is_disjoint_complete_and_fixed_by_the_seed(digits_config):
    sets = [load_datasets(digits_config | {"seed": seed}) for seed in (0, 0, 1)]
    (train, val, test), (again, _, _), (other, _, _) = sets
    assert (len(train), len(val), len(test)) == (1294, 144, 359)
    assert torch.equal(train.images, again.images)
    assert not torch.equal(train.images, other.images)
    both = torch.cat([train.images, val.images]).flatten(1)
    other_both = torch.cat([s.images for s in sets[2][:2]]).flatten(1)
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, other_both.tolist()))


@pytest.mark.parametrize("entry", [((3, 8, 8), 10), ((1, 8, 9), 10), ((1, 8, 8), 2)])
def test_a_data_set_that_is_not_as_its_line_says_is_refused(entry, monkeypatch, digits_config):
    monkeypatch.setitem(rules.DATASETS, "digits", entry)
    shape = " x ".join(map(str, entry[0]))
    said = rf"digits: .* 1 x 8 x 8, 10 classes, .*rules\.py .* {shape}, {entry[1]} classes"
    with pytest.raises(ValueError, match=said):
        load_datasets(digits_config)


def test_a_data_set_that_is_shrunk_is_as_its_line_says(monkeypatch, digits_config):
    monkeypatch.setitem(rules.DATASETS, "digits", ((3, 8, 8), 10))
    with pytest.raises(ValueError, match=r"are 1 x 4 x 4, .* would be 3 x 4 x 4"):
        load_datasets(digits_config | {"image_size": 4})
    monkeypatch.undo()
    assert load_datasets(digits_config | {"image_size": 4})[0].images.shape[1:] == (1, 4, 4)


def test_mean_and_std_are_those_of_all_training_images(digits_config):
    train, val, test = load_datasets(digits_config)
    pixels = torch.cat([train.images, val.images]).double() / 255
    assert train.mean[0] == pytest.approx(pixels.mean().item())
    assert test.std[0] == pytest.approx(pixels.std(correction=0).item())


def slants(images):
    """The covariance of x and y over the variance of y, where pixels weigh by their brightness."""
    y, x = np.mgrid[: images.shape[2], : images.shape[3]]
    found = []
    for weights in images[:, 0].double().numpy():
        (yy, yx), _ = np.cov(y.ravel(), x.ravel(), aweights=weights.ravel(), ddof=0)
        found.append(yx / yy)
    return np.array(found)


@pytest.mark.parametrize("size", [(40, 40), (48, 32)])
def test_an_image_sheared_about_any_point_is_set_upright_again(size):
    y, x = np.mgrid[: size[0], : size[1]]
    bars = []
    for slant in (-0.7, -0.2, 0.0, 0.5):
        along, across = y - 19.5, x - 17.0 - slant * (y - 19.5)
        bars.append(255 * np.exp(-((along / 8) ** 4) - (across / 3) ** 2))
    bars = torch.from_numpy(np.stack(bars)[:, None].round().astype(np.uint8))
    assert slants(bars) == pytest.approx([-0.7, -0.2, 0.0, 0.5], abs=0.02)
    upright = deskew(bars)
    assert slants(upright) == pytest.approx(np.zeros(4), abs=0.02)
    assert torch.equal(upright[2], bars[2])
    columns = torch.arange(float(size[1]))
    middles = (upright.double().sum((1, 2)) * columns).sum(1) / upright.double().sum((1, 2, 3))
    assert middles == pytest.approx([17.0] * 4, abs=0.02)


def test_what_has_no_slant_to_take_out_is_left_as_it_is():
    lying, black = torch.zeros(2, 1, 9, 9, dtype=torch.uint8)
    lying[:, 4, 2:7] = 255
    both = torch.stack([lying, black])
    assert torch.equal(deskew(both), both)


def test_a_line_that_lies_is_not_set_up():
    line = torch.zeros(1, 1, 20, 20, dtype=torch.uint8)
    line[..., 9, 3:10] = line[..., 10, 10:17] = 255
    assert deskew(line)[0, 0].amax(0).count_nonzero() >= 12


def test_coloured_images_are_not_deskewed_by_their_red():
    with pytest.raises(ValueError, match="deskew is for grey images, these have 3 channels"):
        deskew(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_deskewed_digits_stand_upright_in_all_three_sets(digits_config):
    for before, after in zip(
        load_datasets(digits_config), load_datasets(digits_config | {"deskew": True}), strict=True
    ):
        assert torch.equal(after.images, deskew(before.images))
        assert abs(slants(after.images)).mean() < 0.3 * abs(slants(before.images)).mean()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"images": torch.rand(5, 3, 8, 8)}, "images must be uint8"),
        ({"images": torch.zeros(5, 8, 8, dtype=torch.uint8)}, r"of \(N, C, H, W\)"),
        ({"images": torch.zeros(5, dtype=torch.uint8)}, r"of \(N, C, H, W\)"),
        ({"labels": torch.zeros(5, dtype=torch.int32)}, "as many labels, int64, got torch.int32"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, "5 images need as many labels"),
        ({"mean": [0.5]}, "3 channels need as many means and deviations, got 1 and 3"),
    ],
)
def test_images_that_are_not_what_a_data_set_holds_are_refused(changes, told):
    pixels = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
    parts = {"images": pixels, "labels": torch.zeros(5, dtype=torch.int64), "classes": ["a", "b"]}
    parts |= {"mean": [0.5] * 3, "std": [0.2] * 3}
    assert len(ImageDataset(**parts)) == 5
    with pytest.raises(ValueError, match=told):
        ImageDataset(**parts | changes)


def test_an_epoch_deals_out_every_image_once_ragged_batch_included(numbered, plain):
    dealt = list(batches(numbered, plain, epoch=1))
    assert [len(labels) for _, labels in dealt] == [8, 8, 8, 8, 5]
    order = torch.cat([labels for _, labels in dealt])
    assert sorted(order.tolist()) == list(range(37))
    for pixels, labels in dealt:
        expected = numbered.normalise(numbered.images[labels])
        torch.testing.assert_close(pixels, expected)


def test_every_image_of_a_batch_lacks_one_square_which_is_the_mean(numbered, plain):
    for pixels, labels in batches(numbered, plain | {"cutout": 3}, epoch=1):
        hidden = pixels != numbered.normalise(numbered.images[labels])
        assert not pixels[hidden].any()
        counts = hidden[:, 0].sum((1, 2))
        assert counts.min() > 0 and counts.max() == 9


def test_order_and_augmentation_depend_on_seed_and_epoch_alone(random_images, plain, monkeypatch):
    config = plain | {"shift": 2, "rotate": 20.0, "flip": True, "cutout": 3, "crop": 0.5}
    config |= {"elastic": 1.0}

    def epoch(number, **changes):
        torch.rand(1)  # a global generator that has moved on must not matter
        return torch.cat([pixels for pixels, _ in batches(random_images, config | changes, number)])

    first = epoch(1)
    assert torch.equal(first, epoch(1))
    torch.testing.assert_close(first, epoch(1, batch_size=5))
    assert not torch.equal(first, epoch(2))
    assert not torch.equal(first, epoch(1, seed=1))
    for key in ("shift", "rotate", "flip", "cutout", "crop"):
        assert not torch.equal(first, epoch(1, **{key: defaults[key]})), key
    unbent = epoch(1, elastic=1e-9)  # drawn alike: 0 would draw other cutouts
    assert not torch.allclose(first, unbent, atol=0.1)
    monkeypatch.setitem(BLOCK_BYTES, "cpu", 1)  # a batch at once, not all
    torch.testing.assert_close(first, epoch(1))


def test_two_epochs_show_both_sides_of_every_image_and_the_next_two_again(plain):
    images = torch.rand(50, 1, 6, 6, generator=torch.Generator().manual_seed(0)).mul(255).byte()
    dataset = ImageDataset(images, torch.arange(50), list("abcd"), [0.5], [0.3])

    def mirrored(epoch, seed=0):
        dealt = [[], []]
        for pixels, labels in batches(dataset, plain | {"flip": True, "seed": seed}, epoch):
            whole = dataset.normalise(images[labels])
            for side, expected in enumerate((whole, whole.flip(3))):
                same = (pixels - expected).abs().amax(dim=(1, 2, 3)) < 1e-3
                dealt[side] += labels[same].tolist()
        assert sorted(dealt[0] + dealt[1]) == list(range(50))
        return set(dealt[1])

    first, second, third = (mirrored(epoch) for epoch in (1, 2, 3))
    assert 10 < len(first) < 40
    assert second == set(range(50)) - first
    assert third == first != mirrored(1, seed=1)


def smooth_images(size=(36, 36)):
    """Noise without high frequencies, so that two bilinear samplers agree closely."""
    cells = [side // 4 for side in size]
    noise = torch.rand(4, 3, *cells, generator=torch.Generator().manual_seed(0)) * 255
    return F.interpolate(noise, size, mode="bicubic").round().clamp(0, 255)


@pytest.mark.parametrize(("key", "value"), [("rotate", 20.0), ("zoom", 0.2), ("shift", 3)])
def test_an_augmentation_alone_goes_as_far_as_the_config_says(key, value):
    config, generator = defaults | {key: value}, torch.Generator().manual_seed(0)
    warps, fields, centres = draw_augmentation(2000, (36, 36), config, generator)
    assert fields is None and centres is None
    found = {
        "rotate": torch.rad2deg(torch.atan2(warps[:, 1, 0], warps[:, 0, 0])),
        "zoom": torch.linalg.det(warps[:, :, :2]) ** -0.5 - 1,
        "shift": warps[:, :, 2] * 36 / 2,
    }
    for name, values in found.items():
        furthest = value if name == key else 0
        reached = values.min().item(), values.max().item()
        assert reached == pytest.approx((-furthest, furthest), rel=0.01, abs=1e-4)
    torch.testing.assert_close(found["shift"], found["shift"].round())
    if key == "shift":  # all of -3 to 3 equally often
        often = (found["shift"][:, 0].round().long() + 3).bincount() / 2000
        torch.testing.assert_close(often, torch.full((7,), 1 / 7), atol=0.03, rtol=0)


def test_what_is_drawn_for_one_augmentation_says_nothing_of_another():
    config = defaults | {"rotate": 20.0, "zoom": 0.2, "crop": 0.25}
    warps, *_ = draw_augmentation(4000, (36, 36), config, torch.Generator().manual_seed(0))
    angle = torch.atan2(warps[:, 1, 0], warps[:, 0, 0])
    scale = torch.linalg.det(warps[:, :, :2])
    alone, *_ = draw_augmentation(
        4000, (36, 36), config | {"zoom": 0.0}, torch.Generator().manual_seed(0)
    )
    area = torch.linalg.det(alone[:, :, :2])  # of the crop; the rest is the zoom
    spare = (1 - area.sqrt())[:, None]
    x, y = (alone[:, :, 2] / spare).T  # the crop's place, -1 to 1
    drawn = torch.stack([angle, scale / area, area, x, y])
    assert (torch.corrcoef(drawn) - torch.eye(5)).abs().max() < 0.06


def test_of_a_wide_picture_a_shift_is_of_whole_pixels_both_ways():
    config = defaults | {"shift": 3}
    warps, *_ = draw_augmentation(50, (24, 48), config, torch.Generator().manual_seed(0))
    pixels = warps[:, :, 2] * torch.tensor([48, 24]) / 2
    torch.testing.assert_close(pixels, pixels.round())
    assert pixels.abs().amax(0).tolist() == pytest.approx([3.0, 3.0])


def test_crops_are_of_every_share_of_the_area_and_inside_the_picture():
    config, generator = defaults | {"crop": 0.25}, torch.Generator().manual_seed(0)
    warps, *_ = draw_augmentation(2000, (36, 36), config, generator)
    areas = torch.linalg.det(warps[:, :, :2])
    assert areas.mean() == pytest.approx(0.625, abs=0.01)
    assert (areas.min(), areas.max()) == pytest.approx((0.25, 1.0), abs=0.01)
    edges = warps[:, :, 2].abs() + areas.sqrt()[:, None]
    assert edges.max() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("side", [3, 4])
def test_cutout_hides_every_row_and_its_opposite_alike(side):
    config = defaults | {"crop": 0.5, "crop_size": 18, "cutout": side}
    *_, centres = draw_augmentation(4000, (36, 36), config, torch.Generator().manual_seed(0))
    rows = [int((centres == row).sum()) for row in range(19)]
    expected = len(centres) * 2 / (19 - side % 2)  # those of an even square lie between two pixels
    assert rows[: 19 - side % 2] == pytest.approx([expected] * (19 - side % 2), rel=0.25)
    images = torch.ones(len(centres), 1, 18, 18)
    cut_out(images, centres, side)
    hidden = (images == 0).double().mean((0, 1))
    for edges in ((hidden[0], hidden[-1]), (hidden[:, 0], hidden[:, -1])):
        assert edges[0].sum().item() == pytest.approx(edges[1].sum().item(), rel=0.15)
    assert not (images == 0).all((2, 3)).any()


def test_cutout_neither_follows_the_crop_nor_changes_it():
    config = defaults | {"crop": 0.3, "elastic": 1.0}

    def draw(cutout):
        config["cutout"] = cutout
        return draw_augmentation(2000, (36, 36), config, torch.Generator().manual_seed(0))

    warps, fields, centres = draw(3)
    assert all(map(torch.equal, (warps, fields), draw(0)[:2]))
    both = torch.cat([warps[:, :, 2].T, centres.T.double()])
    assert torch.corrcoef(both)[:2, 2:].abs().max() < 0.1


def test_a_crop_drawn_half_as_large_shows_the_same_part(plain):
    """One of its pixels lies between four of the large one: on a ramp it is their mean."""
    ramp = torch.arange(36, dtype=torch.uint8).mul(7).expand(36, 36)
    pixels = torch.stack([ramp, ramp.T, ramp.flip(1)]).expand(4, -1, -1, -1)
    dataset = ImageDataset(pixels, torch.arange(4), list("abcd"), [0.5] * 3, [0.3] * 3)
    config = plain | {"flip": True, "crop": 0.5}
    (large, labels), (small, same_labels) = (
        next(batches(dataset, config | {"crop_size": size}, epoch=3)) for size in (0, 18)
    )
    assert torch.equal(labels, same_labels)
    assert small.shape == (4, 3, 18, 18)
    torch.testing.assert_close(small, F.avg_pool2d(large, 2), atol=0.01, rtol=0)


@pytest.mark.parametrize("size", [(36, 36), (36, 60)])
@pytest.mark.parametrize(
    ("degrees", "scale", "shift"),
    [(15.0, 1.0, (0, 0)), (0.0, 1.25, (0, 0)), (0.0, 1.0, (3, -2)), (-20.0, 0.9, (0, 0))],
)
def test_the_warp_is_the_affine_transform_of_torchvision(degrees, scale, shift, size):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as tv

    pixels = smooth_images(size)
    expected = tv.affine(
        pixels,
        angle=degrees,
        translate=[-shift[0], -shift[1]],  # they move the picture, we move the view
        scale=scale,
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    height, width = size
    moved = torch.tensor([shift]) * 2 / torch.tensor([width, height])
    angle, one = -torch.deg2rad(torch.tensor([degrees])), torch.ones(1)
    maps = affine_maps(angle, torch.tensor([scale]), moved, one, height / width).expand(4, 2, 3)
    inner = (..., slice(9, -9), slice(9, -9))  # what enters at the edges differs: they fill with 0
    torch.testing.assert_close(warp(pixels, maps)[inner], expected[inner], atol=0.01, rtol=0)


IDENTITY = torch.eye(2, 3).expand(4, 2, 3)


def test_an_elastic_field_is_the_displacement_of_torchvision():
    from torchvision.transforms.v2 import functional as tv

    pixels, fields = smooth_images(), torch.randn(4, 2, 5, 5) * 0.05
    moved = F.interpolate(fields, (36, 36), mode="bicubic", align_corners=True)
    expected = [tv.elastic_transform(image[None], field.permute(1, 2, 0)[None])
                for image, field in zip(pixels, moved, strict=True)]  # fmt: skip
    inner = (..., slice(9, -9), slice(9, -9))
    ours, expected = warp(pixels, IDENTITY, fields)[inner], torch.cat(expected)[inner]
    torch.testing.assert_close(ours, expected, atol=0.01, rtol=0)
    assert not torch.allclose(ours, pixels[inner], atol=1)


@pytest.mark.parametrize("knots", [0, 5])
def test_a_grid_is_that_of_affine_grid_with_the_fields_as_interpolated(knots):
    maps, fields = torch.randn(3, 2, 3), torch.randn(3, 2, knots, knots) if knots else None
    expected = F.affine_grid(maps, [3, 1, 12, 20], align_corners=False).permute(0, 3, 1, 2)
    if knots:
        expected = expected + F.interpolate(fields, (12, 20), mode="bicubic", align_corners=True)
    torch.testing.assert_close(sampling_grid(maps, fields, (12, 20)), expected)


def test_the_knots_of_a_field_move_by_as_many_pixels_as_the_config_says():
    config = defaults | {"elastic": 1.5}
    warps, fields, _ = draw_augmentation(2000, (28, 20), config, torch.Generator().manual_seed(0))
    assert torch.equal(warps, torch.eye(2, 3).expand(2000, 2, 3))
    x, y = fields.unbind(1)
    assert (x * 20 / 2).std() == pytest.approx(1.5, rel=0.02)
    assert (y * 28 / 2).std() == pytest.approx(1.5, rel=0.02)
    moved = sampling_grid(warps, fields, (28, 20)) - sampling_grid(warps, None, (28, 20))
    corners = moved[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    at_knots = fields[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners, at_knots, atol=1e-5, rtol=0)


def test_upright_images_are_the_same_pixels_on_every_processor():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (500, 1, 28, 28), dtype=torch.uint8, generator=generator)
    pixels = hashlib.sha256(deskew(noise).numpy().tobytes()).hexdigest()
    assert pixels[:16] == "7c9903328b140fe4"  # of AVX2 and of plain C++


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grey_picture_goes_on_beyond_its_edge_and_a_coloured_one_is_mirrored(channels):
    columns = torch.arange(8.0).expand(1, channels, 8, 8)
    maps = affine_maps(torch.zeros(1), torch.ones(1), torch.tensor([[3 * 2 / 8, 0]]), torch.ones(1))
    beyond = [7.0, 7.0, 7.0] if channels == 1 else [7.0, 6.0, 5.0]
    expected = torch.tensor([3.0, 4.0, 5.0, 6.0, 7.0, *beyond])
    torch.testing.assert_close(warp(columns, maps)[0, 0, 0], expected, atol=1e-4, rtol=0)


def test_a_mirrored_map_is_a_flip_and_a_whole_pixel_shift_is_a_slice():
    pixels = smooth_images()
    one, zero = torch.ones(4), torch.zeros(4)
    flipped = warp(pixels, affine_maps(zero, one, torch.zeros(4, 2), -one))
    torch.testing.assert_close(flipped, pixels.flip(-1), atol=1e-2, rtol=0)
    moved = torch.tensor([[3.0, 2.0]]).repeat(4, 1) * 2 / 36
    shifted = warp(pixels, affine_maps(zero, one, moved, one))
    torch.testing.assert_close(shifted[..., :-2, :-3], pixels[..., 2:, 3:], atol=1e-2, rtol=0)


def test_cutout_hides_one_square_and_nothing_else():
    pixels = torch.ones(2, 3, 8, 8)
    cut_out(pixels, torch.tensor([[4, 4], [0, 7]]), side=4)
    expected = torch.ones(2, 3, 8, 8)
    expected[0, :, 2:6, 2:6] = 0
    expected[1, :, :2, 5:] = 0  # reaches over the corner
    assert torch.equal(pixels, expected)


def test_images_are_made_smaller_as_pil_does_it():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 1, 20, 20), dtype=torch.uint8, generator=generator)
    for large, small in zip(images[:, 0], shrink(images, 7)[:, 0], strict=True):
        expected = Image.fromarray(large.numpy()).resize((7, 7), Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(expected, int) - small.numpy()).max() <= 1


def test_every_kind_of_picture_is_found_and_becomes_upright_rgb(tmp_path):
    red = Image.new("RGB", (10, 6), (200, 30, 30))
    red.paste((30, 30, 200), (0, 0, 5, 6))  # blue on the left
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    saved = {
        "rgb.png": (red, {}),
        "palette.png": (red.convert("P"), {}),
        "alpha.png": (red.convert("RGBA"), {}),
        "cmyk.jpg": (red.convert("CMYK"), {"quality": 100}),
        "lossless.webp": (red, {"lossless": True}),
        "rotated.jpeg": (red.rotate(180), {"exif": exif, "quality": 100}),
        "plain.bmp": (red, {}),
        "still.gif": (red, {}),
        "short.tif": (red, {}),
        "long.tiff": (red, {}),
    }
    (tmp_path / "cat").mkdir()
    config = {"image_size": 10, "resize": "squash"}
    for name, (image, options) in saved.items():
        image.save(tmp_path / "cat" / name, **options)
        array = read_image(tmp_path / "cat" / name, config)
        assert array.shape == (3, 10, 10)
        assert array[2, 5, 1] > 120 > 90 > array[0, 5, 1], name
        assert array[0, 5, 8] > 120 > 90 > array[2, 5, 8], name
    assert {path.name for path in list_images(tmp_path)[0]} == saved.keys()
    red.convert("L").save(tmp_path / "grey.png")
    grey = read_image(tmp_path / "grey.png", config)
    assert np.array_equal(grey[0], grey[1])
    Image.new("RGBA", (10, 6), (200, 200, 200, 0)).save(tmp_path / "clear.png")
    assert not read_image(tmp_path / "clear.png", config).any()  # on black


def test_an_idx_file_reads_back_and_a_damaged_one_is_refused(tmp_path):
    path = tmp_path / "idx"
    path.write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + bytes(range(6)))
    assert read_idx(path, 2).tolist() == [[0, 1, 2], [3, 4, 5]]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged"):
        read_idx(path, 2)


@pytest.mark.real_data
def test_mnist_is_mnist():
    train, val, test = load_datasets(exercise_1_1.config | {"data_dir": str(DATA)})
    assert (len(train), len(val), len(test)) == (54_000, 6_000, 10_000)
    assert train.mean == pytest.approx([0.1307], abs=1e-4)
    assert train.std == pytest.approx([0.3081], abs=1e-4)
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


@pytest.mark.real_data
def test_cifar10_has_its_per_pixel_deviation():
    train, _, test = load_datasets(exercise_1_3.config | {"data_dir": str(DATA)})
    assert len(test) == 10_000
    assert train.std == pytest.approx([0.2470, 0.2435, 0.2616], abs=1e-4)
    assert test.classes[0] == "airplane"


@pytest.mark.real_data
def test_the_six_pictures_of_the_reference_have_their_indices():
    _, _, test = load_datasets(exercise_2_3.config | {"data_dir": str(DATA), "image_size": 32})
    names = {i: test.classes[test.labels[i]] for i in (1936, 1526, 1527, 3535, 3536, 3537)}
    assert list(names.values()) == ["French horn"] + ["church"] * 2 + ["parachute"] * 3
    assert len(test) == 3_925
