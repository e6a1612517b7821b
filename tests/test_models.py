"""Networks: identities that hold for any weights."""

import copy
import itertools

import pytest
import torch
from torch import nn

import exercise_1_2
import exercise_1_3
import exercise_2_3
import models
import rules
from checks import fit_model
from config import complete_config, defaults, merge
from models import (
    CNN,
    MLP,
    SkipBlock,
    SkipMLP,
    build_model,
    count_parameters,
    fold_norms,
)
from progress import layer_table


def zero_(module):
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


@pytest.mark.parametrize("out_features", [6, 9])
def test_a_skip_block_with_zeroed_weights_is_its_shortcut(out_features):
    block = SkipBlock(6, out_features, dropout=0.5)
    zero_(block.block)
    features = torch.randn(4, 6)
    torch.testing.assert_close(block(features), block.shortcut(features))
    assert isinstance(block.shortcut, nn.Identity) == (out_features == 6)


def test_skip_mlp_with_zeroed_blocks_is_its_first_and_last_layer():
    model = SkipMLP([12, 5, 5, 5, 3])
    zero_(model.blocks)
    images = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(model(images), model.last(model.first(images.flatten(1))))


class Scheduled(MLP):
    """Computes with numbers while it is made, which a network without values cannot."""

    def __init__(self, layer_sizes):
        super().__init__(layer_sizes)
        self.rates = [rate.item() for rate in torch.linspace(0, 0.2, 3)]


class Broken(MLP):
    def __init__(self, layer_sizes):
        super().__init__(layer_sizes)
        torch.zeros(2, 3) @ torch.zeros(4, 5)


def test_what_goes_wrong_in_a_network_is_not_said_to_be_the_memory(monkeypatch):
    config = {"dataset": "digits", "model": {"kind": "mlp", "layers": [64, 10]}}
    monkeypatch.setitem(models.MODELS, "mlp", Scheduled)
    assert build_model(config).rates == pytest.approx([0.0, 0.1, 0.2])
    monkeypatch.setitem(models.MODELS, "mlp", Broken)
    with pytest.raises(RuntimeError, match=r"cannot be multiplied|same reduction dim"):
        build_model(config)


def test_the_mlp_is_linear_layers_with_relu_between_them():
    model = MLP([12, 5, 3])
    first, last = model.layers[0], model.layers[2]
    images = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(model(images), last(first(images.flatten(1)).relu()))


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ({"kind": "mpl", "layers": [1, 2]}, r"model\.kind .*mpl.*mlp"),
        ({"kind": "mlp", "layers": []}, r"model\.layers"),
        ({"kind": "mlp"}, r"model\.layers is missing"),
        ({"kind": "cnn", "layers": [4], "drop_out": 0.5}, r"model\.drop_out .*dropout"),
    ],
)
def test_a_setting_of_a_model_that_is_not_known_is_named(model, named):
    with pytest.raises(ValueError, match=named):
        build_model({"dataset": "digits", "seed": 0, "model": model})


def test_ends_written_for_another_known_data_set_follow_this_one(monkeypatch):
    monkeypatch.setitem(rules.DATASETS, "parity", ((1, 5, 5), 2))
    config = defaults | {"dataset": "digits", "model": {"kind": "mlp", "layers": [25, 8, 2]}}
    assert fit_model(config)["layers"] == [64, 8, 10]
    with pytest.raises(ValueError, match="the last size is 3"):
        fit_model(config | {"model": {"kind": "mlp", "layers": [25, 8, 3]}})


@pytest.mark.parametrize(
    ("script", "preset"),
    [(script, preset) for script in (exercise_1_3, exercise_2_3) for preset in script.presets],
)
def test_the_network_of_every_preset_can_be_made(script, preset):
    with torch.device("meta"):
        build_model(complete_config(merge(script.config, script.presets[preset])))


def test_the_reference_mlp_has_55050_parameters_and_the_table_says_so():
    model = MLP([784, 64, 64, 10])
    assert count_parameters(model) == 55_050
    assert "55,050" in layer_table(model, (1, 28, 28)).splitlines()[-1]


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "padding"),
    list(itertools.product([33, 40], [1, 3, 5], [1, 2], [0, 2])),
)
def test_a_cnn_has_the_shapes_that_the_convolution_formula_gives(
    size, kernel_size, stride, padding
):
    model = CNN([4, 6], size, 2, 7, kernel_size, stride, padding)
    side = size
    for _ in range(2):
        side = (side + 2 * padding - kernel_size) // stride + 1
        side = side // 2 if side > 1 else side
    images = torch.randn(3, 2, size, size)
    assert model.features(images).shape == (3, 6, side, side)
    assert model(images).shape == (3, 7)


def test_a_dict_overrides_the_settings_of_its_layer_alone():
    model = CNN([4, {"channels": 6, "kernel_size": 5, "padding": 2, "pool": 1}, 4], 16)
    assert [block.conv.kernel_size[0] for block in model.layers] == [3, 5, 3]
    assert model.features(torch.randn(1, 3, 16, 16)).shape[-1] == 4


def test_an_unknown_setting_of_a_layer_is_named():
    with pytest.raises(ValueError, match=r"layer 2.*kernel"):
        CNN([4, {"channels": 6, "kernel": 5}])


def test_a_network_that_leaves_no_cell_is_refused():
    with pytest.raises(ValueError, match=r"layer 2 .* leaves no cell"):
        CNN([4, 4], image_size=8, kernel_size=7, padding=0)


def test_a_map_keeps_at_least_min_map_cells():
    for size in (8, 28, 32, 128):
        model = CNN([4] * 6, image_size=size, min_map=8)
        assert model.features(torch.randn(1, 3, size, size)).shape[-1] >= 8


def test_the_logits_are_the_classifier_of_the_mean_of_the_features():
    model = CNN([4, 6], 16).eval()
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(model(images), model.classifier(model.features(images).mean((2, 3))))


def test_pooling_first_is_the_documented_order():
    layer = CNN([6], 16, dropout=0.5).layers[0]
    images = torch.randn(5, 3, 16, 16)
    torch.manual_seed(1)
    actual = layer(images)
    torch.manual_seed(1)
    documented = layer.pool(layer.dropout(layer.norm(layer.conv(images)).relu()))
    torch.testing.assert_close(actual, documented)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_residual_layer_with_zeroed_norm_is_its_shortcut(stride):
    layer = CNN([3, 5], 16, stride=stride, residual=True).eval().layers[1]
    zero_(layer.norm)
    images = torch.randn(2, 3, 8, 8)
    thinned = layer.shortcut(images)[..., ::stride, ::stride]  # 1x1: the same before or after
    torch.testing.assert_close(layer(images), layer.pool(thinned.relu()))


def test_gradients_of_a_strided_residual_layer_are_those_in_float64():
    torch.manual_seed(0)
    layer = CNN([32], 128, stride=2, residual=True).layers[0]
    layer.to(memory_format=torch.channels_last)
    images = torch.randn(64, 3, 128, 128)  # sizes at which a strided 1x1 convolution went wrong
    exact = copy.deepcopy(layer).double()
    exact(images.double()).square().mean().backward()
    for _ in range(3):
        layer.zero_grad()
        layer(images).square().mean().backward()
        for ours, theirs in zip(layer.parameters(), exact.parameters(), strict=True):
            error = (ours.grad.double() - theirs.grad).abs().max()
            assert error < 1e-3 * theirs.grad.abs().max()


def test_a_residual_layer_whose_paths_differ_in_size_is_refused():
    with pytest.raises(ValueError, match="padding"):
        CNN([4], residual=True, padding=0)


def test_build_model_depends_on_the_seed_alone_and_leaves_the_global_state():
    state = torch.random.get_rng_state()
    models = [build_model(exercise_1_2.config | {"seed": seed}) for seed in (0, 0, 1)]
    first, again, other = (torch.cat([p.flatten() for p in m.parameters()]) for m in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.random.get_rng_state())


def test_build_model_gives_the_networks_of_the_exercises():
    skip_mlp = build_model(exercise_1_2.config)
    assert [type(block) for block in skip_mlp.blocks] == [SkipBlock, SkipBlock]
    cnn = build_model(exercise_1_3.config)
    assert [block.conv.out_channels for block in cnn.layers] == [64, 128, 256, 128, 64]
    images = torch.randn(1, 3, 128, 128)
    assert build_model(exercise_2_3.config).features(images).shape[2:] == (8, 8)


@pytest.mark.parametrize("residual", [False, True])
def test_folded_norms_change_no_logit(residual):
    model = CNN([8, {"channels": 12, "stride": 2}], image_size=16, residual=residual).double()
    for _ in range(3):
        model(torch.randn(32, 3, 16, 16, dtype=torch.double) * 2 + 1)  # statistics of its own
    for norm in (layer.norm for layer in model.layers):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    images = torch.randn(5, 3, 16, 16, dtype=torch.double)
    folded = fold_norms(model)
    torch.testing.assert_close(folded(images), model.eval()(images), rtol=1e-10, atol=1e-10)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
