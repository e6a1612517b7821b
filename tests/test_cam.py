"""Maps that add up to the logit, and pictures that show what the maps say."""

import json

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from cam import (
    COLOURS,
    ClassActivation,
    activate,
    cam,
    folder_name,
    generate_class_activation_map,
    save_cam_visualization,
)
from dataset import ImageDataset
from models import CNN, MLP

NETWORKS = [
    {"layers": [6, 8], "image_size": 16},
    {"layers": [6, 8, 8], "image_size": 33, "residual": True},
    {"layers": [6, {"channels": 8, "stride": 2, "pool": 1}], "image_size": 20, "dropout": 0.5},
    {"layers": [5, 7], "image_size": 15, "kernel_size": 5, "padding": 0},
]


def random_network(settings, dtype=torch.float32):
    """A CNN whose BatchNorm has seen data, in training mode, and images for it."""
    torch.manual_seed(0)
    model = CNN(num_classes=7, **settings).to(dtype)
    images = torch.randn(9, 3, settings["image_size"], settings["image_size"], dtype=dtype)
    for _ in range(3):
        model(images * 2 + 1)
    return model, images


@pytest.mark.parametrize("settings", NETWORKS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_a_map_averages_to_its_logit(settings, dtype, bound):
    model, images = random_network(settings, dtype)
    for classes in [None, 3, [0, 1, 2, 3, 4, 5, 6, 0, 1]]:
        activation = generate_class_activation_map(model, images, classes)
        assert activation.completeness_error().max() < bound
        torch.testing.assert_close(activation.logits, model.eval()(images))


@pytest.mark.parametrize("settings", NETWORKS)
def test_a_map_cut_at_zero_is_grad_cam(settings):
    model, images = random_network(settings)
    classes = [0, 1, 2, 3, 4, 5, 6, 0, 1]
    maps = generate_class_activation_map(model, images, classes).maps.relu()
    ours = maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)
    with GradCAM(model.eval(), [model.layers]) as explainer:
        gradients = explainer.activations_and_grads
        explainer(images, [ClassifierOutputTarget(c) for c in classes])
        activations, slopes = gradients.activations[0], gradients.gradients[0]
    theirs = explainer.get_cam_image(
        images, model.layers, None, activations.numpy(), slopes.numpy()
    )
    theirs = torch.as_tensor(theirs).relu()
    theirs = theirs / theirs.amax((1, 2), keepdim=True).clamp(min=1e-12)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_map_fails_to_add_up_where_it_is_taken_before_the_pooling():
    model, images = random_network(NETWORKS[0])
    early = torch.nn.functional.interpolate(model.eval().features(images) ** 2, (4, 4))
    activation = generate_class_activation_map(model, images)
    wrong = torch.einsum("nc,nchw->nhw", model.classifier.weight[activation.classes], early)
    broken = ClassActivation(
        wrong, activation.classes, activation.logits, activation.confidence, activation.biases
    )
    assert broken.completeness_error().max() > 1e-2


def test_a_batch_is_its_images_one_by_one():
    model, images = random_network(NETWORKS[1])
    together = generate_class_activation_map(model, images)
    for index, image in enumerate(images):
        alone = generate_class_activation_map(model, image[None])
        torch.testing.assert_close(together[index].maps, alone.maps)
        torch.testing.assert_close(together[index].confidence, alone.confidence)


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
    return ClassActivation(maps, one, logits, logits.softmax(1)[:, 1], torch.zeros(1))


def test_the_hottest_cell_has_the_top_colour_and_the_coldest_the_bottom_one(tmp_path):
    values = torch.zeros(4, 4)
    values[1, 2], values[3, 0] = 8.0, -8.0
    image = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    save_cam_visualization(image, activation_of(values), tmp_path / "map.png", ["a", "b", "c"], 0)
    pixels = np.asarray(Image.open(tmp_path / "map.png").convert("RGB")).astype(int)
    cells = []
    for end in (1.0, 0.0):
        colour = (np.array(colormaps[COLOURS](end)[:3]) * 255).round()
        there = np.abs(pixels - colour).max(-1) <= 2
        rows, columns = np.where(there[:, : pixels.shape[1] * 3 // 5])  # the colour bar lies right
        cells.append((rows.mean(), columns.mean()))
    (hot_row, hot_column), (cold_row, cold_column) = cells
    assert hot_row < cold_row
    assert hot_column > cold_column


def test_a_map_of_zeros_is_drawn_without_a_blank_or_a_warning(tmp_path, recwarn):
    image = torch.zeros(1, 8, 8, dtype=torch.uint8)
    save_cam_visualization(image, activation_of(torch.zeros(2, 2)), tmp_path / "zero.png")
    assert (tmp_path / "zero.png").stat().st_size > 0
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


HOSTILE = ["../up", "a/b", "x" * 300, "🎈<script>alert(1)</script>", '"quoted"', ".."]


def test_hostile_class_names_stay_inside_the_run_folder_and_are_text_on_the_page(tmp_path):
    model = CNN([4], image_size=8, num_classes=len(HOSTILE))
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    dataset = ImageDataset(images, torch.arange(6), HOSTILE, [0.5] * 3, [0.2] * 3)
    config = {"run_dir": str(tmp_path / "run"), "seed": 0, "cam": {"per_class": 1, "indices": []}}
    rows = cam(model, dataset, config)
    written = {path.resolve() for path in tmp_path.rglob("*.png")}
    assert written == {(tmp_path / "run" / "cam" / row["path"]).resolve() for row in rows}
    assert len(written) == 6
    assert all((tmp_path / "run" / "cam") in path.parents for path in written)
    assert "<script>" not in (tmp_path / "run" / "cam" / "index.html").read_text()
    assert all(len(folder_name(name)) <= 80 for name in HOSTILE)


def test_the_manifest_has_a_row_for_every_picture_and_the_worst_error(tmp_path, random_images):
    model = CNN([4], image_size=8, in_channels=1, num_classes=3)
    config = {"run_dir": str(tmp_path), "seed": 0, "cam": {"per_class": 2, "indices": []}}
    rows = cam(model, random_images, config)
    manifest = json.loads((tmp_path / "cam" / "manifest.json").read_text())
    assert manifest["images"] == rows
    assert len(rows) == 6
    assert manifest["worst_completeness_error"] == max(r["completeness_error"] for r in rows) < 1e-4
    assert len({row["limit"] for row in rows}) == 1  # one colour scale for all
    for row in rows:
        assert random_images.classes[random_images.labels[row["index"]]] == row["true"]


def test_named_images_are_drawn_in_the_order_given_and_missing_ones_refused(
    tmp_path, random_images
):
    model = CNN([4], image_size=8, in_channels=1, num_classes=3)
    config = {"run_dir": str(tmp_path), "seed": 0, "cam": {"per_class": 2, "indices": [30, 4]}}
    assert [row["index"] for row in cam(model, random_images, config)] == [30, 4]
    config["cam"]["indices"] = [37]
    with pytest.raises(ValueError, match="no image 37"):
        cam(model, random_images, config)


def test_activations_of_many_batches_are_those_of_one(random_images):
    model = CNN([4], image_size=8, in_channels=1, num_classes=3)
    indices = list(range(37))
    small, large = (activate(model, random_images, indices, batch_size=b) for b in (5, 64))
    torch.testing.assert_close(small.maps, large.maps)
