"""Measures of trust on cases whose answer is known.

`Corner` decides by one corner of the picture and nothing else. `Painted` decides by the colour of
the background, which gives the class away; the object, a black square, means nothing to it.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

from boxes import box_mask
from cam import generate_class_activation_map
from config import complete_config, defaults
from dataset import LOADERS, ImageDataset, load_datasets
from models import CNN
from studies import edits, measures, objects, trust
from studies.evidence import colours, delete, focus, randomise
from studies.objects import (
    SIX,
    call_with_noise,
    describe_six,
    edit,
    empty_each,
    explain_3536,
    locate,
    move_randomly,
)
from studies.subject import Boxed, Subject
from studies.trust import trained_on
from upsampling import cell_centres, upsample

SIZE, CELLS = 64, 8
BOX = torch.tensor([[0.375, 0.375, 0.625, 0.625]])
PAINT = torch.tensor([[220.0, 20, 20], [20, 220, 20], [20, 20, 220]])


class Head(nn.Module):
    """Features as given, average pooling, a Linear without bias."""

    def __init__(self, weight):
        super().__init__()
        self.classifier = nn.Linear(weight.shape[1], len(weight))
        self.classifier.weight.data, self.classifier.bias.data = weight, torch.zeros(len(weight))

    def forward(self, images):
        return self.classifier(self.features(images).mean((2, 3)))


class Corner(Head):
    """Class 1 where the upper left cell is bright, class 0 where it is dark."""

    def __init__(self):
        super().__init__(torch.tensor([[-400.0], [400.0]]))

    def features(self, images):
        seen = F.avg_pool2d(images.mean(1, keepdim=True), SIZE // CELLS)
        mask = torch.zeros_like(seen)
        mask[:, :, 0, 0] = 1
        return seen * mask


class Painted(Head):
    """Class 0, 1 or 2 by the red, green or blue that covers most of the picture."""

    def __init__(self):
        super().__init__(40 * torch.eye(3))

    def features(self, images):
        return F.avg_pool2d(images, SIZE // CELLS).relu()


class PaintedWithin(Painted):
    """The same, of what the box in the middle shows."""

    def features(self, images):
        return super().features(images * box_mask(BOX, SIZE, SIZE))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def painted_dataset(count=30):
    """Classes by the background's colour, a black square in the middle."""
    labels = torch.arange(count) % 3
    pixels = PAINT[labels][:, :, None, None].expand(-1, -1, SIZE, SIZE).clone()
    pixels += 5 * torch.randn(pixels.shape, generator=generator())
    mask = box_mask(BOX, SIZE, SIZE)
    pixels[:, :, mask] = 0
    images = pixels.clamp(0, 255).to(torch.uint8)
    return ImageDataset(images, labels, ["red", "green", "blue"], [0.0] * 3, [1.0] * 3)


def painted_boxes(dataset):
    count = len(dataset)
    masks = box_mask(BOX, SIZE, SIZE).expand(count, -1, -1)
    pixels = dataset.images.float()
    return Boxed(list(range(count)), pixels, masks, dataset.labels, [BOX] * count)


def test_evidence_painted_into_the_background_is_found_outside_the_object():
    dataset = painted_dataset()
    found = locate(Subject(Painted(), dataset), painted_boxes(dataset))
    assert found["map"]["outside"]["all"]["mean"] > 0.98  # smooth maps reach into the box
    assert found["map"]["energy_over_area"]["all"]["mean"] < 0.3
    assert found["map"]["pointing"]["all"]["mean"] == 0
    assert found["map"]["box_accuracy"]["all"]["mean"] == 0
    for name in ("pointing", "box_accuracy"):
        assert found["centre"][name]["all"]["mean"] == 1  # the object is in the middle
    within = (math.erf(0.5 / 2**0.5) / math.erf(2 / 2**0.5)) ** 2  # half a deviation, of two
    assert found["centre"]["outside"]["all"]["mean"] == pytest.approx(1 - within, abs=0.01)
    assert found["box_area"]["green"]["mean"] == pytest.approx(1 / 16)


def test_what_the_network_has_wrong_is_explained_for_its_true_class_and_not_edited():
    dataset = painted_dataset()
    images = dataset.images.clone()
    images[::3, :, box_mask(BOX, SIZE, SIZE)] = PAINT[1].to(torch.uint8)[:, None]
    labels = torch.where(dataset.labels == 0, 1, dataset.labels)  # green objects on red
    dataset = replace(dataset, images=images, labels=labels)
    subject, boxed = Subject(Painted(), dataset), painted_boxes(dataset)
    found = locate(subject, boxed[[*range(0, 30, 3)]])
    assert found["map"]["pointing"]["green"]["mean"] == 1
    kept, *_ = edited(subject, boxed)
    assert {name: one["count"] for name, one in kept["object removed"].items()} == {
        "all": 20, "red": 0, "green": 10, "blue": 10,
    }  # fmt: skip


def test_a_swap_counts_objects_as_objects_and_the_many_backgrounds_that_were_drawn_as_such():
    dataset = painted_dataset(36)
    few = [k for k in range(36) if k % 3 < 2 or k < 6]  # 12 red, 12 green, 2 blue
    *_, swapped = edited(Subject(Painted(), dataset), painted_boxes(dataset)[few])
    for found in (swapped["boxes"], swapped["cut out"]):
        assert [found["as_object"][name]["count"] for name in dataset.classes] == [12, 12, 2]
        assert 5 < found["as_background"]["red"]["count"] <= 12  # 14 objects on them
        assert found["as_background"]["blue"]["count"] == 2  # 24 on these
        assert found["as_neither"]["red"]["count"] <= 4  # 14: green on blue, blue on green


def edited(subject, boxed):
    noisy = call_with_noise(subject, boxed.pixels, boxed.masks, generator())
    return edit(subject, boxed, noisy, generator())


def test_who_sees_the_background_alone_keeps_the_answer_without_object_and_follows_a_swap(
    monkeypatch,
):
    dataset, move, steps = painted_dataset(), edits.move, []
    monkeypatch.setattr(edits, "move", lambda *given: steps.append(given[3:]) or move(*given))
    kept, taken, swapped = edited(Subject(Painted(), dataset), painted_boxes(dataset))
    assert len(set(steps)) > 20 and max(max(step) for step in steps) <= SIZE // 4
    removed = ("object removed", "object removed, noise")
    beside = ("as large a part beside it removed", "noise in as large a part beside it")
    for change in (*removed, *beside, "box moved"):
        assert kept[change]["all"]["mean"] == 1
        assert kept[change]["all"]["count"] == 30
    assert [taken[change][name]["mean"] for change in removed for name in dataset.classes] == [
        0
    ] * 6
    assert all(one["count"] == 20 for change in removed for one in taken[change].values())
    assert kept["object removed"]["all"]["low"] < 1  # 30 images do not prove all
    for found in (swapped["boxes"], swapped["cut out"]):
        rows = [row for others in found["pairs"].values() for row in others.values()]
        assert len(rows) == 6
        assert all(row == {"object": 0, "background": 10, "count": 10} for row in rows)
        assert all(one["mean"] == 0 for one in found["as_object"].values())
        assert all(one["mean"] == 1 for one in found["as_background"].values())
        assert all(one["mean"] == 0 for one in found["as_neither"].values())


class FilledIsBlue(Painted):
    """Blue is also what has no black middle."""

    def features(self, images):
        filled = images[:, :, SIZE // 2, SIZE // 2].sum(1) > 0.3
        blue = torch.tensor([0.0, 0.0, 9.0]) * filled[:, None]
        return super().features(images) + blue[:, :, None, None]


def test_a_network_that_takes_what_was_filled_for_a_class_is_told_by_its_control():
    dataset = painted_dataset()
    kept, taken, swapped = edited(Subject(FilledIsBlue(), dataset), painted_boxes(dataset))
    assert kept["object removed"]["blue"]["mean"] == 1
    assert taken["object removed"]["blue"]["mean"] == 1  # as often: so it says nothing of blue
    assert taken["object removed"]["red"]["mean"] == 0
    assert swapped["cut out"]["as_neither"]["blue"]["mean"] == 0  # the black square is back


class CornerIsBlue(Painted):
    """Blue is also what is bright in the upper left corner."""

    def features(self, images):
        blue = torch.tensor([0.0, 0.0, 9.0]) * (images[:, :, 0, 0].amin(1) > 0.9)[:, None]
        return super().features(images) + blue[:, :, None, None]


def test_what_is_called_a_class_where_neither_object_nor_place_is_of_it_is_counted_apart():
    dataset = painted_dataset()
    images = dataset.images.clone()
    images[::6, :, 0, 0] = 255  # half of red: they are called blue, as places too
    dataset = replace(dataset, images=images, labels=dataset.labels.clone())
    boxed = painted_boxes(dataset)
    subject = Subject(Painted(), dataset)
    predict, asked = subject.predict, []

    def corners(pixels):  # right of the pictures as they are, then by the corner
        asked.append(len(pixels))
        return (
            predict(pixels) if len(asked) == 1 else Subject(CornerIsBlue(), dataset).predict(pixels)
        )

    noisy = call_with_noise(subject, boxed.pixels, boxed.masks, generator())
    subject.predict = corners
    *_, swapped = edit(subject, boxed, noisy, generator())
    for found in (swapped["boxes"], swapped["cut out"]):
        assert found["as_background"]["blue"]["mean"] == 1
        assert 0.1 < found["as_neither"]["blue"]["mean"] < 0.4  # green objects on half of the reds
        assert found["as_neither"]["green"]["mean"] == 0


def test_a_patch_beside_the_object_is_as_large_and_in_one_piece():
    for box in (BOX, torch.tensor([[0.0, 0.6, 0.3, 1.0]]), torch.tensor([[0.1, 0.1, 0.9, 0.2]])):
        mask = box_mask(box, SIZE, SIZE)
        for _ in range(20):
            beside = move_randomly(mask, generator())
            rows, columns = (beside.any(k).nonzero()[:, 0] for k in (1, 0))
            assert beside.sum() == mask.sum()
            assert (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1) == mask.sum()


def test_noise_in_the_place_of_an_object_has_the_colours_around_it_and_is_not_smooth():
    pixels = torch.zeros(2, 3, SIZE, SIZE)
    pixels[:, 0, :, ::2] = 200.0  # red and green stripes
    pixels[:, 1, :, 1::2] = 100.0
    mask = box_mask(BOX, SIZE, SIZE).expand(2, -1, -1).clone()
    pixels[0][:, mask[0]] = 255.0
    mask[1] = True  # nothing is left to draw from
    filled = edits.fill_with_pixels(pixels, mask, generator())
    inside = filled[0][:, mask[0]].T.unique(dim=0)
    assert inside.tolist() == [[0, 100, 0], [200, 0, 0]]
    assert torch.equal(filled[0][:, ~mask[0]], pixels[0][:, ~mask[0]])
    assert 0.4 < (filled[0, 0][mask[0]] > 0).float().mean() < 0.6
    assert filled[1].unique().tolist() == [0, 100, 200]


def test_a_box_that_covers_the_picture_is_not_taken_out_of_it():
    boxed = painted_boxes(painted_dataset())
    boxed.masks = boxed.masks.clone()
    boxed.masks[:6] = True
    kept, *_ = edited(Subject(Painted(), painted_dataset()), boxed)
    assert kept["object removed"]["all"]["count"] == kept["box alone"]["all"]["count"] == 24


def test_who_sees_the_object_alone_loses_the_answer_with_it_and_resists_a_swap():
    dataset = painted_dataset()
    mask = box_mask(BOX, SIZE, SIZE)
    images = dataset.images.clone()
    for number, label in enumerate(dataset.labels):  # now the object is painted, the rest is grey
        images[number] = 90
        images[number][:, mask] = PAINT[label].to(torch.uint8)[:, None]
    dataset = ImageDataset(images, dataset.labels, dataset.classes, [0.0] * 3, [1.0] * 3)
    kept, _, swapped = edited(Subject(Painted(), dataset), painted_boxes(dataset))
    assert kept["object removed"]["all"]["mean"] < 0.5  # what is left is grey: a guess
    assert kept["object removed, noise"]["all"]["mean"] < 0.5
    beside = ("as large a part beside it removed", "noise in as large a part beside it")
    for name in ("box alone", "object cut out alone", *beside):
        assert kept[name]["all"]["mean"] == 1
    for found in (swapped["boxes"], swapped["cut out"]):
        rows = [row for others in found["pairs"].values() for row in others.values()]
        assert all(row["object"] == row["count"] == 10 for row in rows)
        assert all(one["mean"] == 1 for one in found["as_object"].values())
        assert all(one["mean"] == 0 for one in found["as_neither"].values())


def test_a_sky_inside_the_box_is_pasted_with_it_and_not_with_what_is_cut_out():
    dataset = painted_dataset()
    inner = box_mask(torch.tensor([[0.45, 0.45, 0.55, 0.55]]), SIZE, SIZE)
    images = PAINT[dataset.labels][:, :, None, None].expand(-1, -1, SIZE, SIZE).clone()
    images[:, :, inner] = 0  # the object; around it, in the box, is background
    boxed = painted_boxes(replace(dataset, images=images.to(torch.uint8)))
    *_, swapped = edited(Subject(PaintedWithin(), dataset), boxed)
    share = inner.sum() / box_mask(BOX, SIZE, SIZE).sum()
    assert swapped["cut_share"]["all"]["mean"] == pytest.approx(float(share))
    assert all(one["mean"] == 1 for one in swapped["boxes"]["as_object"].values())
    assert all(one["mean"] == 0 for one in swapped["cut out"]["as_object"].values())


def test_what_has_no_room_beside_it_is_not_asked_what_lies_beside():
    dataset = painted_dataset()
    boxed = painted_boxes(dataset)
    large = torch.tensor([[0.0, 0.0, 1.0, 0.8]])
    boxed.masks = torch.stack([box_mask(large if k < 12 else BOX, SIZE, SIZE) for k in range(30)])
    kept, *_ = edited(Subject(Painted(), dataset), boxed)
    room = ("object removed, room beside it", "object removed, noise, room beside it")
    beside = ("as large a part beside it removed", "noise in as large a part beside it")
    for name in (*room, *beside):
        assert kept[name]["all"]["count"] == 18


def test_pictures_that_take_part_several_times_count_once_in_an_interval():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        hits = (generator.random(20) < 0.5).repeat(9)  # of a picture all nine or none
        found = measures.rate_with_interval(hits, np.arange(20).repeat(9))
        covered += found["low"] <= 0.5 <= found["high"]
        assert found["count"] == 20
    assert covered > 180
    alone = measures.rate_with_interval([True, True, False, False])
    assert measures.rate_with_interval([True, False] * 20, [1, 2, 3, 4] * 10) == alone


def test_where_backgrounds_decide_many_objects_on_them_make_no_interval_narrow():
    generator = np.random.default_rng(0)
    objects, grounds = np.arange(200) % 20, np.arange(200) // 20
    covered = {"one by one": 0, "both": 0}
    for _ in range(200):
        hits = (generator.random(10) < 0.5)[grounds]  # on a background all objects or none
        both = measures.crossed_rate(hits, objects, grounds, draws=400)
        for name, found in (("one by one", measures.rate_with_interval(hits)), ("both", both)):
            covered[name] += found["low"] <= 0.5 <= found["high"]
        assert both["count"] == 20
    assert covered["both"] > 170 and covered["one by one"] < 100


def test_parachutes_are_told_one_by_one_and_those_of_which_something_remains_apart(monkeypatch):
    monkeypatch.setattr(objects, "LEFT", {0: "land", 6: "land"})
    dataset = painted_dataset()
    boxed = painted_boxes(dataset)[[0, 3, 6, 9]]  # all are red
    boxed.masks, boxed.pixels = boxed.masks.clone(), boxed.pixels.clone()
    boxed.masks[2] = box_mask(torch.tensor([[0.1, 0.1, 0.9, 0.9]]), SIZE, SIZE)
    boxed.pixels[2][:, ~boxed.masks[2]] = PAINT[1][:, None]  # and this is green without its middle
    boxed.masks[3] = True
    subject = Subject(Painted(), dataset)
    noisy = call_with_noise(subject, boxed.pixels, boxed.masks, generator())
    found = empty_each(subject, boxed, noisy)
    columns = {key: [row[key] for row in found["pictures"]] for key in found["pictures"][0]}
    assert columns == {
        "index": [0, 3, 6, 9],
        "called": ["red"] * 4,
        "painted_over": ["red", "red", "green", columns["painted_over"][3]],
        "noise": [1.0, 1.0, 0.0, columns["noise"][3]],
        "left": ["land", "sky alone", "land", "sky alone"],
        "counts": [True, True, True, False],
    }
    counts = {name: one["count"] for name, one in found["noise"].items()}
    assert counts == {"a jumper or smoke": 0, "land": 2, "sky alone": 1}
    assert [found["noise"][name]["mean"] for name in ("land", "sky alone")] == [0.5, 1.0]


def test_a_network_that_looks_at_one_corner_is_caught_there():
    images = torch.rand(12, 3, SIZE, SIZE, generator=generator()) + 0.1
    maps, classes = measures.explain(Corner().eval(), images)
    assert (classes == 1).all()
    corner = box_mask(torch.tensor([[0, 0, 1 / CELLS, 1 / CELLS]]), CELLS, CELLS)[None]
    assert measures.pointing_hits(maps, corner.expand(12, -1, -1)).all()
    against = maps - 2 * maps.max()  # what speaks against a class is not hot
    assert measures.pointing_hits(against, corner.expand(12, -1, -1)).all()
    opposite = corner.flip(1, 2).expand(12, -1, -1)
    assert not measures.pointing_hits(maps, opposite).any()
    orders = measures.cell_orders(maps, generator())
    assert len(orders["random"].unique(dim=0)) == 12
    totals = maps.mean((1, 2))
    deleted = {k: measures.feature_deletion(maps, totals, order) for k, order in orders.items()}
    assert deleted["map"][:, 1:].abs().max() < 1e-4  # the first cell takes all
    before_corners = deleted["centre"][:, CELLS**2 - 4]
    torch.testing.assert_close(before_corners, totals)  # which come last
    pixels = {
        k: measures.pixel_curves(Corner(), images, classes, order, (CELLS, CELLS), steps=64)
        for k, order in orders.items()
    }
    deletion, insertion = pixels["map"]
    assert deletion[:, 1:].max() == pytest.approx(0.5)  # nothing left to decide by
    assert insertion[:, 1:].min() == pytest.approx(deletion[:, 0].min().item())
    assert pixels["random"][0].mean() > deletion.mean() + 0.1
    assert pixels["centre"][0][:, :60].min() > 0.9


@pytest.mark.parametrize("kind", ["map", "random", "centre"])
def test_deletion_in_the_features_is_what_the_network_computes_without_these_cells(kind):
    torch.manual_seed(0)
    model = CNN([4, 6], image_size=16, num_classes=3).eval()
    images = torch.randn(5, 3, 16, 16)
    activation = generate_class_activation_map(model, images)
    order = measures.cell_orders(activation.maps, generator())[kind]
    curve = measures.feature_deletion(activation.maps, activation.totals, order)
    features = model.features(images).detach().flatten(2)
    for step in range(order.shape[1] + 1):
        kept = features.clone()
        kept.scatter_(2, order[:, None, :step].expand(-1, features.shape[1], -1), 0)
        logits = model.classifier(kept.mean(2)).gather(1, activation.classes[:, None])[:, 0]
        torch.testing.assert_close(curve[:, step], logits, rtol=1e-4, atol=1e-5)


def test_mosaics_of_painted_pictures_have_their_evidence_on_the_right_tiles():
    dataset = painted_dataset()
    shares = focus(Subject(Painted(), dataset), dataset, generator(), count=6)
    found = [summary["mean"] for others in shares.values() for summary in others.values()]
    assert len(found) == 6
    assert min(found) > 0.8  # a painted colour has a little of the others
    tiles = torch.tensor([[True, False, False, True]])
    maps = torch.ones(1, 8, 8)
    assert measures.tile_shares(maps, tiles).item() == 0.5  # chance
    maps[0, 4:, :4] = -9
    maps[0, :4, 4:] = 0
    assert measures.tile_shares(maps, tiles).item() == 1


def test_skies_are_graded_and_noisy_as_their_names_say():
    made = edits.skies(SIZE, generator())
    ends = {"deep blue": [40, 90, 180], "white": [245, 245, 245]}
    for above, below in (("deep blue", "white"), ("white", "deep blue")):
        sky = made[f"{above} above, {below} below"]
        assert (sky[:, 0, 5].tolist(), sky[:, -1, 5].tolist()) == (ends[above], ends[below])
    for plain, size in (("sky blue", 10), ("sky blue", 50), ("grey", 50)):
        noise = (made[f"{plain}, noise of {size}"] - made[plain])[0]
        assert noise.std().item() == pytest.approx(size, rel=0.1)


def test_the_grid_of_colours_shows_the_class_that_a_colour_is_taken_for():
    dataset = painted_dataset()
    found = colours(Subject(Painted(), dataset), dataset.images[:3].float(), generator())
    assert found["skies"]["deep blue"][2] > 0.9
    assert found["skies"]["grey"] == pytest.approx([1 / 3] * 3, abs=1e-3)
    grid = np.array(found["grid"]["probabilities"])
    assert grid.shape == (24, 4, 9, 3)
    vivid = grid[:, -1, -1]  # by hue: red at 0, green at a third, blue at two thirds
    assert [vivid[0].argmax(), vivid[8].argmax(), vivid[16].argmax()] == [0, 1, 2]


def test_unlearned_layers_change_the_map_of_a_network():
    torch.manual_seed(0)
    model = CNN([8, 8], image_size=SIZE, num_classes=3).eval()
    images = torch.randint(0, 256, (20, 3, SIZE, SIZE), dtype=torch.uint8)
    labels = torch.zeros(20, dtype=torch.int64)
    dataset = ImageDataset(images, labels, ["a", "b", "c"], [0.5] * 3, [0.2] * 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = randomise(Subject(model, dataset), dataset, generator(), count=20, draws=4)
    assert list(found) == ["classifier", "layer 2", "layer 1", "another image"]
    for summary in found.values():
        assert abs(summary["signed"]["mean"]) <= summary["absolute"]["mean"] < 0.9
        assert summary["signed"]["count"] == 4
        assert summary["signed"]["low"] < summary["signed"]["high"]  # every draw is another
    assert len({summary["signed"]["mean"] for summary in found.values()}) == 4
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    maps = torch.randn(4, 8, 8)
    assert measures.rank_correlation(maps, maps) == pytest.approx([1.0] * 4)
    expected = spearmanr(maps[0].flatten(), maps[1].flatten()).statistic
    assert measures.rank_correlation(maps[:1], maps[1:2])[0] == pytest.approx(expected)


def test_maps_are_as_large_as_the_images_with_their_cells_where_they_lie():
    dataset = painted_dataset()
    model = CNN([4, 4], SIZE, num_classes=3, whiten=True).eval()
    subject = Subject(model, dataset)
    maps, _ = subject.explain(dataset.images[:4].float())
    centres = cell_centres(model, maps.shape[1:], (SIZE, SIZE))
    assert torch.equal(subject.smooth(maps), upsample(maps, SIZE, SIZE, centres))
    assert not torch.equal(subject.smooth(maps), upsample(maps, SIZE, SIZE))


def test_of_equal_pixels_the_one_in_their_middle_is_the_hottest():
    maps = torch.zeros(3, 5, 7)
    maps[0, 1:4, 4:7] = 2.0
    maps[1, 4, 0] = 1.0  # the third is all equal
    masks = torch.zeros(3, 5, 7, dtype=torch.bool)
    masks[[0, 1, 2], [2, 4, 2], [5, 0, 3]] = True
    assert measures.pointing_hits(maps, masks).all()
    assert not measures.pointing_hits(maps, ~masks).any()


def test_the_pictures_of_deletion_are_drawn_from_all_of_a_class(monkeypatch):
    dataset, explain, seen = painted_dataset(), measures.explain, []
    monkeypatch.setattr(
        measures, "explain", lambda model, images: seen.append(images) or explain(model, images)
    )
    for seed in range(2):
        delete(Subject(Painted(), dataset), dataset, generator(seed), per_class=2)
    assert seen[0].shape == seen[1].shape and not torch.equal(*seen)


def test_the_curves_of_a_painted_network_are_over_the_classes_and_fall_fastest_by_its_map():
    dataset = painted_dataset()
    found = delete(Subject(Painted(), dataset), dataset, generator(), per_class=2)
    assert found["images"] == 6
    for kind in ("features", "deletion", "insertion"):
        area = {order: found[kind][order]["area"]["mean"] for order in found[kind]}
        for order in ("random", "centre"):
            more = found[kind][order]["more_than_map"]["mean"]
            assert more == pytest.approx(area[order] - area["map"], abs=1e-6)
    more = {
        kind: found[kind]["random"]["more_than_map"]["mean"] for kind in found if kind != "images"
    }
    assert more["features"] > 0 and more["deletion"] > 0 > more["insertion"]


def test_the_box_of_the_best_threshold_is_the_one_around_the_largest_region():
    hot = torch.full((1, 10, 10), 0.3)
    hot[0, 2:6, 3:8] = 1.0
    hot[0, 0, 0] = hot[0, 9, 9] = 1.0
    truth = torch.tensor([[0.3, 0.2, 0.8, 0.6]])
    assert measures.region_box(hot[0].numpy() > 0.5) == (0.3, 0.2, 0.8, 0.6)
    hits, threshold = measures.best_threshold_hits(hot, [truth])
    assert hits.tolist() == [True] and threshold > 0.3
    assert not measures.meets((0.0, 0.0, 0.4, 0.4), truth)
    assert measures.meets((0.3, 0.2, 0.8, 0.41), truth)  # a little over one half
    assert not measures.meets((0.3, 0.2, 0.8, 0.39), truth)
    assert measures.region_box(np.zeros((4, 4), bool)) == (0, 0, 0, 0)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    random = np.random.default_rng(0)
    held = []
    for _ in range(200):
        found = measures.rate_with_interval(random.random(50) < 0.3)
        held.append(found["low"] <= 0.3 <= found["high"])
    assert 0.9 <= np.mean(held) <= 0.99
    none = measures.rate_with_interval([False] * 12)
    assert (none["low"], none["high"]) == pytest.approx((0, 0.2425), abs=1e-4)
    values = random.normal(5, 1, 400)
    found = measures.mean_with_interval(values)
    assert found["low"] < 5 < found["high"]
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)
    assert measures.mean_with_interval([float("nan"), 2.0]) == {
        "mean": 2.0, "low": 2.0, "high": 2.0, "count": 1,
    }  # fmt: skip


def test_a_hole_is_filled_from_around_it_and_nothing_else_changes():
    rows = torch.linspace(0, 200, SIZE).view(1, 1, SIZE, 1).expand(1, 3, SIZE, SIZE)
    mask = box_mask(torch.tensor([[0.25, 0.25, 0.5, 0.5]]), SIZE, SIZE)[None]
    damaged = torch.where(mask[:, None], 255.0, rows)
    filled = edits.fill_smoothly(damaged, mask)
    assert torch.equal(
        filled[~mask[:, None].expand_as(filled)], rows[~mask[:, None].expand_as(rows)]
    )
    assert (filled - rows).abs().max() < 40  # of 200, over a quarter of the side
    edge = (filled - rows)[0, 0, SIZE // 4, SIZE // 4 : SIZE // 2].abs()
    assert edge.max() < 15


def test_what_differs_in_one_colour_alone_is_cut_out_and_stands_on_the_mean_colour():
    empty = torch.full((1, 3, SIZE, SIZE), 100.0)
    mask, pixels = box_mask(BOX, SIZE, SIZE), empty.clone()
    object_ = mask & (torch.arange(SIZE) < SIZE // 2)
    pixels[0, 2, object_] = 160
    shown = edits.alone(
        pixels, edits.cut_along(pixels, mask[None], empty), torch.tensor([10.0, 20, 30])
    )[0]
    assert shown[:, object_].T.unique(dim=0).tolist() == [[100, 100, 160]]
    assert shown[:, ~object_].T.unique(dim=0).tolist() == [[10, 20, 30]]


def test_moving_by_nothing_is_pasting_and_what_leaves_is_lost():
    pixels = torch.full((1, 3, SIZE, SIZE), 200.0)
    mask = box_mask(BOX, SIZE, SIZE)[None]
    ground = torch.zeros_like(pixels)
    assert torch.equal(edits.move(pixels, mask, ground, 0, 0), edits.paste(pixels, mask, ground))
    moved = edits.move(pixels, mask, ground, 8, -4)
    expected = torch.roll(mask, (8, -4), (1, 2))
    assert torch.equal(moved[0, 0] == 200, expected[0])
    assert not edits.move(pixels, mask, ground, 60, 0).any()


def test_a_crop_around_an_object_shows_all_of_it_at_the_share_asked_for():
    image = torch.zeros(3, SIZE, SIZE)
    boxes = torch.tensor([[0.125, 0.25, 0.25, 0.375], [0.1875, 0.3125, 0.3125, 0.375]])
    mask = box_mask(boxes, SIZE, SIZE)
    image[:, mask] = 255
    for share in (1 / 32, 1 / 16, 1 / 4, 1 / 2):
        seen = (edits.crop_around(image, boxes, mask, share) > 127).float().mean().item()
        assert seen == pytest.approx(share, rel=0.15)
    as_it_is = edits.crop_around(image, boxes, mask, mask.float().mean().item())
    torch.testing.assert_close(as_it_is, image, atol=1e-3, rtol=0)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    whole = edits.crop_around(image, whole, box_mask(whole, SIZE, SIZE), 0.5)
    torch.testing.assert_close(whole, image, atol=1e-3, rtol=0)


class Sky(Head):
    """P(parachute), class 1, by how much of the picture is blue; else a church, class 0."""

    def __init__(self):
        super().__init__(torch.tensor([[4.0, 0.0], [0.0, 4.0], [0.0, 0.0]]))

    def features(self, images):
        blue = (images[:, 2:] > 0.5).float()
        return torch.cat([1 - blue, blue], 1)


@pytest.fixture
def six():
    """Subject and pictures: 3536 has a small blue parachute on grey, 3535 and 3537 one on blue."""
    labels = torch.tensor([2, 0, 0, 1, 1, 1])
    pixels = torch.full((6, 3, SIZE, SIZE), 90.0)
    pixels[[3, 5]] = PAINT[2].view(3, 1, 1)
    masks = box_mask(BOX, SIZE, SIZE).repeat(6, 1, 1)
    pixels[masks[:, None].expand_as(pixels)] = 0
    pixels[:, 2][masks] = 220
    classes = ["church", "parachute", "French horn"]
    dataset = ImageDataset(pixels.to(torch.uint8), labels, classes, [0.0] * 3, [1.0] * 3)
    return Subject(Sky(), dataset), Boxed(list(SIX), pixels, masks, labels, [BOX] * 6)


def test_image_3536_is_mended_one_thing_at_a_time(six):
    found = explain_3536(*six)

    def probability(blue):
        return torch.tensor([4 * (1 - blue), 4 * blue, 0.0]).softmax(0)[1].item()

    assert found["object_share"] == [1 / 16, 0.1, 0.2, 0.35, 0.5]
    for kind in ("cut_out", "enlarged"):  # on grey both show a blue square of that share
        expected = [probability(share) for share in found["object_share"]]
        assert found[kind] == pytest.approx(expected, abs=0.08)
    skies = found["skies"]
    assert skies["as it is"] == pytest.approx(probability(1 / 16), abs=1e-3)
    assert skies["without the parachute"] == pytest.approx(probability(0), abs=1e-3)
    for name in ("on sky blue", "on the sky of 3535", "the sky of 3537 alone"):
        assert skies[name] == pytest.approx(probability(1), abs=0.02), name
    six[1].pixels[4, 2, :16] = 220  # a blue beam above, which a closer cut leaves out
    found = explain_3536(*six)
    assert found["enlarged"][-1] > found["cut_out"][-1] + 0.1


def test_the_six_are_described_in_the_order_of_the_text(six):
    rows = describe_six(*six)
    assert [row["index"] for row in rows] == list(SIX)
    assert [row["true"] for row in rows] == ["French horn", "church", "church"] + ["parachute"] * 3
    assert rows[3]["predicted"] == "parachute" and rows[4]["predicted"] == "church"
    assert {row["box_area"] for row in rows} == {1 / 16}
    assert rows[3]["outside"] == pytest.approx(15 / 16, abs=0.01)  # all is blue
    assert rows[4]["outside"] > 0.98  # what speaks for a church is all around
    assert rows[4]["confidence"] == rows[4]["church"] > rows[4]["parachute"]


def test_shuffled_pixels_keep_their_colours():
    pixels = torch.rand(2, 3, 8, 8) * 255
    shuffled = edits.shuffle_pixels(pixels, generator())
    assert not torch.equal(shuffled, pixels)
    assert not torch.equal(*edits.shuffle_pixels(pixels[[0, 0]], generator()))
    assert torch.equal(shuffled.sum(1).flatten(1).sort()[0], pixels.sum(1).flatten(1).sort()[0])


@pytest.mark.parametrize("seed", [0, 3])
def test_the_study_knows_which_images_a_network_was_trained_on(digits_config, seed):
    config = complete_config(digits_config | {"seed": seed})
    train_set, val_set, _ = load_datasets(config)
    images, _ = LOADERS["digits"](config)[0]["train"]
    assert len(images) == len(train_set) + len(val_set)
    assert torch.equal(images[trained_on(len(images), config)], train_set.images)


@pytest.mark.parametrize("held_out", [False, True])
def test_only_boxed_images_that_were_trained_on_count_as_seen(monkeypatch, held_out):
    config = {"dataset": "imagenette", "hold_out_boxed": held_out}
    studied = []

    def run_study(subject, train_set, boxes, seed):
        studied.append(boxes)
        raise ValueError("this is enough")

    parts = {
        "find_checkpoint": lambda name: name,
        "load_trained": lambda path: (Painted(), {"config": config}),
        "load_boxes": lambda *_: dict.fromkeys(range(30), BOX),
        "load_splits": lambda config: [painted_dataset()] * 2,
        "run_study": run_study,
    }
    for name, part in parts.items():
        monkeypatch.setattr(trust, name, part)
    with pytest.raises(SystemExit):
        trust.main(trust.Flags("run"))
    (boxes,) = studied
    assert sorted(boxes["val"]) == [*range(30)]
    assert sorted(boxes["train"]) == ([*range(30)] if held_out else trained_on(30, defaults))
