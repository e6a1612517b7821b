"""What a class activation map is: identities that hold for every network of this kind.

The references are torch's own gradients, pytorch-grad-cam and captum.
"""

import bisect
import functools
import random

import pytest
import torch
from captum.attr import LayerGradCam
from pytorch_grad_cam import GradCAM, HiResCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch.nn import functional as F

import exercise_1_3
from cam import generate_class_activation_map
from dataset import load_datasets
from models import CNN, ResNet18, build_model
from training import train
from upsampling import cell_centres, upsample

BOUND = {torch.float32: 1e-5, torch.float64: 1e-10}
K, BATCH = 4, 3


def random_network(number, dtype):
    """A CNN of drawn shape, statistics and weights in eval mode, and images for it."""
    draw = random.Random(number)
    torch.manual_seed(number)
    kernel_size = draw.choice([1, 3, 5])
    layers = [
        {
            "channels": draw.randint(2, 9),
            "stride": draw.choice([1, 1, 2]),
            "pool": draw.choice([1, 2]),
        }
        for _ in range(draw.randint(1, 3))
    ]
    size = draw.randint(12, 32)
    residual = draw.random() < 0.5
    padding = kernel_size // 2 if residual else draw.randint(0, kernel_size // 2)
    settings = {"kernel_size": kernel_size, "padding": padding, "dropout": draw.choice([0.0, 0.3])}
    try:
        model = CNN(layers, size, 3, K, residual=residual, **settings)
    except ValueError:  # a shape that leaves no cell
        return random_network(number + 1000, dtype)
    model.classifier.weight.data.normal_()
    model, images = settled(model.to(dtype), torch.randn(BATCH, 3, size, size, dtype=dtype))
    alive = model.features(images).any()  # of a dead network every identity would hold
    return (model, images) if alive else random_network(number + 1000, dtype)


def settled(model, images):
    """(model in eval mode, with statistics of images like these; images)"""
    with torch.no_grad():
        for _ in range(3):
            model.train()(images * 2 + 1)
    return model.eval(), images


@functools.cache
def networks(dtype):
    """200 CNNs and a ResNet-18, each with images."""
    many = [random_network(number, dtype) for number in range(200)]
    torch.manual_seed(0)
    resnet = ResNet18(K).to(dtype)
    return [*many, settled(resnet, torch.randn(BATCH, 3, 64, 64, dtype=dtype))]


@functools.cache
def with_maps(dtype):
    """(model, images, maps (N, K, h, w), features, logits) of each; a class after the other."""
    found = []
    for model, images in networks(dtype):
        classes = torch.arange(K).repeat(BATCH)
        maps = generate_class_activation_map(model, images.repeat_interleave(K, 0), classes).maps
        maps = maps.unflatten(0, (BATCH, K))
        with torch.no_grad():
            found.append((model, images, maps, model.features(images), model(images)))
    return found


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # faster on networks this small
    yield
    torch.set_num_threads(threads)


def assert_close(ours, theirs, dtype):
    error = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-3)
    assert error < BOUND[dtype], f"relative error {error:.1e}"


both = pytest.mark.parametrize("dtype", BOUND, ids=str)


@both
def test_the_mean_of_a_map_and_the_bias_are_the_logit_of_every_class(dtype):
    for model, images, maps, _, logits in with_maps(dtype):
        assert_close(maps.mean((2, 3)) + model.classifier.bias, logits, dtype)
        for options in ({}, {"contrast": (1, 3)}, {"centred": True}):
            activation = generate_class_activation_map(model, images, **options)
            assert activation.completeness_error().max() < BOUND[dtype]


@both
def test_the_weights_of_grad_cam_are_those_of_the_head_over_the_cells(dtype):
    for model, _, maps, features, _ in with_maps(dtype):
        features = features.clone().requires_grad_()
        logits = model.classifier(features.mean((2, 3)))
        cells = features[0, 0].numel()
        for c in (0, K - 1):
            (slopes,) = torch.autograd.grad(logits[:, c].sum(), features, retain_graph=True)
            expected = model.classifier.weight[c, :, None, None] / cells
            assert_close(slopes, expected.expand_as(slopes), dtype)
            hi_res = (slopes * features).sum(1)  # Draelos and Carin 2020
            assert_close(maps[:, c] / cells, hi_res, dtype)


@both
def test_the_head_as_a_convolution_gives_all_maps_at_once(dtype):
    for model, _, maps, features, _ in with_maps(dtype):
        assert_close(F.conv2d(features, model.classifier.weight[:, :, None, None]), maps, dtype)


@both
def test_a_cell_set_to_zero_takes_its_share_of_the_map_from_the_logit(dtype):
    for number, (model, _, maps, features, logits) in enumerate(with_maps(dtype)):
        row, column = number % maps.shape[2], (number // 3) % maps.shape[3]
        without = features.clone()
        without[:, :, row, column] = 0
        after = model.classifier(without.mean((2, 3)))
        cells = maps.shape[2] * maps.shape[3]
        assert_close(logits - maps[:, :, row, column] / cells, after, dtype)


@both
def test_a_contrast_adds_up_to_the_margin_between_two_classes(dtype):
    for model, images, maps, _, logits in with_maps(dtype):
        activation = generate_class_activation_map(model, images, contrast=(3, 1))
        scale = maps.abs().max()  # the margin itself may be close to zero
        assert (activation.maps - (maps[:, 3] - maps[:, 1])).abs().max() < BOUND[dtype] * scale
        margin = activation.maps.mean((1, 2)) + activation.biases
        wanted = logits[:, 3] - logits[:, 1]
        assert (margin - wanted).abs().max() < BOUND[dtype] * logits.abs().max()


@both
def test_only_the_centred_map_survives_a_vector_added_to_all_classes(dtype):
    for model, images in networks(dtype)[:50]:
        raw, centred = (
            generate_class_activation_map(model, images, 3, centred=c).maps for c in (False, True)
        )
        probabilities = model(images).softmax(1).detach()
        before = model.classifier.weight.data.clone()
        model.classifier.weight.data += torch.randn_like(before[0])
        raw_after, centred_after = (
            generate_class_activation_map(model, images, 3, centred=c).maps for c in (False, True)
        )
        probabilities_after = model(images).softmax(1).detach()
        model.classifier.weight.data = before
        scale = raw_after.abs().max().clamp(min=1.0)
        assert (centred_after - centred).abs().max() < BOUND[dtype] * scale
        assert (probabilities_after - probabilities).abs().max() < BOUND[dtype] * scale
        assert (raw_after - raw).abs().max() > 1e-3 * scale


@both
@pytest.mark.parametrize("factor", [2, 5, 16])
def test_upsampling_by_a_whole_factor_is_smooth_and_keeps_the_mean(dtype, factor):
    torch.manual_seed(0)
    maps = torch.randn(5, 8, 6, dtype=dtype) + 1
    large = upsample(maps, 8 * factor, 6 * factor)
    assert_close(large.mean((1, 2)), maps.mean((1, 2)), dtype)
    corners = F.interpolate(maps[:, None], scale_factor=factor, mode="bilinear", align_corners=True)
    assert (corners.mean((1, 2, 3)) - maps.mean((1, 2))).abs().max() > 1e-3
    assert upsample(torch.tensor([[[0.0, 4.0]]]), 1, 4).flatten().tolist() == [0, 1, 3, 4]


def seen_rows(model, pixels, cell):
    """The first and the last row of an image (pixels, 32) that row `cell` of the last map sees."""

    def reaches(rows):
        image = torch.zeros(1, 3, pixels, 32)
        image[:, :, rows] = float("nan")
        with torch.no_grad():
            return bool(model.features(image)[0, :, cell].isnan().any())

    first = bisect.bisect_left(range(pixels), True, key=lambda row: reaches(slice(row + 1)))
    last = bisect.bisect_left(range(pixels), True, key=lambda row: not reaches(slice(row, None)))
    return first, last - 1


def test_a_cell_is_drawn_in_the_middle_of_the_rows_that_it_sees():
    whitened = CNN([4, 4, 4], 32, whiten=True).eval()  # whose cells do not tile the image
    strided = CNN([{"channels": 4, "stride": 2, "kernel_size": 7}, 4], 32, padding=0).eval()
    residual = CNN([4, {"channels": 6, "stride": 2, "pool": 1}], 32, residual=True).eval()
    cases = [(whitened, 64), (strided, 64), (residual, 64), (ResNet18(K).eval(), 640)]
    for model, pixels in cases:
        cells = model.features(torch.zeros(1, 3, pixels, 32)).shape[2:]
        rows, _ = cell_centres(model, cells, (pixels, 32))
        first, last = seen_rows(model, pixels, cells[0] // 2)
        assert 0 < first < last < pixels - 1
        assert float(rows[cells[0] // 2]) * pixels - 0.5 == pytest.approx((first + last) / 2)
        assert (
            generate_class_activation_map(model, torch.zeros(1, 3, pixels, 32)).centres[0].tolist()
            == rows.tolist()
        )


def test_an_upsampled_map_has_the_values_of_its_cells_in_their_centres():
    values = torch.tensor([[[1.0, 5.0, 2.0], [0.0, 3.0, 7.0]]])
    centres = torch.tensor([2.5, 6.5]).double() / 9, torch.tensor([0.5, 4.5, 8.5]).double() / 12
    large = upsample(values, 9, 12, centres)
    assert torch.equal(large[:, 2::4][:, :2, ::4], values)
    assert large[0, 4, 0] == 0.5  # half-way between two cells
    assert torch.equal(large[0, 0], large[0, 2])  # beyond the outer ones those alone
    assert torch.equal(large[0, :, 11], large[0, :, 8])


def test_cells_of_a_network_that_its_layers_do_not_explain_tile_the_image():
    model = CNN([4, 4], 32)
    model.layers.append(torch.nn.Upsample(scale_factor=2))
    cells = model.features(torch.zeros(1, 3, 32, 32)).shape[2:]
    rows, columns = cell_centres(model, cells, (32, 32))
    assert torch.equal(rows, (torch.arange(16).double() + 0.5) / 16) and torch.equal(rows, columns)
    model.layers[0].conv = torch.nn.Conv2d(3, 4, 3, padding="same")
    assert torch.equal(cell_centres(model, cells, (32, 32))[0], rows)


def peers():
    """Some of the networks, the ResNet-18 among them."""
    return networks(torch.float32)[::20]


@pytest.mark.parametrize("method", [GradCAM, HiResCAM])
def test_maps_are_those_of_pytorch_grad_cam(method):
    for model, images in peers():
        classes = [0, 1, 3]
        maps = generate_class_activation_map(model, images, classes).maps.relu()
        with method(model, [model.layers]) as explainer:
            seen = explainer.activations_and_grads
            explainer(images, [ClassifierOutputTarget(c) for c in classes])
            pair = seen.activations[0].numpy(), seen.gradients[0].numpy()
        theirs = torch.as_tensor(explainer.get_cam_image(images, model.layers, None, *pair, False))
        cells = maps[0].numel()
        assert (maps / cells - theirs.relu()).abs().max() < 1e-5 * maps.max().clamp(min=1.0)


def test_maps_are_those_of_captum():
    for model, images in peers():
        explainer = LayerGradCam(model, model.layers)
        for c in (0, 3):
            theirs = explainer.attribute(images, target=c)[:, 0].detach()
            maps = generate_class_activation_map(model, images, c).maps
            assert_close(maps / maps[0].numel(), theirs, torch.float32)


@pytest.mark.parametrize("residual", [False, True])
def test_the_maps_of_a_trained_network_add_up(digits_config, residual):
    layers = {"layers": [8, {"channels": 16, "pool": 1}], "residual": residual, "dropout": 0.0}
    config = digits_config | {
        "model": exercise_1_3.config["model"] | layers,
        "epochs": 4,
        "lr": 1e-2,
    }
    train_set, val_set, test_set = load_datasets(config)
    model = build_model(config)
    accuracies, _ = train(model, train_set, val_set, config)
    assert max(accuracies) > 0.3
    images = test_set.normalise(test_set.images)
    for dtype, bound in BOUND.items():
        activation = generate_class_activation_map(model.to(dtype), images.to(dtype))
        assert activation.completeness_error().max() < bound


def test_a_loop_over_maps_meets_each_image_once_and_ends():
    model = CNN([4], image_size=8, in_channels=1)
    activation = generate_class_activation_map(model, torch.rand(3, 1, 8, 8))
    ones = list(activation)
    assert len(ones) == len(activation) == 3
    assert torch.equal(torch.cat([one.maps for one in ones]), activation.maps)
    with pytest.raises(IndexError):
        activation[3]
