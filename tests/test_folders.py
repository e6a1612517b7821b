"""Odd names, folders that cannot be written, two runs at once, too little memory: one line."""

import json
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from disks import mount
from test_faults import one_line
from test_signals import FLAGS, state_of
from test_tracking import expected_scalars, scalars
from test_training import run

import checks
import exercise_1_1
import exercise_2_3
import models
from checkpoint import find_checkpoint
from config import complete_config, parse_config


def test_names_with_spaces_and_other_letters_and_another_temporary_folder(
    digits_config, picture_folder, monkeypatch
):
    if Path("/dev/shm").is_dir():
        monkeypatch.setenv("TMPDIR", "/dev/shm")
        monkeypatch.setattr(tempfile, "tempdir", None)
    changes = {
        "dataset": "image_folder", "image_size": 8, "data_dir": str(picture_folder("Läufe & 漢字")),
        "model": exercise_2_3.config["model"] | {"layers": [8]}, "checkpoint": "none",
        "cam": exercise_2_3.config["cam"] | {"per_class": 1}, "run_dir": "mes essais/été n° 1, ½",
    }  # fmt: skip
    config = exercise_2_3.config | digits_config | changes
    first = exercise_2_3.main(config)
    assert (Path(changes["run_dir"]) / "cam" / "index.html").is_file()
    again = exercise_2_3.main(config | {"resume": changes["run_dir"]})
    assert first["test"]["loss"] == again["test"]["loss"]
    assert scalars(Path(changes["run_dir"])) == expected_scalars(Path(changes["run_dir"]))


def test_folders_that_cannot_be_written_are_named(digits_config, tmp_path, capsys):
    run(digits_config)
    Path("file").write_text("a file")
    line = one_line(capsys, lambda _: run(digits_config | {"run_dir": "file/run"}))
    assert "file/run cannot be written" in line
    Path("runs").write_text("a file")  # where the run folders go by themselves
    line = one_line(capsys, lambda _: exercise_1_1.main(digits_config | {"run_dir": "auto"}))
    assert "runs/exercise_1_1" in line
    locked = tmp_path / "locked"
    locked.mkdir()
    Path(digits_config["run_dir"]).rename(locked / "run")
    mount("--bind", locked, locked)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", locked], check=True)
        line = one_line(capsys, lambda _: run(digits_config | {"run_dir": str(locked / "new")}))
        assert f"{locked / 'new'} cannot be written: Read-only file system" in line
        resumed = digits_config | {"epochs": 2, "resume": str(locked / "run")}
        assert "Read-only file system" in one_line(capsys, lambda _: run(resumed))
    finally:
        subprocess.run(["umount", locked], check=True)
    assert run(resumed)[1]["epoch"] == 2


@pytest.mark.parametrize("round_", range(3))
def test_of_two_runs_that_start_with_one_name_one_wins(forks, round_):
    Path("ready").mkdir()
    flags = [*FLAGS, "--epochs", 1, "--run_dir", "run"]
    hook = ["forks", "meet_before_the_rename", "ready", 2]
    children = [
        forks.start("exercise_1_1.py", *flags, "--seed", seed, hook=hook) for seed in (1, 2)
    ]
    codes = [child.wait() for child in children]
    assert sorted(codes) == [0, 2], children[0].err + children[1].err
    assert children[codes.index(2)].err == (
        "error: run folder run already exists: go on with --resume run, or choose another "
        "--run_dir\n"
    )
    winner = codes.index(0) + 1
    for path in ("config.json", "results.json"):
        content = json.loads(Path("run", path).read_text())
        assert content.get("config", content)["seed"] == winner
    assert state_of("run")["config"]["seed"] == winner
    assert not list(Path().glob(".run*"))


def test_a_network_beyond_all_memory_is_one_line_and_leaves_nothing(digits_config, capsys):
    before = sorted(Path.cwd().rglob("*"))
    model = {"kind": "mlp", "layers": [784, 10**9, 10]}
    line = one_line(capsys, lambda _: exercise_1_1.main(digits_config | {"model": model}))
    assert "lower --model.layers" in line
    seeds = digits_config | {"model": model, "seeds": [1, 2]}
    assert "lower --model.layers" in one_line(capsys, lambda _: exercise_1_1.main(seeds))
    assert sorted(Path.cwd().rglob("*")) == before


@pytest.mark.parametrize(("limit", "expected"), [("1048576\n", 2**20), ("max\n", None)])
def test_the_memory_is_that_of_the_container(monkeypatch, tmp_path, limit, expected):
    monkeypatch.setattr(checks, "CONTAINER_LIMIT", tmp_path / "none")
    whole = checks.memory_bytes()
    (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr(checks, "CONTAINER_LIMIT", tmp_path / "memory.max")
    assert checks.memory_bytes() == (expected or whole)


def test_a_network_without_layers_beyond_all_memory_is_named(monkeypatch):
    monkeypatch.setattr(models, "memory_bytes", lambda: 1)
    with pytest.raises(ValueError, match=r"model\.kind resnet18: a network of this size"):
        models.build_model({"dataset": "digits", "model": {"kind": "resnet18"}})


def test_a_batch_beyond_the_memory_is_one_line(forks):
    flags = [*FLAGS, "--batch_size", 1294, "--model.layers", 64, 200_000, 10, "--run_dir", "run"]
    child = forks.start("exercise_1_1.py", *flags, hook=["forks", "limit_memory", 700])
    assert child.wait() == 2, child.err
    (line,) = child.err.splitlines()
    assert line.startswith("error: batch_size 1294 of images of 1 x 8 x 8 does not fit")
    assert "lower --batch_size" in line
    assert state_of("run")["epoch"] == 0


def test_two_runs_that_start_in_one_second_are_two_folders(digits_config):
    asked = digits_config | {"run_dir": "auto"}
    first = complete_config(asked)["run_dir"]
    time.sleep(0.002)
    assert complete_config(asked)["run_dir"] != first


def test_a_run_that_drew_maps_is_not_one_to_go_on_with(digits_config, capsys):
    trained = digits_config | {"model": {"kind": "cnn", "layers": [4]}}
    exercise_1_1.main(trained)
    drawn = exercise_2_3.config | {"checkpoint": trained["run_dir"], "run_dir": "maps"}
    drawn |= {"device": "cpu", "wandb_mode": "disabled"}
    exercise_2_3.main(drawn)
    taken = trained | {"run_dir": "maps"}
    for main in (lambda _: exercise_2_3.main(drawn), lambda _: exercise_1_1.main(taken)):
        line = one_line(capsys, main)
        assert line.endswith("maps already exists: choose another --run_dir")
    with pytest.raises(SystemExit, match="2"):
        parse_config(exercise_2_3.config, {}, ["--resume", "maps"])
    said = capsys.readouterr().err
    assert said.startswith("error: --resume maps: that run drew maps and trained nothing")
    assert f"--checkpoint {trained['run_dir']}" in said
    for folder, reason in (
        ("maps", "no checkpoint at maps/.*has not trained an epoch"),
        (".", "no run, it holds some: name one, run$"),
        ("nowhere", "no checkpoint at nowhere; name a run folder"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=reason):
            find_checkpoint(folder)
    for folder in (trained["run_dir"], f"{trained['run_dir']}/checkpoints"):
        assert find_checkpoint(folder) == Path(trained["run_dir"], "checkpoints", "best.pt")


def test_a_folder_whose_config_is_something_else_is_not_resumed(capsys):
    Path("odd").mkdir()
    Path("odd/config.json").write_text("[]")
    with pytest.raises(SystemExit, match="2"):
        parse_config(exercise_1_1.config, {}, ["--resume", "odd"])
    assert capsys.readouterr().err == "error: a config must be a dict, got []\n"
