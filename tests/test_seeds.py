"""Seeds trained at once are the runs of each seed, within rounding."""

import contextlib
import gc
import io
from pathlib import Path

import pytest
import torch

import exercise_1_1
import exercise_1_3
import experiment
import seeds
from checkpoint import load_checkpoint
from config import complete_config
from dataset import ImageDataset, load_datasets
from loss import mean_losses
from models import build_model
from optimisation import make_optimizer
from seeds import Stack, train_seeds
from training import train

SKIP_MLP = {"kind": "skip_mlp", "layers": [64, 16, 8, 10], "dropout": 0.0}


def folders_of(config, seeds, tmp_path):
    return [
        complete_config(config | {"seed": seed, "run_dir": str(tmp_path / f"seed_{seed}")})
        for seed in seeds
    ]


def train_alone(config, tmp_path):
    config = config | {"run_dir": str(tmp_path / f"alone_{config['seed']}")}
    train_set, val_set, _ = load_datasets(config)
    train(build_model(config), train_set, val_set, config)
    return load_checkpoint(Path(config["run_dir"]) / "checkpoints" / "last.pt")


def test_a_stack_computes_what_its_networks_compute(digits_config):
    models = [build_model(digits_config | {"seed": seed}) for seed in range(3)]
    images = torch.randn(3, 5, 1, 8, 8)
    expected = torch.stack([model(x) for model, x in zip(models, images, strict=True)])
    torch.testing.assert_close(Stack(models)(images), expected)


def test_the_losses_of_a_stack_are_those_of_its_batches_for_labels_and_for_probabilities():
    logits, labels = torch.randn(3, 5, 4), torch.randint(4, (3, 5))
    for targets in (labels, torch.rand(3, 5, 4).softmax(2)):
        expected = [mean_losses(*one, 0.1) for one in zip(logits, targets, strict=True)]
        found = mean_losses(logits, targets, 0.1)
        torch.testing.assert_close(found, torch.stack(expected))


def test_a_seed_lets_its_images_and_network_go_before_the_next_begins(digits_config, monkeypatch):
    run_one, alive = experiment.run_one, []

    def counted(*given):
        gc.collect()
        alive.append(sum(type(thing) is ImageDataset for thing in gc.get_objects()))
        return run_one(*given)

    monkeypatch.setattr(experiment, "run_one", counted)
    model = exercise_1_3.config["model"] | {"layers": [4]}
    with contextlib.redirect_stdout(io.StringIO()):  # a W&B of another test may keep who prints
        exercise_1_3.main(digits_config | {"model": model, "seeds": [0, 1]})
    assert len(alive) == 2 and len(set(alive)) == 1


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_five_epochs_of_two_seeds_are_those_of_the_single_runs(digits_config, tmp_path, optimizer):
    changes = {"model": SKIP_MLP, "epochs": 5, "optimizer": optimizer, "schedule": "one_cycle"}
    changes |= {"shift": 1, "batch_size": 60, "label_smoothing": 0.2}
    configs = folders_of(digits_config | changes, [0, 3], tmp_path)
    train_seeds(configs)  # 110 steps
    for config in configs:
        together = load_checkpoint(Path(config["run_dir"]) / "checkpoints" / "last.pt")
        alone = train_alone(config, tmp_path)
        for name, weights in alone["model"].items():
            torch.testing.assert_close(together["model"][name], weights, atol=2e-4, rtol=1e-3)
        for ours, theirs in zip(together["history"], alone["history"], strict=True):
            assert ours["train/lr"] == theirs["train/lr"]
            for split in ("train", "val"):
                loss, accuracy = f"{split}/loss", f"{split}/accuracy"
                assert ours[loss] == pytest.approx(theirs[loss], rel=1e-4)
                assert ours[accuracy] == pytest.approx(theirs[accuracy], abs=0.008)  # one of 144


def test_the_comparison_sees_the_order_of_another_seed(digits_config, tmp_path):
    configs = folders_of(digits_config, [0, 1], tmp_path)
    train_seeds(configs)
    together = load_checkpoint(Path(configs[1]["run_dir"]) / "checkpoints" / "last.pt")
    alone = train_alone(configs[0], tmp_path)
    assert together["history"][0]["train/loss"] != pytest.approx(
        alone["history"][0]["train/loss"], rel=1e-4
    )


def test_a_seed_trained_with_others_goes_on_alone(digits_config, tmp_path):
    config = digits_config | {"epochs": 3}
    configs = folders_of(config, [0, 1], tmp_path)
    train_seeds([c | {"epochs": 2} for c in configs])
    straight = train_alone(configs[1], tmp_path)
    folder = configs[1]["run_dir"]
    train_set, val_set, _ = load_datasets(configs[1])
    train(build_model(configs[1]), train_set, val_set, configs[1] | {"resume": folder})
    resumed = load_checkpoint(Path(folder) / "checkpoints" / "last.pt")
    assert resumed["epoch"] == 3
    assert resumed["history"][2]["train/loss"] == pytest.approx(
        straight["history"][2]["train/loss"], rel=1e-4
    )


def test_a_seed_with_dropout_is_the_same_alone_and_among_others(digits_config, tmp_path):
    config = digits_config | {"model": SKIP_MLP | {"dropout": 0.5}}
    several = config | {"seeds": [1, 0], "run_dir": str(tmp_path / "many"), "epochs": 2}
    among = exercise_1_1.main(several)["runs"][1]
    alone = exercise_1_1.main(config | {"seed": 0, "run_dir": str(tmp_path / "one"), "epochs": 2})
    assert among["config"]["seed"] == 0
    assert among["test"]["loss"] == alone["test"]["loss"]
    assert among["test"]["confusion"].equal(alone["test"]["confusion"])


def test_where_one_seed_diverges_all_stand_where_they_were_before_that_epoch(
    digits_config, tmp_path, monkeypatch
):
    configs = folders_of(digits_config | {"epochs": 3}, [0, 1], tmp_path)
    make, taken = seeds.stacked_step, []

    def breaking(*arguments):
        step = make(*arguments)

        def broken(images, labels):
            taken.append(None)
            return step(images * (torch.nan if len(taken) == 30 else 1), labels)

        return broken

    monkeypatch.setattr(seeds, "stacked_step", breaking)
    with pytest.raises(ValueError, match="the loss of seed 0 is nan in epoch 2"):
        train_seeds(configs)
    for config in configs:
        state = load_checkpoint(Path(config["run_dir"]) / "checkpoints" / "last.pt")
        assert state["epoch"] == len(state["history"]) == 1


def test_a_step_of_a_stack_whose_loss_is_not_finite_moves_nothing(digits_config):
    config = complete_config(digits_config)
    stack = Stack([build_model(config | {"seed": seed}) for seed in (0, 1)])
    step = seeds.stacked_step(stack, make_optimizer(stack, config), config, [None, None])
    images, labels = torch.randn(2, 20, 1, 8, 8), torch.arange(40).view(2, 20) % 10
    images[1, 3] = torch.nan
    before = [weights.clone() for weights in stack.parameters()]
    losses, _ = step(images, labels)
    assert losses.isfinite().tolist() == [True, False]
    assert all(map(torch.equal, before, stack.parameters()))


def test_networks_that_keep_statistics_or_draw_are_trained_one_by_one(digits_config, monkeypatch):
    config = complete_config(digits_config)
    assert seeds.can_stack(config)
    for layer in (torch.nn.BatchNorm1d(64), torch.nn.Dropout(0.1)):  # added by hand, in models.py

        def built(config, layer=layer):
            return torch.nn.Sequential(build_model(config), layer)

        monkeypatch.setattr(seeds, "build_model", built)
        assert not seeds.can_stack(config)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stack_computes_in_the_precision_that_is_asked_for(
    digits_config, tmp_path, monkeypatch, precision
):
    seen, forward = set(), Stack.forward

    def noted(stack, images):
        logits = forward(stack, images)
        seen.add(logits.dtype)
        return logits

    monkeypatch.setattr(Stack, "forward", noted)
    train_seeds(folders_of(digits_config | {"precision": precision}, [0, 1], tmp_path))
    assert seen == {getattr(torch, precision)}


def test_seeds_whose_images_do_not_fit_side_by_side_are_trained_one_by_one(
    digits_config, monkeypatch
):
    monkeypatch.setattr(seeds, "memory_bytes", lambda: 2**10)
    monkeypatch.setattr(seeds, "train_stack", None)
    results = exercise_1_1.main(digits_config | {"seeds": [0, 1]})
    assert [run["epochs"] for run in results["runs"]] == [1, 1]
