"""What a run prints: its numbers, and commands that can be copied."""

import contextlib
import importlib.util
import io
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from scipy.stats import binomtest

import commands
import exercise_1_1
import exercise_1_3
import exercise_2_3
from dataset import ImageDataset
from ending import find_pictures
from outcome import Training
from plots import draw_confusion, draw_grid, draw_samples
from summary import most_wrong, result_block, wilson


@pytest.mark.parametrize(("hits", "total"), [(0, 1), (1, 1), (7, 9), (0, 359), (349, 359)])
def test_the_interval_is_scipys_wilson_interval(hits, total):
    theirs = binomtest(hits, total).proportion_ci(method="wilson")
    assert wilson(hits, total) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def printed(config, exercise=exercise_1_1):
    """What the run prints into streams that have no file behind them, as in a notebook."""
    said, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        exercise.main(config)
    assert complained.getvalue() == ""
    return said.getvalue()


def assert_readable_anywhere(text):
    assert text.isascii()  # Windows' code pages have nothing else in common
    assert set(text) - set(map(chr, range(32, 127))) == {"\n"}
    lines = text.splitlines()
    commands_and_paths = [line for line in lines if line.startswith("    ") or "run" in line]
    assert max(len(line) for line in set(lines) - set(commands_and_paths)) <= 80


def commands_in(text):
    """{purpose: words}"""
    return {
        purpose: shlex.split(command)
        for purpose, command in re.findall(r"^  (\S.*):\n    (.*)$", text, re.MULTILINE)
    }


@pytest.mark.figures
def test_a_class_name_with_dollars_is_drawn_as_it_is_written(tmp_path):
    classes = ["$\\nowhere$", "$5 to $9"]
    images = ImageDataset(
        torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.arange(2), classes, [0.5], [0.2]
    )
    draw_confusion(torch.eye(2), classes, tmp_path)
    draw_samples(images, [images.sample(2)], tmp_path)
    texts = (tmp_path / "plots" / "confusion.svg").read_text()
    assert all(f"<!-- {name} -->" in texts for name in classes)
    assert (tmp_path / "plots" / "samples.png").is_file()


def test_what_a_run_prints_is_readable_anywhere_and_its_commands_can_be_copied(digits_config):
    folder = "it's a run"
    config = digits_config | {"run_dir": folder, "rotate": 10.0}
    text = printed(config)
    assert_readable_anywhere(text)
    assert f"what it is trained on: {folder}/plots/samples.png" in text
    drawn = {path.name for path in Path(folder, "plots").iterdir()}
    drawings = {f"{name}.{kind}" for name in ("curves", "confusion") for kind in ("png", "svg")}
    assert drawn == drawings | {"samples.png", "mistakes.png"}
    found = commands_in(text)
    assert found.keys() == {"curves and pictures", "every class", "train on"}
    assert all(folder in words for words in found.values())
    assert found["train on"][2:] == ["--resume", folder, "--epochs", "2"]
    assert Path(found["every class"][1]).resolve() == Path(exercise_1_1.__file__).with_name(
        "evaluate.py"
    )


def test_a_script_that_lies_elsewhere_is_named_where_it_is(digits_config, monkeypatch):
    results = {"exercise": "mine", "run_dir": "run", "epochs": 1, "config": digits_config}
    monkeypatch.setattr(sys, "argv", ["work/mine.py", "--epochs", "1"])
    offered = dict(commands.next_commands(results, False))
    assert offered["train on"].split()[1:3] == ["work/mine.py", "--resume"]


def test_training_on_is_offered_where_the_learning_rate_is_still_there(digits_config):
    results = {"exercise": "exercise_1_1", "run_dir": "run", "epochs": 7}
    for schedule in ("constant", "cosine", "one_cycle"):
        config = digits_config | {"schedule": schedule}
        offered = dict(commands.next_commands(results | {"config": config}, False))
        assert ("train on" in offered) == (schedule == "constant")
        assert offered.get("train on", "--epochs 14").endswith("--epochs 14")  # not the config's


def test_a_network_with_maps_is_offered_them(digits_config):
    model = exercise_1_3.config["model"] | {"layers": [4]}
    text = printed(exercise_1_3.config | digits_config | {"model": model}, exercise_1_3)
    *_, path = commands_in(text)["what it looks at"]
    assert path == digits_config["run_dir"]
    maps = {
        "checkpoint": path,
        "run_dir": "maps",
        "cam": exercise_2_3.config["cam"] | {"indices": [7]},
    }
    text = printed(exercise_2_3.config | {"wandb_mode": "disabled"} | maps, exercise_2_3)
    found = commands_in(text)
    assert path in found["every class"] and "what it looks at" not in found


def test_what_explains_pictures_of_another_folder_is_judged_on_them(tmp_path):
    results = {"exercise": "exercise_2_3", "run_dir": "maps"}
    config = exercise_2_3.config | {"checkpoint": "best.pt"}
    for data_dir, named in ((str(tmp_path), ["--data_dir", str(tmp_path)]), ("data", [])):
        rows = dict(
            commands.next_commands(results | {"config": config | {"data_dir": data_dir}}, True)
        )
        *_, rest = rows["every class"].partition("best.pt")
        assert shlex.split(rest) == named


def test_a_map_of_one_cell_is_not_offered_and_said_to_show_nothing(digits_config, capsys):
    model = exercise_1_3.config["model"] | {"layers": [4, 4, 4]}
    text = printed(exercise_1_3.config | digits_config | {"model": model}, exercise_1_3)
    assert "what it looks at" not in commands_in(text)
    maps = {"checkpoint": digits_config["run_dir"], "run_dir": "maps", "wandb_mode": "disabled"}
    capsys.readouterr()
    exercise_2_3.main(exercise_2_3.config | maps)
    assert "have one cell: they cannot show where" in capsys.readouterr().err


def test_a_run_that_has_its_epochs_says_how_many_and_how_to_go_on(digits_config, capsys):
    exercise_1_1.main(digits_config | {"epochs": 3})
    capsys.readouterr()
    again = digits_config | {"epochs": 3, "resume": digits_config["run_dir"]}
    exercise_1_1.main(again)
    assert "has its 3 epochs: --epochs 6 trains on" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"has 3 epochs, more than --epochs 2: leave that out"):
        exercise_1_1.main(again | {"epochs": 2})


def test_seeds_of_different_length_are_not_averaged(digits_config):
    folder = Path(digits_config["run_dir"])
    exercise_1_1.main(digits_config | {"seeds": [1, 2]})
    longer = digits_config | {"epochs": 2, "seed": 1, "run_dir": str(folder / "seed_1")}
    exercise_1_1.main(longer | {"resume": longer["run_dir"]})
    again = digits_config | {"seeds": [1, 2], "resume": str(folder)}
    with pytest.raises(ValueError, match=r"seed_1 has 2 epochs, more than --epochs 1: --epochs 2"):
        exercise_1_1.main(again)
    assert len(exercise_1_1.main(again | {"epochs": 2})["runs"]) == 2


def test_several_seeds_end_in_one_block(digits_config):
    text = printed(digits_config | {"seeds": [3, 4]})
    assert_readable_anywhere(text)
    assert len(re.findall(r"^test accuracy +0\.\d+ \+- 0\.\d+$", text, re.MULTILINE)) == 1
    assert re.findall(r"^seed (\d)", text, re.MULTILINE) == ["3", "4"]
    assert text.count("next:") == text.count("run folder: ") == 1


def test_one_seed_has_no_spread(digits_config):
    text = printed(digits_config | {"seeds": [3]})
    assert re.search(r"^test accuracy +0\.\d{4}\n", text, re.MULTILINE)
    assert "of one seed" in text and "+-" not in text


def test_an_offline_run_says_how_to_upload_it_and_no_other_does(digits_config):
    folder = Path(digits_config["run_dir"])
    results = {"exercise": "exercise_1_1", "config": digits_config, "run_dir": str(folder)}
    results["epochs"] = 1
    assert "upload to W&B" not in dict(commands.next_commands(results, False))
    (folder / "wandb" / "offline-run-1-a").mkdir(parents=True)
    command = dict(commands.next_commands(results, False))["upload to W&B"]
    assert shlex.split(command)[-2:] == ["sync", str(folder / "wandb" / "offline-run-1-a")]


def test_tensorboard_is_started_by_a_module_that_starts_where_there_is_no_program(monkeypatch):
    monkeypatch.setattr(commands, "python", lambda: "nowhere/python")
    for name in ("tensorboard", "wandb"):
        *_, module = commands.tool(name)
        found = importlib.util.find_spec(module)
        if found.submodule_search_locations:  # a package
            found = importlib.util.find_spec(f"{module}.__main__")
        assert found.origin and Path(found.origin).is_file()


def test_the_first_maps_of_every_class_are_found_first(tmp_path):
    for name in "cat", "dog":
        (tmp_path / "cam" / name).mkdir(parents=True)
        for number in range(12):
            (tmp_path / "cam" / name / f"sample_{number}_idx_{90 - number}.png").touch()
    found = find_pictures(tmp_path, most=6)
    numbers = [int(tag.split("_")[1]) for tag in found]
    assert numbers == [0, 1, 2, 0, 1, 2]


def test_the_class_most_often_wrong_is_that_with_the_largest_share():
    confusion = torch.tensor([[90, 10, 0], [0, 5, 5], [1, 0, 0]])
    said = most_wrong(confusion, ["cat", "dog", "owl"])
    assert said == "class owl: 1 of 1, 1 of them taken for cat"
    assert most_wrong(torch.eye(3, dtype=torch.int64), ["cat", "dog", "owl"]) == "nothing was"


def test_python_is_spelled_as_the_user_did_where_that_is_this_one(monkeypatch):
    home = Path(sys.executable).parent
    monkeypatch.setenv("PATH", str(home))
    monkeypatch.setattr(sys, "orig_argv", [Path(sys.executable).name, "x.py"])
    assert commands.python() == Path(sys.executable).name
    monkeypatch.setattr(sys, "orig_argv", ["another", "x.py"])
    assert commands.python() == sys.executable


@pytest.mark.figures
def test_a_figure_drawn_twice_is_the_same_file_byte_for_byte():
    confusion = torch.tensor([[3, 1], [0, 4]])
    for folder in ("one", "two"):
        draw_confusion(confusion, ["cat", "dog"], folder)
        draw_grid(torch.rand(3, 1, 8, 8).round(), ["a", "b\nc", "d"], Path(folder, "grid.png"))
    for suffix in ("png", "svg"):
        files = [Path(f, "plots", f"confusion.{suffix}").read_bytes() for f in ("one", "two")]
        assert files[0] == files[1]


@pytest.mark.figures
def test_the_grid_shows_the_pixels_that_it_is_given():
    from matplotlib.image import imread

    images = torch.zeros(2, 3, 4, 4)
    images[0, 0], images[1, 2] = 1.0, 1.0  # a red one and a blue one
    draw_grid(images, ["red", "blue"], Path("grid.png"), columns=2)
    row = imread("grid.png")[-40]
    assert row[len(row) // 4, :3] == pytest.approx([1, 0, 0])
    assert row[-len(row) // 4, :3] == pytest.approx([0, 0, 1])


@pytest.mark.figures
def test_the_matrix_of_hundreds_of_classes_fits_in_the_memory(tmp_path):
    from matplotlib.image import imread

    (tmp_path / "plots").mkdir()
    names = [f"class {number}" for number in range(300)]
    draw_confusion(torch.eye(300, dtype=torch.int64), names, tmp_path)
    height, width, _ = imread(tmp_path / "plots" / "confusion.png").shape
    assert (
        height * width < 20e6
    )  # pixels; an edge that grew with the classes would make it 380 million


def test_a_result_without_training_names_no_epochs(digits_config):
    confusion = torch.tensor([[3, 1], [0, 4]])
    judged = {"accuracy": 7 / 8, "loss": 0.5, "confusion": confusion}
    results = {"exercise": "exercise_2_3", "config": digits_config | {"checkpoint": "best.pt"}}
    results |= {"val": judged | {"best_epoch": 7}, "test": judged, "seconds": 90.0}
    results |= {"epochs": 1, "run_dir": "run"}
    text = result_block(results, Training())
    assert "of 1" not in text
    assert "1 min 30 s" in text
