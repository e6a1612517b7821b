"""The step as one call is the plain step; what it leaves behind is the same."""

import contextlib
import copy
from functools import partial

import pytest
import torch

import compiled
from compiled import (
    GraphedStep,
    cache_key,
    choose_compiled,
    make_step,
    prepare_state,
    trace,
    traceable_step,
    unchanged,
)
from config import complete_config
from models import MLP, build_model
from optimisation import make_optimizer
from steps import plain_step

CNN = {"kind": "cnn", "layers": [4, 8], "dropout": 0.5}


def parts_of(config, device="cpu"):
    config = complete_config(config)
    model = build_model(config).to(device).train()
    optimizer = make_optimizer(model, config)
    return model, optimizer, plain_step(model, optimizer, config)


def batch(size=16, device="cpu"):
    generator = torch.Generator().manual_seed(size)
    images = torch.randn(size, 1, 8, 8, generator=generator)
    return images.to(device), torch.arange(size, device=device) % 10


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_step_that_is_compiled_is_the_plain_step_with_every_setting(digits_config, optimizer):
    config = digits_config | {"optimizer": optimizer, "weight_decay": 0.1, "label_smoothing": 0.3}
    model, _, plain = parts_of(config)
    twin, twin_opt, _ = parts_of(config)
    states, group = prepare_state(twin_opt), twin_opt.param_groups[0]
    beta1, beta2 = group["betas"]
    scalars = [torch.tensor([group["lr"], 1 - beta1**n, 1 - beta2**n]) for n in (1, 2, 3)]
    step = traceable_step(twin, group, config)
    traced = trace(step, (*states, scalars[0], *batch()))  # what is compiled from here on
    for these in scalars:
        expected = plain(*batch())
        with torch.no_grad():
            found = traced(*states, these, *batch())
        torch.testing.assert_close(found, expected)
    for ours, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def key_of(config, size=16):
    """What the step of this config is kept under."""
    model, optimizer, _ = parts_of(config)
    step = traceable_step(model, optimizer.param_groups[0], complete_config(config))
    arguments = (*prepare_state(optimizer), torch.ones(3), *batch(size))
    return cache_key(trace(step, arguments), arguments)


def test_a_step_that_was_compiled_for_another_loss_or_network_is_not_taken(
    digits_config, monkeypatch
):
    config = digits_config | {"optimizer": "adamw"}
    key, keys = key_of(config), [key_of(config, 8)]
    assert key_of(config | {"lr": 0.5, "seed": 1, "epochs": 9}) == key
    for change in ({"label_smoothing": 0.1}, {"weight_decay": 0.1}, {"optimizer": "adam"}):
        keys.append(key_of(config | change))
    with monkeypatch.context() as patch:
        patch.setattr(MLP, "forward", lambda self, images: self.layers(images.flatten(1)).sin())
        keys.append(key_of(config))
    for weight in (0.5, 0.25):
        weights = torch.full((16,), weight)  # a constant of the graph
        loss = partial(torch.nn.functional.cross_entropy, reduction="none")
        monkeypatch.setattr(
            compiled, "mean_losses", lambda x, y, _, w=weights, loss=loss: (w * loss(x, y)).mean()
        )
        keys.append(key_of(config))
    assert len({key, *keys}) == 8


@pytest.mark.parametrize("error", [RuntimeError("no header\nin 30 lines"), AssertionError()])
def test_where_compiling_fails_the_plain_step_is_taken(digits_config, monkeypatch, capsys, error):
    config = complete_config(digits_config | {"compile": "on", "batch_size": 16})
    model, optimizer, plain = parts_of(config)

    def fail(*_):
        raise error

    monkeypatch.setattr(compiled, "load_or_compile", fail)
    monkeypatch.setattr(compiled.shutil, "which", str)  # as if a compiler were there
    step = make_step(plain, model, optimizer, *batch(), 100, config)
    assert step is plain and config["compile"] == "off"
    reason = str(error).partition("\n")[0] or "AssertionError"
    assert capsys.readouterr().err == f"the plain step is taken, compiling failed: {reason}\n"
    plain(*batch())  # on state that the attempt left behind


@pytest.mark.parametrize(
    ("changes", "said"),
    [({}, "there is no C++ compiler\n"), ({"model": CNN}, None), ({"optimizer": "sgd"}, None)],
)
def test_a_missing_compiler_is_named_where_it_alone_is_missing(
    digits_config, monkeypatch, capsys, changes, said
):
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    config = complete_config(digits_config | changes)
    model = build_model(config)
    assert not choose_compiled(config, model, torch.device("cpu"), 50_000)
    assert capsys.readouterr().err == (f"the plain step is taken: {said}" if said else "")


def test_an_optimizer_that_was_added_is_not_compiled_as_adam(digits_config, monkeypatch):
    monkeypatch.setattr(compiled.shutil, "which", str)  # as if a compiler were there
    config = complete_config(digits_config)
    model = build_model(config)
    for optimizer, compiles in (("adam", True), ("adamw", True), ("adagrad", False)):
        chosen = choose_compiled(
            config | {"optimizer": optimizer}, model, torch.device("cpu"), 50_000
        )
        assert chosen == compiles


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "muon"])
@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("fails", [False, True])  # as a capture may that is given up
def test_steps_taken_inside_unchanged_leave_no_trace(digits_config, optimizer, before, fails):
    model, opt, step = parts_of(digits_config | {"model": CNN, "optimizer": optimizer})
    for _ in range(before):
        step(*batch())
    twin, twin_opt, twin_step = parts_of(digits_config | {"model": CNN, "optimizer": optimizer})
    twin.load_state_dict(model.state_dict())
    twin_opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    with contextlib.suppress(RuntimeError), unchanged(model, opt):
        opt.param_groups[0]["lr"] = 1.0
        step(*batch())
        assert not torch.equal(model.classifier.weight, twin.classifier.weight)
        if fails:
            raise RuntimeError("capture failed")
    for one, other in ((step, twin_step), (twin_step, step)):
        torch.manual_seed(0)
        expected = other(*batch())
        torch.manual_seed(0)
        assert torch.equal(one(*batch())[0], expected[0])
    for ours, theirs in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "muon"])
def test_the_captured_step_is_the_plain_step(digits_config, optimizer):
    config = digits_config | {"optimizer": optimizer, "precision": "float32"}
    config["model"] = CNN | {"dropout": 0.0}
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        model, opt, plain = parts_of(config, "cuda")
        twin, _, twin_plain = parts_of(config, "cuda")
        captured = GraphedStep(plain, model, opt, *batch(device="cuda"))
        for size in (16, 16, 5, 16):  # ragged in between
            loss, hits = captured(*batch(size, "cuda"))
            expected, expected_hits = twin_plain(*batch(size, "cuda"))
            torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
            assert hits == expected_hits
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_captured_step_follows_the_learning_rate(digits_config):
    model, opt, plain = parts_of(digits_config | {"model": CNN}, "cuda")
    captured = GraphedStep(plain, model, opt, *batch(device="cuda"))
    opt.param_groups[0]["lr"] = 0.0
    before = model.classifier.weight.clone()
    captured(*batch(device="cuda"))
    assert torch.equal(model.classifier.weight, before)
    opt.param_groups[0]["lr"] = 0.1
    captured(*batch(device="cuda"))
    assert not torch.equal(model.classifier.weight, before)
