"""A network that learns the answers of another one, which never saw what is held out."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import on_digits
from torch.nn import functional as F

import exercise_1_1
from checkpoint import load_checkpoint, load_model
from config import complete_config
from dataset import batches, load_datasets
from models import build_model
from optimisation import make_optimizer
from seeds import train_seeds
from steps import plain_step
from teacher import load_teacher
from training import train

CPU = torch.device("cpu")


def last(folder):
    return load_checkpoint(Path(folder) / "checkpoints" / "last.pt")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """The folder of two teachers, of the seeds 0 and 3."""
    folder = tmp_path_factory.mktemp("trained") / "teachers"
    exercise_1_1.main(on_digits(folder) | {"seeds": [0, 3], "epochs": 3, "shift": 1})
    return folder


@pytest.fixture
def taught(digits_config, teachers, tmp_path):
    """A config that names a copy of them."""
    shutil.copytree(teachers, tmp_path / "teachers")
    small = {"model": {"kind": "mlp", "layers": [64, 16, 10]}, "shift": 1}
    return digits_config | small | {"teacher": str(tmp_path / "teachers")}


def test_a_teacher_that_says_the_labels_is_the_plain_step(digits_config):
    config = complete_config(digits_config)
    images, labels = torch.randn(20, 1, 8, 8), torch.arange(20) % 10
    weights = []
    for teacher in (None, lambda _: F.one_hot(labels, 10).float()):
        model = build_model(config)
        step = plain_step(model, make_optimizer(model, config), config, teacher)
        loss, correct = step(images, labels)
        weights.append([loss, correct, *model.parameters()])
    for plain, shown in zip(*weights, strict=True):
        torch.testing.assert_close(plain, shown)


def test_what_is_learnt_are_the_probabilities_of_the_teacher_of_its_seed(taught):
    config = complete_config(taught | {"seed": 3})
    train_set = load_datasets(config)[0]
    images, labels = next(batches(train_set, config, 1))
    teacher, _ = load_model(Path(config["teacher"]) / "seed_3" / "checkpoints" / "best.pt")
    targets = teacher(images).softmax(1).detach()
    assert not torch.equal(targets.argmax(1), labels)  # it errs, and its errors are learnt, too
    model = build_model(config)
    expected = -(targets * model(images).log_softmax(1)).sum(1).mean()
    step = plain_step(
        model, make_optimizer(model, config), config, load_teacher(config, train_set.about(), CPU)
    )
    loss, _ = step(images, labels)
    torch.testing.assert_close(loss, expected.detach())
    assert not load_teacher(config, train_set.about(), CPU)(images).requires_grad


def test_seeds_that_are_taught_at_once_are_those_of_the_single_runs(taught, tmp_path):
    configs = [
        complete_config(taught | {"seed": seed, "epochs": 3, "run_dir": str(tmp_path / f"s{seed}")})
        for seed in (0, 3)
    ]
    train_seeds(configs)
    for config in configs:
        single = config | {"run_dir": str(tmp_path / f"alone_{config['seed']}")}
        train(build_model(single), *load_datasets(single)[:2], single)
        together, alone = last(config["run_dir"]), last(single["run_dir"])
        for name, weights in alone["model"].items():
            torch.testing.assert_close(together["model"][name], weights, atol=2e-4, rtol=1e-3)
        untaught = single | {"run_dir": f"{single['run_dir']}_untaught", "teacher": "none"}
        train(build_model(untaught), *load_datasets(untaught)[:2], untaught)
        losses = [last(run["run_dir"])["history"][-1]["val/loss"] for run in (single, untaught)]
        assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_a_run_that_is_taught_resumes_bit_for_bit(taught, tmp_path):
    whole = taught | {"epochs": 2, "run_dir": str(tmp_path / "whole")}
    exercise_1_1.main(whole)
    parts = taught | {"epochs": 1, "run_dir": str(tmp_path / "parts")}
    exercise_1_1.main(parts)
    exercise_1_1.main(parts | {"epochs": 2, "resume": parts["run_dir"]})
    for name, weights in last(whole["run_dir"])["model"].items():
        assert torch.equal(weights, last(parts["run_dir"])["model"][name])


@pytest.mark.parametrize("changes", [{"val_fraction": 0.2}, {"seed": 3, "teacher": "seed_0"}])
def test_a_teacher_that_may_have_seen_what_is_held_out_is_refused(taught, tmp_path, changes):
    if "teacher" in changes:
        changes = changes | {"teacher": f"{taught['teacher']}/seed_0"}
    with pytest.raises(ValueError, match=r"teachers/seed_0.* other images .*--val_fraction"):
        exercise_1_1.main(taught | changes)
    assert not Path(taught["run_dir"]).exists()


def test_a_teacher_that_is_not_there_is_missed_before_anything_is_written(taught):
    for teacher, reason in (
        ("nobody", "no checkpoint at nobody"),
        (taught["teacher"], "has no seed 7"),
        (str(Path(taught["teacher"]).parent), "no run, it holds some"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=f"--teacher {teacher}.*{reason}"):
            exercise_1_1.main(taught | {"teacher": teacher, "seed": 7})
        assert not Path(taught["run_dir"]).exists()


def test_every_seed_needs_a_teacher_of_its_own_before_the_first_is_trained(taught):
    cnn = {"model": {"kind": "cnn", "layers": [4]}, "seeds": [0, 7]}
    for teacher, said in (("", "has no seed 7"), ("/seed_0", "is of one seed")):
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            exercise_1_1.main(taught | cnn | {"teacher": taught["teacher"] + teacher})
        assert not Path(taught["run_dir"]).exists()


def test_a_teacher_that_does_not_take_the_crops_is_refused(taught):
    crops = {"model": {"kind": "cnn", "layers": [4]}, "crop": 0.5, "crop_size": 6}
    with pytest.raises(ValueError, match=r"seed_0.* does not take crops of 6 pixels"):
        exercise_1_1.main(taught | crops)
    assert not Path(taught["run_dir"]).exists()


def test_a_resumed_run_keeps_its_teacher_wherever_that_lies(taught, tmp_path):
    exercise_1_1.main(taught)
    resumed = taught | {"epochs": 2, "resume": taught["run_dir"]}
    for other in ("none", f"{taught['teacher']}/seed_0/checkpoints/previous.pt"):
        with pytest.raises(ValueError, match=r"--teacher .* is not what the run began with"):
            exercise_1_1.main(resumed | {"teacher": other})
    Path(taught["teacher"]).rename(tmp_path / "moved")
    assert exercise_1_1.main(resumed | {"teacher": str(tmp_path / "moved")})["epochs"] == 2


def test_a_run_that_began_without_a_teacher_goes_on_without(taught):
    alone = taught | {"teacher": "none"}
    exercise_1_1.main(alone)
    with pytest.raises(ValueError, match="is not what the run began with"):
        exercise_1_1.main(alone | taught | {"epochs": 2, "resume": taught["run_dir"]})


def test_a_teacher_that_knows_the_test_images_of_imagenette_is_refused(taught, monkeypatch):
    config = complete_config(taught)
    about = load_datasets(config)[0].about()
    state = load_checkpoint(Path(config["teacher"]) / "seed_0" / "checkpoints" / "best.pt")
    state["config"]["model"] |= {"pretrained": True}
    monkeypatch.setattr("teacher.load_checkpoint", lambda path: state)
    with pytest.raises(ValueError, match=r"began with weights of ImageNet"):
        load_teacher(config | {"dataset": "imagenette"}, about, CPU)
