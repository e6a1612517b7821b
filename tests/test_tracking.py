"""The three sinks say the same, and a resumed run says nothing twice."""

import csv
import errno
import json
import math
import os
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tensorboard import program
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import exercise_1_1
import tracking
from checkpoint import load_last
from dataset import data_sha256, load_datasets
from events import EventFile
from models import build_model
from plots import read_metrics
from tracking import describe_process, git_commit, write_metrics
from training import train


def run(config):
    train_set, val_set, _ = load_datasets(config)
    train(build_model(config), train_set, val_set, config)
    return Path(config["run_dir"])


def rows_of(folder):
    with (folder / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def in_csv(tag):
    return tag.startswith(("train/", "val/")) and "per_second" not in tag


def scalars(folder):
    """{tag: [(step, value), ...]} of the file's numbers as TensorBoard reads them."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if in_csv(tag)]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def expected_scalars(folder):
    rows = rows_of(folder)
    tags = [tag for tag in rows[0] if tag != "epoch"]
    return {tag: [(row["epoch"], pytest.approx(row[tag])) for row in rows] for tag in tags}


def test_a_measure_that_was_added_later_is_empty_before(tmp_path):
    history = [{"epoch": 1, "val/loss": 0.5}, {"epoch": 2, "val/loss": 0.25, "val/sure": 0.75}]
    write_metrics(tmp_path, history)
    assert (tmp_path / "metrics.csv").read_text() == (
        "epoch,val/loss,val/sure\n1,0.5,\n2,0.25,0.75\n"
    )
    first, second = read_metrics(tmp_path / "metrics.csv")
    assert math.isnan(first["val/sure"])
    assert second == history[1]


def test_tensorboard_holds_every_number_of_the_csv_file(digits_config):
    folder = run(digits_config | {"epochs": 3})
    assert scalars(folder) == expected_scalars(folder)
    names = {"train/loss", "train/accuracy", "train/lr"}
    assert scalars(folder).keys() == names | {"val/loss", "val/accuracy"}


def test_a_resumed_run_is_noted_and_shows_no_point_twice_and_none_missing(digits_config):
    folder = run(digits_config | {"epochs": 3, "checkpoint_every": 2})
    (folder / "checkpoints" / "last.pt").unlink()  # as if killed after the third epoch was logged
    reached = load_last(folder)["epoch"]
    run(digits_config | {"epochs": 5, "resume": str(folder)})
    (part,) = json.loads((folder / "manifest.json").read_text())["resumed"]
    assert part["after_epoch"] == reached
    assert [row["epoch"] for row in rows_of(folder)] == [1, 2, 3, 4, 5]
    assert scalars(folder) == expected_scalars(folder)


def test_rows_that_a_full_disk_kept_from_tensorboard_come_with_the_resumed_run(
    digits_config, monkeypatch
):
    config = digits_config | {"epochs": 3}

    def full(self, metrics, step, *values):
        if step > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(self, metrics, step, *values)

    add = EventFile.add
    with monkeypatch.context() as patch:
        patch.setattr(EventFile, "add", full)
        folder = run(config)
    assert [step for step, _ in scalars(folder)["val/loss"]] == [1]
    run(config | {"epochs": 4, "resume": str(folder)})
    assert scalars(folder) == expected_scalars(folder)


def ask(url, **query):
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
        return json.load(answer)


def served_scalars(url):
    """{tag: [(step, value), ...]} as a TensorBoard server answers at present."""
    return {
        tag: [(step, value) for _, step, value in ask(f"{url}scalars", run=name, tag=tag)]
        for name, tags in ask(f"{url}tags").items()
        for tag in tags
        if in_csv(tag)
    }


def test_tensorboard_serves_every_point_of_a_killed_and_twice_resumed_run_once(
    digits_config, forks
):
    folder = Path(digits_config["run_dir"])
    flags = ["--dataset", "digits", "--epochs", 6, "--checkpoint_every", 3, "--device", "cpu"]
    flags += ["--wandb_mode", "disabled", "--run_dir", folder]
    child = forks.start("exercise_1_1.py", *flags, hook=["forks", "gone_after", 5])
    assert child.wait() == 9
    assert len(rows_of(folder)) == 5
    again = digits_config | {"resume": str(folder), "checkpoint_every": 3}
    run(again | {"epochs": 7})
    assert len(list((folder / "tensorboard").iterdir())) == 2
    run(again | {"epochs": 8})
    assert [row["epoch"] for row in rows_of(folder)] == [1, 2, 3, 4, 5, 6, 7, 8]
    for fast in ("true", "false"):  # its two readers of event files
        server = program.TensorBoard()
        server.configure(argv=["", "--logdir", str(folder), "--port", "0", "--load_fast", fast])
        url = server.launch() + "data/plugin/scalars/"
        deadline = time.monotonic() + 20
        while served_scalars(url) != expected_scalars(folder) and time.monotonic() < deadline:
            time.sleep(0.1)  # it reads the files beside
        assert served_scalars(url) == expected_scalars(folder)


def test_disabled_does_not_even_import_wandb(forks):
    flags = ["--dataset", "digits", "--epochs", 1, "--wandb_mode"]
    disabled = forks.start("exercise_1_1.py", *flags, "disabled", hook=["forks", "without_wandb"])
    assert disabled.wait() == 0, disabled.err
    flags += ["offline", "--run_dir", "offline"]  # an own name, though it starts in the same second
    offline = forks.start("exercise_1_1.py", *flags, hook=["forks", "without_wandb"])
    offline.wait()
    assert "wandb" in offline.err  # so the hook hides it


@pytest.mark.parametrize(
    ("module", "command"),
    [("studies.mirrored", "python -m studies.mirrored 'a b'"), (None, "mirrored.py 'a b'")],
)
def test_the_manifest_tells_how_to_start_it_again(monkeypatch, module, command):
    program = ModuleType("__main__")
    program.__spec__ = module and ModuleSpec(module, None)
    monkeypatch.setitem(sys.modules, "__main__", program)
    monkeypatch.setattr(sys, "argv", ["/somewhere/studies/mirrored.py", "a b"])
    assert describe_process(torch.device("cpu"))["command"] == command


def test_the_hash_of_the_data_is_of_pixels_and_labels(random_images):
    seen = {data_sha256(random_images)}
    for column in (random_images.images, random_images.labels):
        column.view(-1)[0] += 1
        seen.add(data_sha256(random_images))
    assert len(seen) == 3


def test_a_commit_has_a_plus_where_files_differ_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "__file__", str(tmp_path / "tracking.py"))
    assert git_commit() == "unknown"

    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *words], check=True, capture_output=True)

    Path("file").write_text("one")
    git("init")
    git("add", "file")
    git("commit", "-m", "one")
    commit = git_commit()
    assert len(commit) == 12
    Path("new").touch()  # untracked, which changes nothing
    assert git_commit() == commit
    Path("file").write_text("two")
    assert git_commit() == f"{commit}+"


def test_results_json_has_the_promised_keys(digits_config):
    results = exercise_1_1.main(digits_config)
    written = json.loads((Path(digits_config["run_dir"]) / "results.json").read_text())
    keys = {"exercise", "config", "val", "test", "seconds", "epochs", "parameters", "run_dir"}
    assert written.keys() == results.keys() == keys
    assert written["val"].keys() == {"accuracy", "loss", "best_epoch"}
    assert written["test"].keys() == {"accuracy", "loss", "confusion"}
    assert written["test"]["confusion"] == results["test"]["confusion"].tolist()
    manifest = json.loads((Path(digits_config["run_dir"]) / "manifest.json").read_text())
    assert manifest.keys() >= {"command", "commit", "torch", "device", "threads", "data_sha256"}
    assert manifest["data_sha256"] == data_sha256(load_datasets(digits_config)[0])


def test_a_run_that_goes_on_after_the_clock_was_set_back_is_read_to_its_end(
    digits_config, monkeypatch
):
    folder = run(digits_config | {"epochs": 2})
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() - 3600 * 10**9)
    run(digits_config | {"resume": str(folder), "epochs": 4})
    assert scalars(folder) == expected_scalars(folder)
    assert len(rows_of(folder)) == 4
