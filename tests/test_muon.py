"""Muon and the whitened first layer, against torch, linear algebra and what they promise."""

import copy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import exercise_1_3
from checkpoint import load_checkpoint, save_checkpoint
from checks import check_config
from config import complete_config
from models import CNN, build_model, whiten
from optimisation import STEP_OF_A_KERNEL, make_optimizer, orthogonalise
from steps import plain_step

MUON = {"optimizer": "muon", "lr": 0.01, "momentum": 0.6, "weight_decay": 0.01}


def parts_of(lr=0.01, layers=(6, 8), **changes):
    torch.manual_seed(0)
    model = CNN(layers, image_size=8, num_classes=3)
    config = complete_config(
        {"model": {"kind": "cnn", "layers": list(layers)}, "dataset": "digits", "batch_size": 8}
        | {"epochs": 1, **MUON, "lr": lr, **changes}
    )
    return model, make_optimizer(model, config), config


def some_batch():
    return torch.randn(8, 3, 8, 8), torch.arange(8) % 3


def kernels_of(model):
    return [weight for weight in model.parameters() if weight.ndim == 4]


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (16, 16)])
def test_orthogonalise_keeps_the_singular_vectors_and_brings_the_values_near_one(shape):
    torch.manual_seed(0)
    left, values, right = torch.linalg.svd(torch.randn(shape).double(), full_matrices=False)
    values = values.clamp(min=values[0] / 50)
    ours = left.T @ orthogonalise(left @ values.diag() @ right) @ right.T
    torch.testing.assert_close(ours, ours.diag().diag(), atol=1e-9, rtol=0)
    assert 0.6 < ours.diag().min() < ours.diag().max() < 1.25


def test_orthogonalise_is_the_iteration_of_torch():
    torch.manual_seed(0)
    matrix = torch.randn(8, 30)
    theirs = torch.optim._muon._zeropower_via_newtonschulz(matrix, (3.4445, -4.775, 2.0315), 5, 0.0)
    torch.testing.assert_close(orthogonalise(matrix), theirs.float(), atol=0.03, rtol=0)  # bfloat16


def test_a_step_is_that_of_torch_on_the_sphere(monkeypatch):
    exact = lambda matrix, *_: orthogonalise(matrix)  # noqa: E731
    monkeypatch.setattr(torch.optim._muon, "_zeropower_via_newtonschulz", exact)
    model, optimizer, _ = parts_of(lr=1e-3)
    optimizer.found_inf = torch.zeros(())
    kernels = kernels_of(model)
    matrices = [torch.nn.Parameter(kernel.detach().flatten(1).clone()) for kernel in kernels]
    torchs = torch.optim.Muon(matrices, lr=1.0, weight_decay=0.0, momentum=0.6, nesterov=True)
    for _ in range(3):  # each with a gradient of its own
        starts = [kernel.detach().clone() for kernel in kernels]
        for kernel, matrix in zip(kernels, matrices, strict=True):
            kernel.grad = torch.randn_like(kernel)
            matrix.data, matrix.grad = torch.zeros_like(matrix), kernel.grad.flatten(1)
        optimizer.step()
        torchs.step()
        for kernel, start, matrix in zip(kernels, starts, matrices, strict=True):
            length, step = start.norm(), matrix.detach().view_as(kernel)
            moved = start + 1e-3 * STEP_OF_A_KERNEL * length * step / step.norm()
            torch.testing.assert_close(kernel.detach(), moved * length / moved.norm())


def test_a_kernel_keeps_its_length_and_follows_no_scale_of_its_gradient():
    results = []
    for scale in (1.0, 1000.0):
        model, optimizer, _ = parts_of()
        lengths = [kernel.norm().item() for kernel in kernels_of(model)]
        for kernel in kernels_of(model):
            kernel.grad = scale * torch.randn(kernel.shape, generator=torch.manual_seed(1))
        optimizer.found_inf = torch.zeros(())
        optimizer.step()
        assert [k.norm().item() for k in kernels_of(model)] == pytest.approx(lengths, rel=1e-5)
        results.append(kernels_of(model))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_all_other_weights_take_the_steps_of_adamw():
    model, optimizer, _ = parts_of()
    twin = copy.deepcopy(model)
    others = [weight for weight in twin.parameters() if weight.ndim < 4]
    adamw = torch.optim.AdamW(others, lr=0.01, weight_decay=0.01)
    for _ in range(3):
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.clone()
        optimizer.found_inf = torch.zeros(())
        optimizer.step()
        adamw.step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        if ours.ndim < 4:
            torch.testing.assert_close(ours, theirs)


def test_a_step_whose_loss_is_not_finite_moves_nothing():
    model, optimizer, config = parts_of()
    step = plain_step(model, optimizer, config)
    images, labels = some_batch()
    step(images, labels)
    before = copy.deepcopy(list(model.parameters()))
    step(images * float("nan"), labels)
    for weight, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(weight, old)


def test_muon_is_refused_for_a_network_without_kernels(digits_config):
    with pytest.raises(ValueError, match=r"optimizer 'muon'.*'mlp'.*--optimizer adamw"):
        check_config(digits_config | {"optimizer": "muon"})


def test_a_whitened_layer_makes_patches_uncorrelated_with_deviation_one():
    torch.manual_seed(0)
    images = 10 * F.avg_pool2d(torch.randn(50, 3, 20, 20), 3, stride=1)  # neighbours are alike
    images[:, 1] += images[:, 0]
    model = CNN([4], image_size=18, whiten=True)
    whiten(model, images)
    values = model.layers[0].conv(images).transpose(0, 1).flatten(1)
    assert len(values) == 24
    torch.testing.assert_close(values[12:], -values[:12])
    covariance = torch.cov(values[:12])
    variances = covariance.diag()
    torch.testing.assert_close(covariance, variances.diag(), atol=1e-3, rtol=0)
    assert 0.99 < variances.min() < variances.max() < 1.001


def test_whitening_does_not_blow_up_noise_that_hardly_varies():
    model = CNN([4], image_size=8, in_channels=1, num_classes=3, whiten=True)
    grey = torch.randn(500, 1, 1, 1).expand(-1, -1, 8, 8)
    images = grey + 1e-3 * torch.randn(500, 1, 8, 8)
    whiten(model, images)
    deviations = model.layers[0].conv(images).std((0, 2, 3))[:4].sort()[0]
    assert deviations[3] == pytest.approx(1, abs=0.05)  # the shade of the picture
    assert deviations[:3].max() < 0.1  # of noise that would be 1, too


def test_training_leaves_the_whitened_kernels_alone(everything_config):
    from test_training import run

    from dataset import load_datasets

    config = everything_config | MUON | {"epochs": 1}
    config["model"] = config["model"] | {"whiten": True}
    model, state, *_ = run(config)
    expected = build_model(config)
    train_set, *_ = load_datasets(config)
    whiten(expected, train_set.normalise(train_set.images[::2]))
    assert len(train_set) // 2 <= 1000 < len(train_set)
    kernels = expected.layers[0].conv.weight
    assert torch.equal(model.layers[0].conv.weight, kernels)
    assert torch.equal(state["model"]["layers.0.conv.weight"], kernels)


def test_a_run_that_stopped_before_its_first_step_goes_on(digits_config):
    config = digits_config | MUON | {"model": {"kind": "cnn", "layers": [4]}, "epochs": 1}
    exercise_1_3.main(config)
    checkpoints = Path(config["run_dir"]) / "checkpoints"
    straight = load_checkpoint(checkpoints / "last.pt")["model"]
    start = load_checkpoint(checkpoints / "previous.pt")
    assert start["epoch"] == 0
    start["optimizer"]["state"] = {}  # as older runs left it
    save_checkpoint(checkpoints / "last.pt", start)
    for name in ("best.pt", "previous.pt"):
        (checkpoints / name).unlink()
    exercise_1_3.main(config | {"resume": config["run_dir"]})
    for name, weights in load_checkpoint(checkpoints / "last.pt")["model"].items():
        assert torch.equal(weights, straight[name])
