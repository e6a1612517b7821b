"""Each exercise once, end to end, through main(config), on digits."""

import json
from pathlib import Path

import pytest
import torch

import exercise_1_1
import exercise_1_2
import exercise_1_3
import exercise_2_3
from checkpoint import load_checkpoint, save_checkpoint
from experiment import over_seeds

SMALL = {"dataset": "digits", "epochs": 2, "lr": 3e-3, "device": "cpu", "wandb_mode": "disabled"}
SMALL_CNN = exercise_2_3.config["model"] | {"layers": [16, 16]}


def smoke(exercise, run_dir, **changes):
    return exercise.main(exercise.config | SMALL | {"run_dir": str(run_dir)} | changes)


@pytest.mark.parametrize("exercise", [exercise_1_1, exercise_1_2, exercise_1_3, exercise_2_3])
def test_an_exercise_trains_evaluates_and_leaves_its_files(exercise, tmp_path):
    changes = {"model": SMALL_CNN, "lr": 1e-2} if exercise is exercise_2_3 else {}
    results = smoke(exercise, tmp_path / "run", **changes)
    assert results["exercise"] == exercise.__name__
    assert results["test"]["accuracy"] > 0.3  # ten classes: chance is 0.1
    assert sum(map(sum, results["test"]["confusion"].tolist())) == 359
    files = ["config.json", "manifest.json", "metrics.csv", "results.json"]
    files += ["checkpoints/last.pt", "checkpoints/best.pt", "plots/curves.png"]
    files += ["plots/confusion.png"]
    assert [name for name in files if not (tmp_path / "run" / name).is_file()] == []


def test_exercise_2_3_draws_maps_of_every_class_and_again_from_a_checkpoint(tmp_path):
    smoke(exercise_2_3, tmp_path / "run", model=SMALL_CNN)
    pictures = sorted((tmp_path / "run" / "cam").glob("*/sample_*_idx_*.png"))
    assert len(pictures) == 30
    assert (tmp_path / "run" / "cam" / "index.html").is_file()
    best = tmp_path / "run" / "checkpoints" / "best.pt"
    named = exercise_2_3.config["cam"] | {"indices": [5, 7]}
    again = smoke(exercise_2_3, tmp_path / "again", checkpoint=str(best), cam=named)
    trained = json.loads((tmp_path / "run" / "results.json").read_text())
    assert again["test"]["accuracy"] == trained["test"]["accuracy"]
    manifest = json.loads((tmp_path / "again" / "cam" / "manifest.json").read_text())
    assert [row["index"] for row in manifest["images"]] == [5, 7]
    assert manifest["worst_completeness_error"] < 1e-4


def test_a_script_without_its_keys_for_maps_trains_or_says_what_is_missing(tmp_path, monkeypatch):
    kept = {key: value for key, value in exercise_2_3.config.items() if key != "checkpoint"}
    monkeypatch.setattr(exercise_2_3, "config", kept)
    smoke(exercise_2_3, tmp_path / "run", model=SMALL_CNN, epochs=1)
    assert (tmp_path / "run" / "cam" / "index.html").is_file()
    monkeypatch.setattr(exercise_2_3, "config", {k: v for k, v in kept.items() if k != "cam"})
    with pytest.raises(ValueError, match=r'cam.contrast is missing: the config says .*"cam": \{'):
        smoke(exercise_2_3, tmp_path / "without", model=SMALL_CNN)
    assert not (tmp_path / "without").exists()


def test_a_script_may_call_its_dict_something_else(digits_config, monkeypatch):
    monkeypatch.delattr(exercise_1_1, "config")
    assert exercise_1_1.main(digits_config)["epochs"] == 1


def test_several_seeds_give_mean_and_deviation(tmp_path):
    results = smoke(exercise_1_1, tmp_path / "seeds", seeds=[3, 4])
    accuracies = [run["test"]["accuracy"] for run in results["runs"]]
    assert accuracies[0] != accuracies[1]
    assert results["mean"]["test_accuracy"] == pytest.approx(sum(accuracies) / 2)
    spread = abs(accuracies[0] - accuracies[1]) / 2**0.5
    assert results["std"]["test_accuracy"] == pytest.approx(spread)
    assert (tmp_path / "seeds" / "seed_4" / "results.json").is_file()
    written = json.loads((tmp_path / "seeds" / "results.json").read_text())
    assert [(run["config"]["seed"], run["epochs"]) for run in written["runs"]] == [(3, 2), (4, 2)]
    single = smoke(exercise_1_1, tmp_path / "single", seed=4)
    assert single["test"]["accuracy"] == accuracies[1]


def test_mean_and_deviation_are_of_every_number_that_the_test_images_of_all_seeds_have():
    judged = {"loss": 0.5, "accuracy": 0.9, "confusion": torch.eye(2)}
    added = [{"sure": 0.6, "b": 1, "half": 0.1}, {"sure": 0.8, "b": 3}]
    runs = [{"val": {"accuracy": 0.8, "loss": 1.0}, "test": judged | more} for more in added]
    mean, std = over_seeds(runs).values()
    usual = ["val_accuracy", "val_loss", "test_accuracy", "test_loss"]
    assert list(mean) == list(std) == [*usual, "test_sure", "test_b"]
    assert (mean["test_sure"], mean["test_b"]) == pytest.approx((0.7, 2))
    assert std["test_b"] == pytest.approx(2**0.5)


@pytest.mark.parametrize("model", [exercise_1_1.config["model"], SMALL_CNN])
def test_seeds_that_come_later_join_those_that_are_there(model, tmp_path):
    folder = tmp_path / "seeds"
    first = smoke(exercise_1_1, folder, model=model, seeds=[3])
    weights = (folder / "seed_3" / "checkpoints" / "best.pt").read_bytes()
    more = {"model": model, "seeds": [3, 4], "resume": str(folder)}
    with pytest.raises(ValueError, match=r"lr 0\.003 -> 0\.1"):
        smoke(exercise_1_1, folder, **more, lr=0.1)
    assert json.loads((folder / "config.json").read_text())["seeds"] == [3]
    both = smoke(exercise_1_1, folder, **more)
    assert [run["config"]["seed"] for run in both["runs"]] == both["seeds"] == [3, 4]
    assert both["runs"][0]["test"]["accuracy"] == first["runs"][0]["test"]["accuracy"]
    assert (folder / "seed_3" / "checkpoints" / "best.pt").read_bytes() == weights
    assert json.loads((folder / "config.json").read_text())["seeds"] == [3, 4]
    with pytest.raises(ValueError, match="may get more"):
        smoke(exercise_1_1, folder, **more | {"seeds": [4]})


def test_the_seconds_of_a_run_are_those_of_all_its_parts(tmp_path):
    folder = tmp_path / "seeds" / "seed_5"
    results = smoke(exercise_1_3, tmp_path / "seeds", model=SMALL_CNN, seeds=[5])
    assert results["seconds"] < 300
    for name in ("best.pt", "last.pt"):
        state = load_checkpoint(folder / "checkpoints" / name)
        assert 0 < state["seconds"] < results["seconds"]
        save_checkpoint(folder / "checkpoints" / name, state | {"seconds": 5000.0})
    more = {"model": SMALL_CNN, "resume": str(tmp_path / "seeds"), "epochs": 3}
    again = smoke(exercise_1_3, tmp_path / "seeds", **more, seeds=[5])
    assert 5000 < again["runs"][0]["seconds"] < again["seconds"] < 5300


def test_seeds_that_learn_at_once_take_as_long_as_the_longest(tmp_path):
    smoke(exercise_1_1, tmp_path / "seeds", seeds=[4, 5])
    for seed, seconds in ((4, 5000.0), (5, 3000.0)):
        for path in (tmp_path / "seeds" / f"seed_{seed}" / "checkpoints").glob("*.pt"):
            save_checkpoint(path, load_checkpoint(path) | {"seconds": seconds})
    again = smoke(exercise_1_1, tmp_path / "seeds", seeds=[4, 5], resume=str(tmp_path / "seeds"))
    assert 5000 < again["seconds"] < 5300


def test_an_older_checkpoint_counts_the_seconds_of_its_training_steps(tmp_path):
    folder = tmp_path / "run"
    smoke(exercise_1_3, folder, model=SMALL_CNN)
    for path in (folder / "checkpoints").glob("*.pt"):
        state = load_checkpoint(path)
        del state["seconds"]
        for row in state["history"]:
            row["train/images_per_second"] = 1.0
        save_checkpoint(path, state)
    again = smoke(exercise_1_3, folder, model=SMALL_CNN, resume=str(folder), epochs=3)
    slow = 2 * 1294  # of the 1,438 images nine in ten, in two of the three epochs
    assert slow < again["seconds"] < slow + 300


def test_the_defaults_are_those_of_the_reference():
    for exercise, dataset, lr, epochs, layers in (
        (exercise_1_1, "mnist", 1e-4, 50, [784, 64, 64, 10]),
        (exercise_1_2, "mnist", 1e-4, 50, [784, 128, 64, 64, 10]),
        (exercise_1_3, "cifar10", 1e-3, 75, [64, 128, 256, 128, 64]),
        (exercise_2_3, "imagenette", 1e-3, 40, [32, 64, 128, 256, 256]),
    ):
        config = exercise.config
        assert (config["dataset"], config["lr"], config["epochs"]) == (dataset, lr, epochs)
        assert (config["model"]["layers"], config["batch_size"]) == (layers, 64)
        assert (config["optimizer"], config["val_fraction"]) == ("adam", 0.1)
    assert exercise_1_2.config["model"]["dropout"] == 0.5
    assert exercise_1_3.config["model"]["dropout"] == 0.3


def test_no_exercise_is_longer_than_a_hundred_lines():
    for exercise in (exercise_1_1, exercise_1_2, exercise_1_3, exercise_2_3):
        assert len(Path(exercise.__file__).read_text().splitlines()) < 100
