"""The depth study: its networks, what it measures of them, and what it leaves behind."""

import json
import math
from pathlib import Path
from statistics import fmean

import pytest
import torch
import tyro

from config import defaults
from dataset import load_datasets
from models import count_parameters
from studies.cells import load_sets, read_cell
from studies.depth import Flags, cell_configs, complete, main, measure_all
from studies.depth_figures import draw_depth, plt
from studies.depth_networks import (
    ARMS,
    DeepMLP,
    build_network,
    gradient_norms,
    layer_parameters,
)
from studies.depth_table import is_clear, last_of, table_of
from studies.depth_training import train_network

CPU = torch.device("cpu")


def config_of(network="mlp", **changes):
    flags = Flags(network=network, dataset="digits", seeds=[0], epochs=1, batch_size=256)
    return defaults | cell_configs(complete(flags))[0] | changes


def one_image():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 64, generator=generator), torch.tensor([3])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder that a small study has left; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("depth") / "mlp"
    main(Flags(dataset="digits", depths=[5], seeds=[0, 1], epochs=1, width=8, out=str(folder)))
    return folder


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_residual_network_with_blocks_at_zero_is_its_first_and_last_layer(batch_norm):
    torch.manual_seed(0)
    model = DeepMLP(64, 16, 12, residual=True, batch_norm=batch_norm).eval()
    images = torch.randn(7, 1, 8, 8)
    ends = torch.nn.Sequential(*model.layers[: 3 if batch_norm else 2], model.last)
    assert not torch.allclose(model(images), ends(images.flatten(1)))
    blocks = [module for module in model.modules() if hasattr(module, "shortcut")]
    for block in blocks:
        torch.nn.init.zeros_(block.block[-1].weight)
        torch.nn.init.zeros_(block.block[-1].bias)
    assert len(blocks) == 5
    assert torch.equal(model(images), ends(images.flatten(1)))


@pytest.mark.parametrize("arm", ["plain", "plain + BatchNorm"])
def test_with_two_layers_plain_and_residual_are_the_same_network(arm):
    plain = build_network(config_of(depth=2), arm).state_dict()
    residual = build_network(config_of(depth=2), arm.replace("plain", "residual")).state_dict()
    assert plain.keys() == residual.keys()
    assert all(torch.equal(plain[name], residual[name]) for name in plain)


@pytest.mark.parametrize("depth", [2, 4, 10, 20])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_arms_of_an_even_depth_have_as_many_layers_and_parameters(depth, batch_norm):
    plain, residual = (
        DeepMLP(784, 64, depth, residual=residual, batch_norm=batch_norm)
        for residual in (False, True)
    )
    assert len(layer_parameters(plain)) == len(layer_parameters(residual)) == depth
    assert count_parameters(plain) == count_parameters(residual)


def test_an_odd_depth_leaves_the_residual_network_one_layer_less():
    assert len(layer_parameters(DeepMLP(64, 8, 5))) == 5
    assert len(layer_parameters(DeepMLP(64, 8, 5, residual=True))) == 4


@pytest.mark.parametrize("he, factor", [(False, math.sqrt(1 / 6)), (True, 1.0)])
def test_the_gradient_changes_per_relu_layer_by_the_factor_of_its_initialisation(he, factor):
    """n weights of variance v and ReLU multiply the gradient's squared norm by n v / 2 on average,
    1/6 for v = 1 / (3 n) and 1 for v = 2 / n, with a relative variance of 5 / n: 2 / n from the
    weights and 3 / n from which half of the units passes. So the logarithm of the norm changes by
    log(factor) - 5 / (4 n) a layer, and the mean of k layers deviates by sqrt(5 / (4 n k)).
    """
    width, depth, networks = 64, 21, 6
    changes = []
    for seed in range(networks):
        torch.manual_seed(seed)
        biases = gradient_norms(DeepMLP(64, width, depth, he=he), *one_image())["biases"]
        changes.append(math.log(biases[1] / biases[-2]) / (depth - 3))
    found = sum(changes) / networks
    deviation = math.sqrt(5 / (4 * width * (depth - 3) * networks))
    assert abs(found - (math.log(factor) - 5 / (4 * width))) < 4 * deviation
    assert 4 * deviation < 0.06  # so the bound tells 0.408 from 1 and from 0.5


def test_a_gradient_whose_square_underflows_in_float32_is_measured():
    torch.manual_seed(0)
    norms = gradient_norms(DeepMLP(64, 64, 80), *one_image())["weights"]
    assert len(norms) == 80
    assert 1e-38 < norms[0] < 1e-25
    assert norms[0] < norms[40] < norms[79]


def test_norms_are_those_of_the_layers_in_order_and_leave_the_model_as_it_was():
    torch.manual_seed(0)
    model = DeepMLP(64, 16, 6, residual=True, batch_norm=True).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, labels = torch.randn(9, 64), torch.arange(9)
    norms = gradient_norms(model, images, labels)
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    torch.nn.functional.cross_entropy(model.train()(images), labels).backward()
    first, second = model.layers[0], model.layers[3].block[0]
    assert norms["weights"][0] == pytest.approx(first.weight.grad.norm().item(), rel=1e-4)
    assert norms["weights"][1] == pytest.approx(second.weight.grad.norm().item(), rel=1e-4)
    norm_of_first, last = model.layers[1], model.last
    assert norms["biases"][0] == pytest.approx(norm_of_first.bias.grad.norm().item(), rel=1e-4)
    assert norms["biases"][5] == pytest.approx(last.bias.grad.norm().item(), rel=1e-4)


def test_he_draws_weights_of_variance_two_over_fan_in_and_no_bias():
    torch.manual_seed(0)
    model = DeepMLP(784, 64, 3, he=True)
    for weight, bias in layer_parameters(model)[:2]:
        deviations = weight.var().item() * weight.shape[1] / 2 - 1
        assert abs(deviations) < 5 * math.sqrt(2 / weight.numel())  # of a Gaussian's variance
        assert not bias.any()


def batches_seen(arm, seed):
    config = config_of(depth=4, epochs=2, seed=seed)
    train_set, val_set, _ = load_datasets(config)
    model, seen = build_network(config, arm), []

    def note(module, inputs):
        if module.training:
            seen.append(inputs[0].clone())

    model.register_forward_pre_hook(note)
    train_network(model, train_set, val_set, config, CPU)
    return seen


def test_arms_of_a_seed_see_the_same_batches_in_the_same_order():
    plain, residual, other = (
        batches_seen("plain", 0),
        batches_seen("residual + BatchNorm", 0),
        batches_seen("plain", 1),
    )
    assert len(plain) == len(residual) == 12
    assert all(map(torch.equal, plain, residual))
    assert not torch.equal(plain[0], plain[6]) and not torch.equal(plain[0], other[0])


def test_the_images_of_a_seed_are_drawn_once_for_all_arms():
    (one, val), (again, _) = (
        load_sets(config_of(images=100, arm=arm, depth=depth), CPU)
        for arm, depth in (("plain", 2), ("residual", 5))
    )
    other, _ = load_sets(config_of(images=100, seed=1), CPU)
    assert len(one) == 100 and len(val) == 144
    assert torch.equal(one.images, again.images) and not torch.equal(one.images, other.images)


def test_a_cell_that_is_there_is_not_trained_again(tmp_path, capsys):
    configs = cell_configs(complete(Flags(dataset="digits", depths=[2], seeds=[0], epochs=1)))
    cells = measure_all(configs, tmp_path, "data", CPU)
    assert len(cells) == 6 and " 6 of 6:" in capsys.readouterr().out.replace("\n", " ")
    path = tmp_path / "plain-he-batchnorm-2-seed-0.json"
    whole = path.read_text()
    path.write_text(whole.replace(cells[4]["commit"], "another"))
    assert measure_all(configs, tmp_path, "data", CPU)[4] == cells[4] | {"commit": "another"}
    assert not capsys.readouterr().out
    path.write_text(whole[: len(whole) // 2])
    again = measure_all(configs, tmp_path, "data", CPU)  # the one that is no longer whole
    assert capsys.readouterr().out.count(" of 6:") == 1
    assert again[4] | {"seconds": 0} == cells[4] | {"seconds": 0}
    assert read_cell(path, configs[4]) == again[4]
    for other in ({"lr": 0.5}, {"width": 65}, {"arm": "plain"}):
        assert read_cell(path, configs[4] | other) is None


@pytest.mark.figures
def test_redrawing_changes_no_byte(study):
    before = files_of(study)
    assert set(before) == {
        "results.json",
        "depth.txt",
        *(f"{name}.{kind}" for name in ("depth", "gradients-5") for kind in ("png", "svg")),
    }
    for name in before.keys() - {"results.json"}:
        (study / name).unlink()
    main(Flags(redraw=str(study)))
    assert files_of(study) == before


def test_the_table_is_at_most_80_columns_wide_also_at_the_largest_depth(study):
    results = json.loads((study / "results.json").read_text())
    results["settings"]["depths"] = [80]
    for cell in results["cells"]:
        cell["config"]["depth"], cell["layers"], cell["parameters"] = 80, 80, 1_234_567
    assert 60 < max(map(len, table_of(results).splitlines())) <= 80


def test_results_say_what_made_them_and_hold_every_seed(study):
    results = json.loads((study / "results.json").read_text())
    assert {"command", "commit", "machine", "torch", "threads", "seconds"} <= results.keys()
    found = [(cell["config"]["arm"], cell["config"]["seed"]) for cell in results["cells"]]
    assert found == [(arm, seed) for seed in (0, 1) for arm in ARMS["mlp"]]
    for cell in results["cells"]:
        assert {len(n) for when in cell["gradients"].values() for n in when.values()} == {
            cell["layers"]
        }
        assert cell["gradients"]["init"] != cell["gradients"]["trained"]
        assert cell["largest_class"] > 0.1  # of ten


def test_the_line_of_an_arm_is_the_mean_of_its_seeds(study):
    results = json.loads((study / "results.json").read_text())
    accuracy = draw_depth(results).axes[0]
    expected = fmean(last_of(results, "plain", 5, "val/accuracy"))
    assert accuracy.lines[0].get_ydata() == pytest.approx([expected])
    plt.close(accuracy.figure)


def test_a_loss_that_is_not_finite_ends_its_cell_and_is_told(tmp_path, study):
    settings = complete(Flags(dataset="digits", depths=[2], seeds=[0], epochs=3, lr=1e37))
    cells = measure_all(cell_configs(settings), tmp_path, "data", CPU)
    assert [len(cell["history"]) for cell in cells] == 6 * [1]
    assert cells[0]["history"][0]["train/loss"] is None
    about = json.loads((study / "results.json").read_text())
    results = about | {"settings": settings, "cells": cells}
    assert table_of(results).count("not finite") == 6
    accuracy = draw_depth(results).axes[0]
    assert accuracy.get_ylabel() == "validation accuracy"
    plt.close(accuracy.figure)


def test_a_difference_is_clear_where_its_interval_leaves_zero_out():
    assert is_clear([1.0, 1.1, 1.2]) and is_clear([-1.0, -1.1, -1.2])
    assert not is_clear([0.3, 1.0, 2.0])  # 4.303 deviations of the mean, not 1.96
    assert not is_clear([0.5, 1.0, 1.7])  # whose mean is 3.06 of them
    assert not is_clear([0.0, 0.0, 0.0]) and not is_clear([5.0])


def test_the_cnn_leaves_results_table_and_figures():
    main(Flags(network="cnn", dataset="digits", depths=[3], seeds=[0], epochs=1, images=100))
    folder = Path("runs/depth/cnn")  # results/ is for the study on its own data
    cells = json.loads((folder / "results.json").read_text())["cells"]
    assert [cell["config"]["arm"] for cell in cells] == ["plain", "residual"]
    assert [cell["layers"] for cell in cells] == [4, 4]  # three convolutions and the classifier
    assert {"depth.txt", "depth.svg", "gradients-3.png"} <= files_of(folder).keys()


def test_the_command_line_measures_the_stall_with_and_without_dropout(forks):
    words = "--network stall --dataset digits --epochs 2 --seeds 0 --images 200 --out here"
    child = forks.start("studies/depth.py", *words.split())
    assert child.wait() == 0, child.err
    results = json.loads(Path("here/results.json").read_text())
    assert results["command"] == f"python -m studies.depth {words}"
    assert [cell["config"]["arm"] for cell in results["cells"]] == ["dropout 0.5", "no dropout"]
    for cell in results["cells"]:
        trained, still = (
            cell["history"][-1][f"{split}/loss"] for split in ("train", "train_without_dropout")
        )
        assert len(cell["history"]) == 2 and still < trained
    assert "training, dropout off" in child.out and Path("here/curves.svg").is_file()


@pytest.mark.parametrize(
    "words, message",
    [
        ("--depths 1", "--depths must be a list of whole numbers from 2"),
        ("--seeds 0 0", "--seeds must be one number or several different ones, got [0, 0]"),
        ("--epochs 0", "--epochs must be a whole number from 1"),
        ("--lr -1", "--lr must be a number above 0, got -1.0"),
        ("--network stall --width 9", "leave out --depths and --width"),
        ("--redraw nowhere", "--redraw nowhere: no results.json there"),
    ],
)
def test_what_is_wrong_ends_in_one_line_and_writes_nothing(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(tyro.cli(Flags, args=words.split()))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(Path().iterdir())


def test_a_damaged_results_file_is_named(study, tmp_path, capsys):
    (tmp_path / "results.json").write_bytes((study / "results.json").read_bytes()[:1000])
    with pytest.raises(SystemExit):
        main(Flags(redraw=str(tmp_path)))
    assert "results.json is not what the study wrote" in capsys.readouterr().err
