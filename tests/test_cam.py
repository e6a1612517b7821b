"""Maps that add up to the logit, and pictures that show what the maps say."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import exercise_2_3
from cam import (
    ClassActivation,
    activate,
    cam,
    check_cam,
    choose_images,
    find_contrast,
    generate_class_activation_map,
    save_cam_visualization,
)
from cam_pictures import (
    BAR,
    COLOUR_MAP,
    HEADER,
    MARGIN,
    PANEL,
    blend,
    describe_prediction,
    save_thumbnail,
    to_pixels,
)
from dataset import ImageDataset
from ending import overlays
from gallery import describe_activation, draw_gallery, folder_name, measure_boxes
from models import CNN, MLP
from outcome import Training

NETWORKS = [
    {"layers": [6, 8], "image_size": 16},
    {"layers": [6, 8, 8], "image_size": 33, "residual": True},
    {"layers": [6, {"channels": 8, "stride": 2, "pool": 1}], "image_size": 20, "dropout": 0.5},
    {"layers": [5, 7], "image_size": 15, "kernel_size": 5, "padding": 0},
]

KINDS = ("path", "thumbnail")
CHOICE = exercise_2_3.config["cam"] | {"per_class": 2}


def random_network(settings):
    """A CNN whose BatchNorm has seen data, in training mode, and images for it."""
    torch.manual_seed(0)
    model = CNN(num_classes=7, **settings)
    images = torch.randn(9, 3, settings["image_size"], settings["image_size"])
    for _ in range(3):
        model(images * 2 + 1)
    return model, images


@pytest.mark.parametrize("settings", NETWORKS)
def test_a_map_averages_to_its_logit(settings):
    model, images = random_network(settings)
    for classes in [None, 3, [0, 1, 2, 3, 4, 5, 6, 0, 1]]:
        activation = generate_class_activation_map(model, images, classes)
        assert activation.completeness_error().max() < 1e-5
        torch.testing.assert_close(activation.logits, model.eval()(images))


def test_the_error_of_a_sum_is_a_share_of_the_largest_logit_of_its_image():
    model, images = random_network(NETWORKS[0])
    activation = generate_class_activation_map(model, images)
    off = replace(activation, totals=activation.totals + 0.5)
    expected = 0.5 / activation.logits.abs().max(1).values
    torch.testing.assert_close(off.completeness_error(), expected, rtol=1e-3, atol=1e-5)


def test_a_map_of_other_features_fails_to_add_up():
    model, images = random_network(NETWORKS[0])
    activation = generate_class_activation_map(model, images)
    weight, others = model.classifier.weight[activation.classes], model.eval().features(images) ** 2
    broken = replace(activation, maps=torch.einsum("nc,nchw->nhw", weight, others))
    assert broken.completeness_error().max() > 1e-2


def test_a_batch_is_its_images_one_by_one():
    model, images = random_network(NETWORKS[1])
    together = generate_class_activation_map(model, images)
    for index, image in enumerate(images):
        alone = generate_class_activation_map(model, image[None])
        torch.testing.assert_close(together[index].maps, alone.maps)
        torch.testing.assert_close(together[index].confidence, alone.confidence)


def test_classes_beside_a_contrast_are_refused():
    model, images = random_network(NETWORKS[0])
    with pytest.raises(ValueError, match=r"contrast \(0, 1\) names its own class"):
        generate_class_activation_map(model, images, 2, contrast=(0, 1))


def test_a_negative_index_counts_from_the_end_and_a_mixed_mode_is_restored():
    model, images = random_network(NETWORKS[1])
    model.train()
    model.layers[0].norm.eval()  # as where its statistics shall stay
    activation = generate_class_activation_map(model, images)
    torch.testing.assert_close(activation[-1].maps, activation.maps[-1:])
    assert model.training and model.layers[1].norm.training
    assert not model.layers[0].norm.training


def test_the_words_of_a_picture_measure_its_map():
    model, images = random_network(NETWORKS[0])
    activation = generate_class_activation_map(model, images)[0]
    mean, bias, total = map(float, (activation.maps.mean(), activation.biases, activation.totals))
    words = describe_prediction(activation)
    assert (
        f"mean {mean:+.2f} and bias {bias:+.2f} make {mean + bias:+.2f}, logit {total:+.2f}"
        in words
    )
    assert float(words.rpartition(" ")[2]) < 1e-5
    assert describe_prediction(activation, list("abcdefg"), 4).startswith("true: e   predicted: ")
    broken = describe_prediction(replace(activation, maps=activation.maps * 3 + 5))
    assert f"mean {3 * mean + 5:+.2f}" in broken
    assert float(broken.rpartition(" ")[2]) > 1


def test_maps_are_not_drawn_into_a_folder_called_auto(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, _ = random_network(NETWORKS[0])
    with pytest.raises(ValueError, match="run_dir is auto"):
        cam(model, None, exercise_2_3.config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_changed_and_the_mode_is_restored(training):
    model, images = random_network(NETWORKS[2])
    model.train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generate_class_activation_map(model, images)
    assert model.training == training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_confidence_is_the_softmax_of_the_class_and_the_predicted_class_is_the_default():
    model, images = random_network(NETWORKS[0])
    activation = generate_class_activation_map(model, images)
    probabilities = activation.logits.softmax(1)
    assert torch.equal(activation.classes, probabilities.argmax(1))
    torch.testing.assert_close(activation.confidence, probabilities.amax(1))
    of_three = generate_class_activation_map(model, images, classes=3)
    torch.testing.assert_close(of_three.confidence, probabilities[:, 3])


def test_as_many_classes_as_images_are_asked_for():
    for classes in ([0, 1], [1], [[0, 1, 2]]):
        with pytest.raises(ValueError, match="one of each of 3 images"):
            generate_class_activation_map(CNN([4]), torch.rand(3, 3, 8, 8), classes)


def test_a_class_that_is_not_there_is_refused():
    model, images = random_network(NETWORKS[0])
    for wrong in (7, -1):
        with pytest.raises(ValueError, match=f"0 to 6, got .*{wrong}"):
            generate_class_activation_map(model, images, wrong)


def test_a_network_without_maps_is_refused():
    with pytest.raises(ValueError, match="MLP has no map"):
        generate_class_activation_map(MLP([12, 3]), torch.randn(1, 3, 2, 2))


def activation_of(values):
    """A ClassActivation of one image with the given map, class 1 of 3."""
    maps = torch.as_tensor(values)[None]
    logits = torch.tensor([[0.0, float(maps.mean()), -1.0]])
    one = torch.tensor([1])
    total = maps.mean((1, 2))
    return ClassActivation(maps, one, logits, logits.softmax(1)[:, 1], torch.zeros(1), total)


def drawn_map(path, cells):
    """The colours (h, w, 3) in the middle of every cell of the map in a written picture."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    left, top = 2 * MARGIN + PANEL, HEADER
    middles = [[int((k + 0.5) * PANEL / n) for k in range(n)] for n in cells]
    return pixels[top : top + PANEL, left : left + PANEL][np.ix_(*middles)]


def test_every_cell_has_its_colour_the_hottest_the_top_one_and_zero_white(tmp_path):
    values = torch.linspace(-8, 8, 15).view(3, 5)
    image = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    save_cam_visualization(image, activation_of(values), tmp_path / "map.png")
    drawn = drawn_map(tmp_path / "map.png", (3, 5))
    expected = COLOUR_MAP(np.linspace(0, 1, 15), bytes=True)[:, :3].reshape(3, 5, 3).astype(int)
    assert np.abs(drawn - expected).max() <= 3  # one step of the 256
    hot, cold = drawn[2, 4], drawn[0, 0]
    assert hot[0] > 2 * hot[2]  # red
    assert cold[2] > 2 * cold[0]  # blue
    assert drawn[1, 2].min() > 240
    pixels = np.asarray(Image.open(tmp_path / "map.png").convert("RGB")).astype(int)
    bar = pixels[HEADER + MARGIN : HEADER + PANEL - MARGIN, -80]
    assert bar[0, 0] > 2 * bar[0, 2] and bar[-1, 2] > 2 * bar[-1, 0]  # red is its top


def test_pictures_drawn_to_one_limit_show_the_same_value_in_the_same_colour(tmp_path):
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    weak, strong = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 9.0]])
    for name, values in (("weak", weak), ("strong", strong)):
        save_cam_visualization(image, activation_of(values), tmp_path / f"{name}.png", limit=9.0)
    drawn = [drawn_map(tmp_path / f"{name}.png", (1, 2)) for name in ("weak", "strong")]
    assert np.array_equal(drawn[0][0, 0], drawn[1][0, 0])


def test_the_overlay_is_as_opaque_as_the_map_is_strong(tmp_path):
    photo = Image.new("RGB", (64, 64), (0, 128, 0))
    mixed = np.asarray(blend(photo, torch.tensor([[0.0, 4.0]]), 4.0)).astype(int)
    assert mixed[32, 0].tolist() == [0, 128, 0]  # no evidence: the photo
    expected = 0.25 * np.array([0, 128, 0]) + 0.75 * np.array(COLOUR_MAP(1.0)[:3]) * 255
    assert np.abs(mixed[32, -1] - expected).max() <= 1


def test_the_overlay_is_upright_and_a_quarter_of_the_limit_has_the_colour_of_a_quarter():
    photo = Image.new("RGB", (64, 64), (0, 128, 0))
    mixed = np.asarray(blend(photo, torch.tensor([[0.0], [1.0]]), 4.0)).astype(int)
    assert mixed[0, 32].tolist() == [0, 128, 0]
    red = np.array(COLOUR_MAP(0.5 + 0.25 / 2)[:3]) * 255
    expected = np.array([0, 128, 0]) + 0.75 / 4 * (red - [0, 128, 0])
    assert np.abs(mixed[-1, 32] - expected).max() <= 1


def test_the_colour_bar_has_plus_at_its_top_and_minus_at_its_bottom(tmp_path):
    image = torch.zeros(1, 8, 8, dtype=torch.uint8)
    save_cam_visualization(image, activation_of(torch.full((2, 2), 8.0)), tmp_path / "bar.png")
    grey = np.asarray(Image.open(tmp_path / "bar.png").convert("L")).astype(int)
    first, last = HEADER + MARGIN, HEADER + PANEL - MARGIN - 1
    # where the labels start: "+8" has more ink than "-8"
    top, bottom = (255 - grey[y - 7 : y + 8, 28 - BAR :] for y in (first, last))
    assert top.sum() > 1.1 * bottom.sum() > 0


def test_boxes_are_outlined_where_they_are_in_all_three_panels(tmp_path):
    image = torch.full((3, 64, 64), 200, dtype=torch.uint8)
    one, box = activation_of(torch.zeros(2, 2)), torch.tensor([[0.25, 0.5, 0.75, 1.0]])
    save_cam_visualization(image, one, tmp_path / "box.png", boxes=box)
    pixels = np.asarray(Image.open(tmp_path / "box.png").convert("RGB")).astype(int)
    for left in (MARGIN + number * (PANEL + MARGIN) for number in range(3)):
        panel = pixels[HEADER : HEADER + PANEL, left : left + PANEL]
        green = np.argwhere((panel == (60, 255, 60)).all(-1))
        corners = np.concatenate([green.min(0), green.max(0)]) / (PANEL - 1)
        assert corners == pytest.approx([0.5, 0.25, 1.0, 0.75], abs=0.01)


def test_cells_that_do_not_tile_the_image_are_drawn_around_their_centres(tmp_path):
    image = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    off = torch.tensor([0.0, 0.5]).double(), torch.tensor([0.0, 0.5]).double()  # as in resnet18
    one = replace(activation_of([[9.0, 0.0], [0.0, 0.0]]), centres=off)
    save_cam_visualization(image, one, tmp_path / "off.png", grid=True)
    pixels = np.asarray(Image.open(tmp_path / "off.png").convert("RGB")).astype(int)
    panels = [pixels[HEADER : HEADER + PANEL, MARGIN + k * (PANEL + MARGIN) :] for k in (1, 2)]
    drawn, overlay = (panel[:, :PANEL] for panel in panels)
    red = drawn[..., 0] > drawn[..., 2] + 50
    assert red[: PANEL // 4, : PANEL // 4].all()
    assert red.sum() == (PANEL // 4) ** 2
    assert (overlay[PANEL // 4] == 0x88).all() and (overlay[:, PANEL // 4] == 0x88).all()
    assert not (overlay[PANEL // 2] == 0x88).all()
    assert (overlay[PANEL // 2 + 2 :, : PANEL // 4] == 128).all()  # from its centre on a cell is it
    save_thumbnail(image, one, tmp_path / "off.webp", 9.0)
    small = np.asarray(Image.open(tmp_path / "off.webp")).astype(int)
    assert np.abs(small[66:, :32] - 128).max() < 12


def test_the_evidence_is_measured_and_logged_where_the_cells_are(random_images):
    model = CNN([4], 8, in_channels=1, num_classes=3, whiten=True)
    activation = activate(model, random_images, [0, 1])
    assert activation.centres[0][0] != 0.5 / len(activation.centres[0])  # they do not tile it
    one, box = activation[0], torch.tensor([[0.0, 0.0, 0.4, 0.4]])
    inside = measure_boxes(one, random_images, box)["inside"]
    tiled = measure_boxes(replace(one, centres=None), random_images, box)["inside"]
    assert inside != tiled
    training = Training(model=model, val_set=random_images)
    drawn = overlays(training, [{"index": 0}, {"index": 1}])[0]
    photo = to_pixels(random_images.images[0]).resize((128, 128))
    limit = float(activation.maps.abs().max())
    assert drawn == blend(photo, one.maps[0], limit, activation.centres)
    assert drawn != blend(photo, one.maps[0], limit)


def test_a_map_of_zeros_is_drawn_without_a_blank_or_a_warning(tmp_path, recwarn):
    image = torch.zeros(1, 8, 8, dtype=torch.uint8)
    save_cam_visualization(image, activation_of(torch.zeros(2, 2)), tmp_path / "zero.png")
    assert (drawn_map(tmp_path / "zero.png", (2, 2)) >= 246).all()
    assert not recwarn.list


HOSTILE = ["../up", "a/b", "x" * 300, "🎈<script>alert(1)</script>", '"quoted"', ".."]


def test_hostile_class_names_stay_inside_the_run_folder_and_are_text_on_the_page(tmp_path):
    model = CNN([4], image_size=8, num_classes=len(HOSTILE))
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    dataset = ImageDataset(images, torch.arange(6), HOSTILE, [0.5] * 3, [0.2] * 3)
    config = {"run_dir": str(tmp_path / "run"), "seed": 0, "cam": CHOICE | {"per_class": 1}}
    rows = cam(model, dataset, config)
    written = {path.resolve() for path in tmp_path.rglob("*.png")}
    assert written == {(tmp_path / "run" / "cam" / row["path"]).resolve() for row in rows}
    assert len(written) == 6
    assert all((tmp_path / "run" / "cam") in path.parents for path in written)
    assert "<script>" not in (tmp_path / "run" / "cam" / "index.html").read_text()
    assert all(len(folder_name(name)) <= 80 for name in HOSTILE)


def test_the_manifest_has_a_row_for_every_picture_and_the_worst_error(tmp_path, random_images):
    model = CNN([4], image_size=8, in_channels=1, num_classes=3)
    config = {"run_dir": str(tmp_path), "seed": 0, "cam": CHOICE}
    rows = cam(model, random_images, config)
    manifest = json.loads((tmp_path / "cam" / "manifest.json").read_text())
    assert manifest["images"] == rows
    assert len(rows) == 6
    assert manifest["worst_completeness_error"] == max(r["completeness_error"] for r in rows) < 1e-4
    assert len({row["limit"] for row in rows}) == 1  # one colour scale for all
    maps = np.load(tmp_path / "cam" / "maps.npy")
    assert maps.shape == (6, 4, 4)
    assert rows[0]["limit"] == pytest.approx(np.quantile(np.abs(maps), 0.995))
    for row in rows:
        assert random_images.classes[random_images.labels[row["index"]]] == row["true"]
    small = [Image.open(tmp_path / "cam" / row["thumbnail"]).convert("RGB") for row in rows]
    assert max(np.ptp(np.asarray(one), 2).max() for one in small) > 50  # in colour: with the map


@pytest.fixture
def two_of_three(tmp_path):
    """A gallery of the images 2 and 0 of three of one grey each, and what it was drawn from.

    Place and index differ, the maps are mostly negative, one weak and one strong, hot in their
    upper left corner, and show why class 0, not 2.
    """
    greys = torch.tensor([40, 120, 200], dtype=torch.uint8)
    images = greys.view(3, 1, 1, 1).expand(3, 1, 64, 64)
    dataset = ImageDataset(images, torch.tensor([0, 1, 2]), ["a", "b", "c"], [0.5], [0.2])
    maps = torch.tensor([-1.0, -8.0]).view(2, 1, 1).repeat(1, 4, 4)
    maps[:, 0, 0] = 2.0
    logits = torch.tensor([[1.0, 3.0, 0.0], [2.0, 0.0, -1.0]])
    first, totals = torch.zeros(2, dtype=torch.long), logits[:, 0] - logits[:, 2]
    biases, shares = totals - maps.mean((1, 2)), logits.softmax(1)[:, 0]
    activation = ClassActivation(maps, first, logits, shares, biases, totals, first + 2)
    boxes = {0: torch.tensor([[0.5, 0.5, 1.0, 1.0]]), 2: torch.tensor([[0.0, 0.0, 0.5, 0.5]])}
    rows = draw_gallery(tmp_path / "cam", dataset, [2, 0], activation, ["x", "y"], boxes)
    return tmp_path / "cam", dataset, activation, boxes, rows


def test_every_picture_and_thumbnail_is_of_its_own_image_map_class_and_box_to_the_shared_limit(
    two_of_three,
):
    folder, dataset, activation, boxes, rows = two_of_three
    for index, grey, row, one in zip((2, 0), (200, 40), rows, activation, strict=True):
        drawn = np.asarray(Image.open(folder / row["path"]))
        assert (drawn[HEADER + PANEL // 3, MARGIN + PANEL // 3] == grey).all()
        about = (dataset.classes, int(dataset.labels[index]))
        again = folder / "again.png"
        save_cam_visualization(dataset.images[index], one, again, *about, 8.0, boxes[index])
        assert np.array_equal(drawn, np.asarray(Image.open(again)))
        overlay = blend(Image.new("RGB", (128, 128), (grey,) * 3), one.maps[0], 8.0)
        small = np.asarray(Image.open(folder / row["thumbnail"]).convert("RGB"))
        assert np.abs(small - np.asarray(overlay).astype(int)).mean() < 4


def test_rows_and_raw_maps_are_in_the_order_of_the_images_and_say_what_a_contrast_adds_up_to(
    two_of_three,
):
    folder, _, activation, _, rows = two_of_three
    assert json.loads((folder / "manifest.json").read_text())["images"] == rows
    assert np.array_equal(np.load(folder / "maps.npy"), activation.maps.numpy())
    assert [(row["index"], row["true"], row["predicted"]) for row in rows] == [
        (2, "c", "b"),
        (0, "a", "a"),
    ]
    assert [row["logit"] for row in rows] == [1.0, 3.0]  # 1 - 0 and 2 - -1
    shares = activation.logits.softmax(1)[:, 0].tolist()  # of the class shown, not the likeliest
    assert [row["confidence"] for row in rows] == pytest.approx(shares)
    assert [row["limit"] for row in rows] == pytest.approx([8.0, 8.0])
    assert [row["inside"] for row in rows] == pytest.approx([1.0, 0.0])


def test_a_row_of_the_manifest_measures_its_map(random_images):
    even, box = activation_of(torch.ones(4, 4)), torch.tensor([[0.0, 0.0, 0.5, 0.5]])
    expected = {"inside": 0.25, "outside": 0.75, "box_area": 0.25}
    assert measure_boxes(even, random_images, box) == pytest.approx(expected)
    against = measure_boxes(activation_of(-torch.ones(4, 4)), random_images, box)
    assert against == {"inside": None, "outside": None, "box_area": 0.25}
    row = describe_activation(even, random_images, 2)
    assert row["probabilities"] == pytest.approx(even.logits[0].softmax(0).tolist())
    assert row["confidence"] == pytest.approx(row["probabilities"][1])
    assert (row["logit"], row["true"], row["predicted"]) == (1.0, "c", "b")


def test_the_grid_of_cells_is_drawn_where_it_is_asked_for(tmp_path, random_images):
    model = CNN([4], image_size=8, in_channels=1, num_classes=3)
    drawn = []
    for grid in (False, True):
        choice = CHOICE | {"indices": [5], "grid": grid}
        config = {"run_dir": str(tmp_path / str(grid)), "seed": 0, "cam": choice}
        (row,) = cam(model, random_images, config)
        drawn.append(np.asarray(Image.open(tmp_path / str(grid) / "cam" / row["path"])).astype(int))
    changed = (drawn[0] != drawn[1]).any(-1).any(0)
    assert changed.any() and not changed[: changed.size // 2].any()  # in the overlay alone


def test_maps_that_are_drawn_anew_replace_those_before_and_leave_other_files(
    tmp_path, random_images, capsys
):
    model = CNN([4], image_size=8, in_channels=1, num_classes=3)
    config = {"run_dir": str(tmp_path), "seed": 0, "cam": CHOICE}
    cam(model, random_images, config)
    again = cam(model, random_images, config)
    assert all((tmp_path / "cam" / row[kind]).is_file() for row in again for kind in KINDS)
    own = (tmp_path / "cam" / again[0]["path"]).with_name("own.png")
    own.write_text("a picture of the user's")
    assert "make room" not in capsys.readouterr().out
    (row,) = cam(model, random_images, config | {"cam": CHOICE | {"indices": [3]}})
    assert {*(tmp_path / "cam").rglob("*.png")} == {own, tmp_path / "cam" / row["path"]}
    assert "the 6 maps that were there make room for these" in capsys.readouterr().out


def test_named_images_are_drawn_in_the_order_given_and_missing_ones_refused(
    tmp_path, random_images
):
    model = CNN([4], image_size=8, in_channels=1, num_classes=3)
    config = {"run_dir": str(tmp_path), "seed": 0, "cam": CHOICE | {"indices": [30, 4]}}
    assert [row["index"] for row in cam(model, random_images, config)] == [30, 4]
    config["cam"]["indices"] = [37]
    with pytest.raises(ValueError, match="no image 37"):
        cam(model, random_images, config)
    with pytest.raises(ValueError, match="no image 37"):
        check_cam(random_images, config)  # before a training


def test_activations_of_many_batches_are_those_of_one(random_images):
    model = CNN([4], image_size=8, in_channels=1, num_classes=3)
    indices = list(range(37))
    small, large = (activate(model, random_images, indices, batch_size=b) for b in (5, 64))
    torch.testing.assert_close(small.maps, large.maps)


def test_a_contrast_is_named_in_the_manifest_and_an_unknown_class_refused(tmp_path, random_images):
    model = CNN([4], image_size=8, in_channels=1, num_classes=3)
    config = {"run_dir": str(tmp_path), "seed": 0, "cam": CHOICE | {"contrast": "a,c"}}
    rows = cam(model, random_images, config)
    assert {(row["shown"], row["contrast"]) for row in rows} == {("a", "c")}
    for wrong in ("a", "a,d", "a,b,c", "a,a"):
        config["cam"] = CHOICE | {"contrast": wrong}
        with pytest.raises(
            ValueError, match=f"cam.contrast must be two different classes.*'{wrong}'"
        ):
            cam(model, random_images, config)


def test_classes_with_commas_in_their_names_can_be_contrasted():
    classes = ["tench", "tench, Tinca tinca", "goldfish, Carassius auratus"]
    assert find_contrast("goldfish, Carassius auratus,tench, Tinca tinca", classes) == (2, 1)
    assert find_contrast("tench, goldfish, Carassius auratus", classes) == (0, 2)


def test_names_too_long_for_a_picture_leave_room_for_the_numbers():
    activation = generate_class_activation_map(*random_network(NETWORKS[0]))[0]
    names = [f"n0{k} {60 * 'long '}" for k in range(7)]
    lines = describe_prediction(activation, names, true=0)
    assert len(lines.splitlines()[0]) < 100
    assert all(f"n0{k} " in lines for k in (0, activation.classes[0]))


def test_the_words_of_a_picture_name_the_runner_up_and_the_contrast():
    maps, logits = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[0.0, 2.0, 1.0]])
    shown, against = torch.tensor([1]), torch.tensor([0])
    bias, total = torch.tensor([0.5]), torch.tensor([2.0])
    shares = logits.softmax(1)[:, 1]
    activation = ClassActivation(maps, shown, logits, shares, bias, total, against)
    assert describe_prediction(activation, ["ant", "bee", "cow"], true=0).splitlines() == [
        "true: ant   predicted: bee 0.665   next: cow 0.245",
        "map of bee against ant: mean +1.50 and bias +0.50 make +2.00, "
        "difference of the logits +2.00, error 0.0000",
    ]


def test_the_pictures_of_a_class_are_numbered_from_0(tmp_path, random_images):
    model = CNN([4], image_size=8, in_channels=1, num_classes=3)
    rows = cam(model, random_images, {"run_dir": str(tmp_path), "seed": 0, "cam": CHOICE})
    numbered = [row["path"].split("_idx_")[0] for row in rows]
    assert numbered == [f"{name}/sample_{k}" for name in "abc" for k in (0, 1)]


def test_as_many_of_every_class_as_asked_for_are_drawn_by_the_seed_and_0_are_all(random_images):
    def chosen(per_class, seed=0):
        choice = CHOICE | {"per_class": per_class}
        return choose_images(random_images, {"seed": seed, "cam": choice})

    assert chosen(3) == chosen(3) != chosen(3, seed=1)
    assert random_images.labels[chosen(3)].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    for members in (chosen(6)[start : start + 6] for start in (0, 6, 12)):
        assert members == sorted(members)  # as they lie in the data set
    assert sorted(chosen(0)) == list(range(37))
