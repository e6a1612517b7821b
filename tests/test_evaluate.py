"""`python evaluate.py`: what a finished run reached, again from its folder."""

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.metrics import classification_report

import exercise_1_1
import exercise_1_3
import exercise_2_3
from checkpoint import save_checkpoint
from dataset import ImageDataset, deskew, load_datasets
from evaluate import Flags, Mirrored, evaluate, load_judged, main, report
from explain import load_explained
from models import CNN, build_model
from summary import wilson


@pytest.fixture
def finished(digits_config):
    results = exercise_1_1.main(digits_config | {"epochs": 3})
    return Path(digits_config["run_dir"]), results


def test_a_run_is_judged_again_to_the_same_numbers(finished, monkeypatch):
    folder, results = finished
    folder = folder.absolute()
    with monkeypatch.context() as patch:
        patch.chdir(folder / "checkpoints")
        assert len(load_judged(Flags("best.pt"))[1]) == 359  # a bare name has no folder above it
    for run in (folder, folder / "checkpoints" / "best.pt"):
        again = evaluate(*load_judged(Flags(str(run))))
        assert again["accuracy"] == results["test"]["accuracy"]
        assert again["loss"] == pytest.approx(results["test"]["loss"])
    val = evaluate(*load_judged(Flags(str(folder), split="val")))
    assert val["accuracy"] == results["val"]["accuracy"]


@pytest.mark.parametrize(("count", "batch_size"), [(0, None), (3, 0), (3, -1)])
def test_nothing_to_judge_is_refused(count, batch_size):
    images = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    dataset = ImageDataset(images, torch.zeros(count, dtype=torch.long), ["a", "b"], [0.5], [0.5])
    model = CNN([2], image_size=2, in_channels=1, num_classes=2)
    with pytest.raises(ValueError, match=f"nothing to judge: {count} images"):
        evaluate(model, dataset, batch_size)


def test_judging_that_takes_long_shows_a_bar_on_a_terminal_alone(monkeypatch, capsys):
    def slow(images):
        time.sleep(0.05)
        return torch.eye(2)[torch.zeros(len(images), dtype=torch.long)]

    images = torch.zeros(8, 1, 2, 2, dtype=torch.uint8)
    dataset = ImageDataset(images, torch.zeros(8, dtype=torch.long), ["a", "b"], [0.5], [0.5])
    model = CNN([2], image_size=2, in_channels=1, num_classes=2)
    monkeypatch.setattr(model, "forward", slow)
    for terminal, patience, shown in ((False, 0.1, False), (True, 60, False), (True, 0.1, True)):
        monkeypatch.setattr("evaluate.PATIENCE", patience)
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal, raising=False)
        assert evaluate(model, dataset, batch_size=1)["accuracy"] == 1
        assert ("judging" in capsys.readouterr().err) == shown


def test_a_network_of_upright_digits_is_judged_on_upright_ones(digits_config, tmp_path):
    results = exercise_1_1.main(digits_config | {"deskew": True})
    folder = Path(digits_config["run_dir"])
    again = evaluate(*load_judged(Flags(str(folder))))
    assert again["loss"] == pytest.approx(results["test"]["loss"])
    images = load_datasets(digits_config)[0].images[:10]
    for number, pixels in enumerate(images[:, 0].numpy()):
        (tmp_path / "train" / str(number)).mkdir(parents=True)
        for name in ("a", "b"):
            picture = Image.fromarray(pixels).convert("RGB")
            picture.save(tmp_path / "train" / str(number) / f"{name}.png")
    flags = Flags(str(folder), split="train", dataset="image_folder", data_dir=str(tmp_path))
    _, dataset = load_judged(flags)
    assert torch.equal(dataset.images, deskew(images)[dataset.labels])


def test_pictures_that_came_later_are_not_taken_for_those_that_were_held_out(
    digits_config, tmp_path
):
    def add(label, number):
        (tmp_path / "train" / label).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(tmp_path / "train" / label / f"{number}.png")

    for number in range(20):
        add("cat" if number < 10 else "dog", number)
    own = {"dataset": "image_folder", "data_dir": str(tmp_path), "image_size": 8}
    own["model"] = {"kind": "cnn", "layers": [4]}
    results = exercise_1_3.main(exercise_1_3.config | digits_config | own)
    folder = digits_config["run_dir"]
    assert evaluate(*load_judged(Flags(folder)))["accuracy"] == results["test"]["accuracy"]
    add("cat", 99)
    copied = shutil.copy(Path(folder) / "checkpoints" / "best.pt", tmp_path / "copied.pt")
    maps = exercise_2_3.config | {"data_dir": "data", "wandb_mode": "disabled"}
    for judge in (load_judged, lambda flags: load_explained(maps | {"checkpoint": flags.run})):
        for source in (folder, str(copied)):
            with pytest.raises(ValueError, match=r"images of .* are not those .*--data_dir"):
                judge(Flags(source))
    with pytest.raises(ValueError, match="are not those"):
        load_judged(Flags(folder, dataset="image_folder"))  # the one that it has anyway
    load_judged(Flags(folder, data_dir=str(tmp_path)))  # named, they are judged


def test_the_report_has_the_interval_of_its_accuracy():
    confusion = torch.tensor([[5, 0], [2, 3]])
    low, high = wilson(8, 10)
    said = report({"loss": 0.0, "accuracy": 0.8, "confusion": confusion}, ["a", "b"])
    assert f"accuracy 0.8000 ({low:.4f} to {high:.4f}), 10 images" in said


def test_a_mirrored_network_answers_alike_to_an_image_and_its_mirror_image():
    model, images = CNN([4, 6], image_size=8).eval(), torch.randn(5, 3, 8, 8)
    mirrored = Mirrored(model)
    torch.testing.assert_close(mirrored(images), mirrored(images.flip(3)))
    assert not torch.allclose(model(images), model(images.flip(3)))
    both_sides = images + images.flip(3)
    torch.testing.assert_close(mirrored(both_sides), model(both_sides))


@pytest.mark.parametrize(("side", "at_once"), [(8, 1024), (32, 1024), (64, 256), (1200, 1)])
def test_as_many_images_are_judged_at_once_as_their_size_allows(side, at_once):
    images = torch.zeros(1, 1, side, side, dtype=torch.uint8).expand(at_once + 1, -1, -1, -1)
    labels = torch.zeros(at_once + 1, dtype=torch.int64)
    dataset = ImageDataset(images, labels, ["a", "b"], [0.5], [0.5])
    seen = []

    class Counting(torch.nn.Linear):
        def forward(self, images):
            seen.append(len(images))
            return super().forward(images.mean((1, 2, 3))[:, None])

    evaluate(Counting(1, 2), dataset)
    assert seen == [at_once, 1]


def test_the_table_says_what_scikit_learn_says():
    torch.manual_seed(0)
    labels, predicted = torch.randint(0, 3, (200,)), torch.randint(0, 3, (200,))
    confusion = torch.zeros(3, 3, dtype=torch.int64)
    confusion.index_put_((labels, predicted), torch.tensor(1), accumulate=True)
    result = {"loss": 1.0, "accuracy": confusion.trace().item() / 200, "confusion": confusion}
    lines = report(result, ["a", "b", "c"]).splitlines()
    expected = classification_report(labels, predicted, output_dict=True)
    for label, line in enumerate(lines[3:6]):
        _, count, recall, precision, *_ = line.split()
        theirs = expected[str(label)]
        assert int(count) == theirs["support"]
        assert float(recall) == pytest.approx(theirs["recall"], abs=5e-4)
        assert float(precision) == pytest.approx(theirs["precision"], abs=5e-4)
    assert [int(n) for line in lines[-3:] for n in line.split()] == confusion.flatten().tolist()


def test_a_class_that_is_never_named_or_never_there_is_a_dash():
    confusion = torch.tensor([[5, 0, 0], [2, 0, 0], [0, 0, 0]])
    lines = report({"loss": 0.0, "accuracy": 5 / 7, "confusion": confusion}, ["a", "b", "c"])
    rows = [line.split() for line in lines.splitlines()[3:6]]
    assert rows == [
        ["a", "5", "1.000", "0.714", "-"],
        ["b", "2", "0.000", "-", "a", "(2)"],
        ["c", "0", "-", "-", "-"],
    ]


def test_data_of_other_classes_are_refused_by_name(finished, picture_folder):
    folder, _ = finished
    flags = Flags(str(folder), dataset="image_folder", data_dir=str(picture_folder(size=8)))
    with pytest.raises(ValueError, match=r"knows the classes 0, 1, .* has cat, dog"):
        load_judged(flags)


def test_a_data_set_that_is_not_known_is_named(finished):
    folder, _ = finished
    with pytest.raises(ValueError, match=r"dataset must be .* got 'minst'; did you mean mnist\?"):
        load_judged(Flags(str(folder), dataset="minst"))


@pytest.mark.parametrize(
    "flag", [{"split": "val"}, {"dataset": "digits"}, {"data_dir": "data"}, {"device": "cpu"}]
)
def test_what_judges_one_run_is_not_ignored_for_several(flag):
    (name,) = flag
    with pytest.raises(ValueError, match=f"--{name} judges one run"):
        main(Flags("a", ("b",), **flag))


@pytest.mark.parametrize("in_memory", [1.0, 0.0])
def test_a_network_of_grey_images_sees_coloured_pictures_in_grey(
    finished, tmp_path, monkeypatch, in_memory
):
    monkeypatch.setattr("dataset.IN_MEMORY", in_memory)  # without: they stay on the disk
    folder, _ = finished
    for number in range(10):
        (tmp_path / "train" / str(number)).mkdir(parents=True)
        for name in ("a", "b"):
            grey = 20 * number + ord(name) - ord("a")
            red = 50 if number > 1 and name == "b" else 0
            colour = (grey + red, grey - red // 2, grey - red // 2)  # of the same mean
            picture = Image.new("RGB", (8, 8), colour)
            picture.save(tmp_path / "train" / str(number) / f"{name}.png")
    flags = Flags(str(folder), split="train", dataset="image_folder", data_dir=str(tmp_path))
    _, dataset = load_judged(flags)
    assert dataset.images.shape[1:] == (1, 8, 8)
    above = dataset.images[:, 0].int() - 20 * dataset.labels[:, None, None]
    assert set(above.unique().tolist()) <= {0, 1}


@pytest.mark.parametrize("outputs", [2, 4])
def test_a_network_that_has_not_one_output_a_class_is_not_judged(random_images, outputs):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, outputs))
    with pytest.raises(ValueError, match=rf"by {outputs} numbers, images has 3 classes"):
        evaluate(network, random_images)


def test_images_of_another_size_are_refused():
    about = {"classes": list("0123456789"), "mean": [0.5], "std": [0.2], "shape": [1, 28, 28]}
    state = {"epoch": 1, "model": build_model(exercise_1_1.config).state_dict(), "data": about}
    save_checkpoint("best.pt", state | {"config": exercise_1_1.config})
    with pytest.raises(ValueError, match=r"takes images of 1 x 28 x 28, those of digits are 1 x 8"):
        load_judged(Flags("best.pt", dataset="digits"))


def test_a_run_of_several_seeds_names_them_and_a_device_that_is_not_here_is_refused(tmp_path):
    for seed in (0, 3):
        (tmp_path / f"seed_{seed}").mkdir()
    with pytest.raises(ValueError, match=r"several seeds: name one of .*seed_0, .*seed_3"):
        load_judged(Flags(str(tmp_path)))
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        main(Flags(str(tmp_path), device="gpu"))


def test_the_command_prints_the_table_and_a_mistake_one_line(finished, forks):
    folder, results = finished
    done, wrong = forks.start("evaluate.py", folder), forks.start("evaluate.py", "nowhere")
    assert (done.wait(), wrong.wait()) == (0, 2)
    assert f"accuracy {results['test']['accuracy']:.4f}" in done.out
    assert wrong.out == ""
    assert wrong.err.startswith("error: no checkpoint at nowhere")
    mirrored = forks.start("evaluate.py", folder, "--mirror")
    several = forks.start("evaluate.py", folder, folder, "--mirror")
    assert (mirrored.wait(), several.wait()) == (0, 2)
    assert mirrored.out != done.out
    assert several.err.startswith("error: --mirror judges one run")
    assert json.loads((folder / "results.json").read_text())["test"]["confusion"]
