"""Full disks and damaged files: one clear line, and no run lost."""

import errno
import io
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from disks import Patched, Tmpfs
from tensorboard.compat.proto.summary_pb2 import Summary
from test_signals import state_of
from test_tracking import expected_scalars, scalars
from test_training import assert_same, comparable, run

import checkpoint
import exercise_1_1
import exercise_2_3
import experiment
import training
from checkpoint import CheckpointWriter, load_checkpoint, load_last, load_model, save_checkpoint
from config import parse_config
from dataset import load_datasets
from evaluate import Flags, load_judged
from events import EventFile, last_step
from exits import exit_cleanly
from models import build_model
from progress import Progress
from tracking import only_writer
from training import train


@pytest.fixture(params=["tmpfs", "patched"])
def disk(request, tmp_path, monkeypatch):
    folder = tmp_path / "disk"
    folder.mkdir()
    yield Tmpfs(folder) if request.param == "tmpfs" else Patched(folder, monkeypatch)
    if request.param == "tmpfs":
        subprocess.run(["umount", "-l", folder], check=True)


def in_epochs(monkeypatch, actions):
    """Call actions[n] when the n-th evaluation begins."""
    judge, calls = training.evaluate, []

    def evaluate(*arguments):
        calls.append(1)
        actions.get(len(calls), lambda: None)()
        return judge(*arguments)

    monkeypatch.setattr(training, "evaluate", evaluate)


def one_line(capsys, function, *arguments):
    """The line in which `function` ends with exit code 2; warnings may stand before it."""
    with pytest.raises(SystemExit) as stop:
        exit_cleanly(lambda config: function(config, *arguments))(None)
    assert stop.value.code == 2
    *before, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert not any("Traceback" in text for text in before)
    return line


def assert_equal_runs(folder, other):
    assert_same(comparable(state_of(folder)), comparable(state_of(other)))
    metrics = [Path(name, "metrics.csv").read_bytes() for name in (folder, other)]
    assert metrics[0] == metrics[1]
    assert scalars(Path(folder)) == expected_scalars(Path(folder))


def test_a_full_disk_is_warned_of_and_tried_again(disk, digits_config, monkeypatch, capsys):
    config = digits_config | {"epochs": 5}
    run(config)
    kept = []
    in_epochs(monkeypatch, {
        2: disk.fill, 3: lambda: kept.append(load_last(disk.folder / "run")), 4: disk.free,
    })  # fmt: skip
    run(config | {"run_dir": str(disk.folder / "run")})
    errors = capsys.readouterr().err
    assert kept[0]["epoch"] == 1
    for what in ("best.pt of epoch 2", "best.pt of epoch 3", "metrics of epoch 3"):
        assert f"warning: {what} could not be written" in errors
    assert "No space left on device" in errors
    assert "Traceback" not in errors
    assert "of epoch 4" not in errors
    assert_equal_runs(disk.folder / "run", config["run_dir"])
    assert not list((disk.folder / "run").rglob("*.tmp"))


def test_of_an_event_that_does_not_fit_nothing_is_left(disk):
    events = EventFile(disk.folder)
    (path,) = disk.folder.glob("events*")
    events.add({"a": 1.0}, 1)
    whole = path.read_bytes()
    disk.fill()
    with pytest.raises(OSError):
        events.add({}, 2, Summary.Value(tag="large", simple_value=1.0, node_name="x" * 200_000))
    assert path.read_bytes() == whole
    disk.free()
    events.add({"a": 2.0}, 2)
    events.close()
    assert last_step(disk.folder) == 2


def test_a_save_that_failed_is_tried_again_in_the_next_epoch_though_none_is_due(tmp_path, capsys):
    (tmp_path / "checkpoints" / "last.pt" / "in the way").mkdir(parents=True)
    writer = CheckpointWriter(tmp_path, {"checkpoint_every": 2, "epochs": 9, "keep": "best"})
    rows = [{"epoch": n, "val/accuracy": 1.0 - n / 9, "val/loss": 0.1} for n in range(1, 5)]
    writer.save({"history": rows[:2]})
    assert "last.pt of epoch 2 could not be written" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "checkpoints" / "last.pt")
    writer.save({"history": rows[:3]})
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["epoch"] == 3


def test_the_last_save_on_a_full_disk_is_an_error_and_resuming_mends_it(
    disk, digits_config, monkeypatch, capsys
):
    config = digits_config | {"epochs": 3}
    run(config)
    folder = disk.folder / "run"
    with monkeypatch.context() as patch:
        in_epochs(patch, {2: disk.fill})
        line = one_line(capsys, lambda _: run(config | {"run_dir": str(folder)}))
    assert "epoch 3 could not be written" in line
    assert "MiB free" in line
    assert f"--resume {folder}" in line
    assert load_last(folder)["epoch"] == 1
    disk.free()
    run(config | {"resume": str(folder)})
    assert_equal_runs(folder, config["run_dir"])


def test_a_disk_that_fills_up_after_the_training_is_one_line_too(
    disk, digits_config, monkeypatch, capsys
):
    folder = disk.folder / "run"
    judge = exercise_1_1.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(exercise_1_1, "evaluate", lambda *a: [judge(*a), disk.fill()][0])
        patch.setattr(exercise_1_1, "draw_curves", lambda run_dir: None)  # the slow part
        patch.setattr(exercise_1_1, "draw_confusion", lambda *a: None)
        changed = digits_config | {"run_dir": str(folder)}
        line = one_line(capsys, lambda _: exercise_1_1.main(changed))
        assert "No space left" in line
        assert f"--resume {folder}" in line
        patch.setattr(exercise_1_1, "evaluate", judge)
        disk.free()
        (folder / "metrics.csv").unlink()  # a finished run is completed from its checkpoint
        exercise_1_1.main(digits_config | {"resume": str(folder)})
    assert json.loads((folder / "results.json").read_text())["epochs"] == 1
    assert scalars(folder) == expected_scalars(folder)


def test_a_last_save_of_one_of_several_seeds_names_the_folder_of_all(tmp_path):
    for folder in (tmp_path, tmp_path / "seed_0"):
        (folder / "checkpoints" / "last.pt" / "in the way").mkdir(parents=True)
    state = {"history": [{"epoch": 1, "val/accuracy": 0.5, "val/loss": 1.0}]}
    config = {"checkpoint_every": 1, "epochs": 1}
    for named in (tmp_path / "seed_0", tmp_path):
        with pytest.raises(ValueError, match=re.escape(f"--resume {named} repeats")):
            CheckpointWriter(tmp_path / "seed_0", config).save(state)
        (tmp_path / "config.json").write_text("{}")


def test_of_several_seeds_it_is_their_folder_that_goes_on(digits_config, monkeypatch, capsys):
    config = digits_config | {"seeds": [0, 1], "run_dir": "seeds"}
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail(*arguments):
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(exercise_1_1, "draw_curves", fail)
        line = one_line(capsys, lambda _: exercise_1_1.main(config))
    expected = "a file of seeds cannot be read or written: No space left on device; once that is "
    assert expected + "mended, --resume seeds repeats what is missing" in line
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "add_seeds", fail)
        assert expected in one_line(
            capsys, lambda _: exercise_1_1.main(config | {"resume": "seeds"})
        )
    exercise_1_1.main(config | {"resume": "seeds"})


def test_last_never_speaks_of_a_best_that_could_not_be_written(digits_config, capsys):
    run(digits_config | {"run_dir": "whole"})
    writer = CheckpointWriter(".", digits_config | {"epochs": 9})
    obstacle = Path("checkpoints", "best.pt")
    obstacle.mkdir(parents=True)
    state = state_of("whole")
    writer.save(state)
    assert "best.pt of epoch 1 could not be written" in capsys.readouterr().err
    assert not Path("checkpoints", "last.pt").exists()
    obstacle.rmdir()
    equal = [dict(row) for row in state["history"] * 2]
    writer.save(state | {"history": equal})  # not better, and still best is written
    assert load_checkpoint(obstacle)["epoch"] == 1
    assert load_checkpoint("checkpoints/last.pt")["epoch"] == 2


@pytest.mark.parametrize("damage", ["empty", "first byte", "half", "all but a byte", "flips"])
def test_a_run_with_a_damaged_last_goes_on_from_the_one_before(digits_config, capsys, damage):
    config = digits_config | {"epochs": 5, "schedule": "cosine"}
    run(config | {"run_dir": "straight"})
    run(config | {"checkpoint_every": 3})  # last.pt is epoch 5, previous.pt epoch 3
    last = Path(config["run_dir"], "checkpoints", "last.pt")
    content = bytearray(last.read_bytes())
    size = {"empty": 0, "first byte": 1, "half": len(content) // 2}.get(damage, len(content) - 1)
    if damage == "flips":
        for position in random.Random(0).sample(range(len(content)), 200):
            content[position] ^= 255
    last.write_bytes(content if damage == "flips" else content[:size])
    run(config | {"resume": config["run_dir"]})
    assert "last.pt is damaged" in capsys.readouterr().err
    assert_equal_runs(config["run_dir"], "straight")


def test_a_damaged_last_never_takes_the_place_of_the_one_before(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "last.pt"
    for epoch in (1, 2):
        save_checkpoint(path, {"epoch": epoch})
    path.write_bytes(path.read_bytes()[:-1])
    replace = pathlib.Path.replace

    def killed(source, target):
        if Path(target) == path:
            raise KeyboardInterrupt
        return replace(source, target)

    monkeypatch.setattr(pathlib.Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {"epoch": 2})
    assert load_last(tmp_path)["epoch"] == 1


def test_a_lost_best_is_mended_from_a_checkpoint_of_that_epoch_or_named(digits_config, capsys):
    run(digits_config)
    folder = Path(digits_config["run_dir"])
    best = folder / "checkpoints" / "best.pt"
    weights = load_checkpoint(best)["model"]
    best.write_bytes(best.read_bytes()[:-9])
    resumed = digits_config | {"resume": str(folder)}
    run(resumed)
    assert "last.pt is of that epoch too" in capsys.readouterr().err
    assert_same(load_checkpoint(best)["model"], weights)
    run(resumed | {"epochs": 2, "checkpoint_every": 9})
    state = state_of(folder)
    state["history"][0]["val/accuracy"] = 1.0  # the best epoch is then one that nobody has
    for name in ("last.pt", "previous.pt"):
        save_checkpoint(folder / "checkpoints" / name, state)
    line = one_line(capsys, lambda _: run(resumed | {"epochs": 3}))
    assert "best.pt is damaged or missing" in line
    assert "epoch 1" in line


def test_a_best_is_not_mended_from_another_epoch_of_equal_accuracy(tmp_path, capsys):
    rows = [{"epoch": n, "val/accuracy": 0.9, "val/loss": loss} for n, loss in ((1, 0.3), (2, 0.4))]
    (tmp_path / "checkpoints").mkdir()
    writer = CheckpointWriter(tmp_path, {"checkpoint_every": 1, "epochs": 2})
    writer.save({"history": rows[:1]})
    writer.save({"history": rows})
    best = tmp_path / "checkpoints" / "best.pt"
    assert load_checkpoint(best)["epoch"] == 1
    best.write_bytes(best.read_bytes()[:-9])
    checkpoint.mend(tmp_path, load_last(tmp_path))
    assert load_checkpoint(best)["epoch"] == 1
    assert "previous.pt is of that epoch too" in capsys.readouterr().err
    for name in ("best.pt", "previous.pt"):
        best.with_name(name).unlink()
    with pytest.raises(ValueError, match=r"best\.pt is damaged or missing.* epoch 1"):
        checkpoint.mend(tmp_path, load_last(tmp_path))


def test_a_checkpoint_that_knows_no_data_is_a_network_but_none_to_judge(digits_config, capsys):
    model = build_model(digits_config)
    path = Path("own.pt")
    save_checkpoint(path, {"epoch": 1, "model": model.state_dict(), "config": digits_config})
    assert load_model(path)[1] == digits_config
    drawn = exercise_2_3.config | {"checkpoint": str(path), "wandb_mode": "disabled"}
    for line in (
        one_line(capsys, lambda _: load_judged(Flags(str(path)))),
        one_line(capsys, lambda _: exercise_2_3.main(drawn)),
    ):
        assert "own.pt does not say which images it was trained on" in line
    line = one_line(capsys, lambda _: run(digits_config | {"teacher": str(path)}))
    assert "own.pt does not say which images" in line


def test_a_checkpoint_that_is_named_is_never_replaced_by_another(digits_config, capsys):
    run(digits_config | {"epochs": 2})
    path = Path(digits_config["run_dir"], "checkpoints", "best.pt")
    path.write_bytes(path.read_bytes()[:-1])
    flags = ["--checkpoint", str(path)]
    config = parse_config(exercise_2_3.config, exercise_2_3.presets, flags)
    line = one_line(capsys, lambda _: exercise_2_3.main(config))
    assert f"{path} is damaged" in line


def test_weights_of_another_network_are_refused_by_their_shapes(digits_config, capsys):
    run(digits_config)
    path = Path(digits_config["run_dir"], "checkpoints", "last.pt")
    wide = {"kind": "mlp", "layers": [64, 99, 64, 10]}
    state = state_of(digits_config["run_dir"])
    checkpoint.save_checkpoint("other.pt", state | {"config": state["config"] | {"model": wide}})
    line = one_line(capsys, lambda _: load_model("other.pt"))
    assert "other.pt is of another MLP" in line
    assert "99" in line
    assert "64" in line
    sets = load_datasets(digits_config)[:2]
    other = build_model(digits_config | {"model": wide})
    resumed = digits_config | {"resume": digits_config["run_dir"], "epochs": 2}
    before = path.read_bytes()
    assert "99" in one_line(capsys, lambda _: train(other, *sets, resumed))
    assert "model.layers" in one_line(
        capsys, lambda _: train(other, *sets, resumed | {"model": wide})
    )
    assert path.read_bytes() == before


def test_what_a_killed_process_had_half_written_goes_when_its_run_goes_on(tmp_path):
    left, other = tmp_path / ".metrics.csv.123.tmp", tmp_path / "mine.tmp"
    left.touch()
    other.touch()
    with only_writer(tmp_path), pytest.raises(ValueError, match="another process"):
        left.touch()  # a process that writes has one for a moment
        with only_writer(tmp_path):
            pass
    assert left.exists() and other.exists()  # whoever is refused removes nothing
    with only_writer(tmp_path):
        assert not left.exists() and other.exists()


def test_without_a_stream_to_speak_on_a_run_goes_on(digits_config, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)  # as Python has it after 2>&-
    monkeypatch.setattr(sys, "stdout", None)
    results = exit_cleanly(exercise_1_1.main)(digits_config | {"epochs": 1})
    assert results["epochs"] == 1


def test_what_cannot_be_said_still_has_its_exit_code(monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    def fail(config):
        raise ValueError("a mistake")

    monkeypatch.setattr(sys, "stderr", Full())
    with pytest.raises(SystemExit) as ended:
        exit_cleanly(fail)({})
    assert ended.value.code == 2


def test_on_a_terminal_without_columns_there_is_a_line_an_epoch(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

        def fileno(self):
            return 2

    row = {"epoch": 1, "train/loss": 0.5, "val/accuracy": 0.5, "val/loss": 0.5}
    for columns, lines in ((0, 1), (80, 0)):
        monkeypatch.setattr(sys, "stderr", Terminal())
        size = os.terminal_size((columns, 24))
        monkeypatch.setattr(os, "get_terminal_size", lambda *_, size=size: size)
        progress = Progress(2, 5, [])
        progress.report([row])
        progress.close()
        assert capsys.readouterr().out.count("epoch 1/2") == lines
