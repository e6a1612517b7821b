"""The grid of exercise 1.3: a shell loop that runs, and the same points for W&B's engine."""

import itertools
import os
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import DATA

import exercise_1_3
from config import defaults, flatten, parse_config

SWEEPS = DATA.parent / "sweeps"
pytestmark = pytest.mark.skipif(not shutil.which("sh"), reason="needs a shell")


def sweep(folder, python, *flags):
    environment = os.environ | {"PYTHON": python} | ({"FOLDER": str(folder)} if folder else {})
    command = ["sh", str(SWEEPS / "exercise_1_3.sh"), *flags]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=100
    )


def points_of_the_engine():
    """The flags of every run that W&B's agent would start, by its own code."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args  # takes two seconds

    definition = yaml.safe_load((SWEEPS / "exercise_1_3.yaml").read_text())
    assert definition["program"] == "exercise_1_3.py"
    names = list(definition["parameters"])
    values = [p.get("values", [p.get("value")]) for p in definition["parameters"].values()]
    for point in itertools.product(*values):
        run = {name: {"value": value} for name, value in zip(names, point, strict=True)}
        yield create_sweep_command_args({"args": run})["args"]


def test_the_loop_takes_the_points_of_the_engine(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["exercise_1_3.py"])
    lines = sweep(tmp_path, "echo").stdout.splitlines()
    *runs, compared = [line.split() for line in lines]
    assert compared[0] == "evaluate.py"
    taken = [parse_config(exercise_1_3.config, {}, words[1:]) for words in runs]
    asked = [parse_config(exercise_1_3.config, {}, flags) for flags in points_of_the_engine()]
    assert len(asked) == 6
    for config in taken:
        assert config.pop("run_dir").startswith(str(tmp_path))
    for config in asked:
        config.pop("run_dir")
    assert sorted(map(str, map(flatten, taken))) == sorted(map(str, map(flatten, asked)))
    changed = {"lr", "model.dropout", "epochs"}
    own = flatten(defaults | exercise_1_3.config)
    for config in asked:
        assert {key for key, value in flatten(config).items() if own[key] != value} <= changed


def test_the_loop_trains_what_is_missing_goes_on_with_what_stopped_and_leaves_the_rest(tmp_path):
    done = tmp_path / "lr-0.0003-dropout-0.1"
    stopped = tmp_path / "lr-0.0003-dropout-0.3"
    done.mkdir()
    (done / "results.json").touch()
    stopped.mkdir()
    lines = sweep(tmp_path, "echo", "--seed", "1").stdout.splitlines()
    assert lines[0] == f"exercise_1_3.py --resume {stopped}"
    assert len(lines) == 1 + 4 + 1
    assert all(line.endswith("--seed 1") for line in lines[1:-1])


def test_other_flags_have_a_folder_of_their_own():
    plain, digits = (sweep(None, "echo", *flags).stdout for flags in ((), ("--dataset", "digits")))
    assert "--run_dir runs/sweep_1_3/lr-0.001-dropout-0.1\n" in plain
    assert "--run_dir runs/sweep_1_3-dataset-digits/lr-0.001-dropout-0.1 --dataset" in digits


@pytest.mark.slow
def test_a_point_of_the_grid_trains(tmp_path):
    names = itertools.product(("0.0003", "0.001", "0.003"), ("0.1", "0.3"))
    for lr, dropout in list(names)[1:]:
        (tmp_path / f"lr-{lr}-dropout-{dropout}").mkdir()
        (tmp_path / f"lr-{lr}-dropout-{dropout}" / "results.json").touch()
    small = "--dataset digits --model.layers 4 --wandb_mode disabled --epochs 1"
    sweep(tmp_path, sys.executable, *small.split())
    assert (tmp_path / "lr-0.0003-dropout-0.1" / "results.json").stat().st_size > 0
