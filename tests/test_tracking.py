"""The three sinks say the same, and a resumed run says nothing twice."""

import csv
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DATA
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

import exercise_1_1
from dataset import load_datasets
from models import build_model
from training import train


def run(config):
    train_set, val_set, _ = load_datasets(config)
    train(build_model(config), train_set, val_set, config)
    return Path(config["run_dir"])


def rows_of(folder):
    with (folder / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def scalars(folder):
    """{tag: [(step, value), ...]} as TensorBoard reads them."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "per_second" not in tag]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def expected_scalars(folder):
    rows = rows_of(folder)
    tags = [tag for tag in rows[0] if tag != "epoch"]
    return {tag: [(row["epoch"], pytest.approx(row[tag])) for row in rows] for tag in tags}


def test_tensorboard_holds_every_number_of_the_csv_file(digits_config):
    folder = run(digits_config | {"epochs": 3})
    assert scalars(folder) == expected_scalars(folder)
    names = {"train/loss", "train/accuracy", "train/lr"}
    assert scalars(folder).keys() == names | {"val/loss", "val/accuracy"}


def test_a_resumed_run_shows_no_point_twice_and_none_missing(digits_config):
    folder = run(digits_config | {"epochs": 3, "checkpoint_every": 2})
    (folder / "checkpoints" / "last.pt").unlink()  # as if killed after the third epoch was logged
    run(digits_config | {"epochs": 5, "resume": str(folder)})
    assert [row["epoch"] for row in rows_of(folder)] == [1, 2, 3, 4, 5]
    assert scalars(folder) == expected_scalars(folder)


def wandb_history(path):
    """The logged rows of an offline run: a log of protobuf records in blocks of 32 KiB."""
    content, position, rows, record = path.read_bytes(), 7, [], b""
    while position + 7 <= len(content):
        left_in_block = 2**15 - position % 2**15
        if left_in_block < 7:
            position += left_in_block
            continue
        length, kind = struct.unpack("<HB", content[position + 4 : position + 7])
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            message = wandb_internal_pb2.Record.FromString(record)
            items = message.history.item
            rows += [{i.key or i.nested_key[0]: json.loads(i.value_json) for i in items}] * bool(
                items
            )
            record = b""
    return rows


def test_an_offline_wandb_run_reads_back_with_the_same_values(digits_config):
    folder = run(digits_config | {"epochs": 3, "wandb_mode": "offline"})
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    logged = wandb_history(file)
    expected = rows_of(folder)
    assert [{key: row[key] for key in expected[0]} for row in logged] == expected
    assert all(row["train/images_per_second"] > 0 for row in logged)


def test_a_wandb_that_cannot_start_does_not_end_the_run(digits_config, monkeypatch, capsys):
    import wandb

    def fail(**settings):
        raise ConnectionResetError("no service")

    monkeypatch.setattr(wandb, "init", fail)
    folder = run(digits_config | {"wandb_mode": "auto"})
    assert "training goes on without it" in capsys.readouterr().err
    assert len(rows_of(folder)) == 1


def test_disabled_does_not_even_import_wandb(digits_config, tmp_path):
    code = (
        "import sys, exercise_1_1 as e; "
        "e.main(e.config | {'dataset': 'digits', 'epochs': 1, 'wandb_mode': 'disabled'}); "
        "assert 'wandb' not in sys.modules"
    )
    environment = {"PYTHONPATH": str(DATA.parent), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)


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
