"""Whatever is wrong with W&B, the same weights are trained, and one line says what is lost."""

import json
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import wandb
from conftest import DATA
from test_tracking import rows_of, run
from wandb.proto import wandb_internal_pb2

import exercise_1_1
import exercise_1_3
import wandb_sink
from checkpoint import load_model

RIGHT_SHAPE = "0123456789abcdef" * 3
NOWHERE = "http://127.0.0.1:9"  # no server listens there


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
            keys = [i.key or "/".join(i.nested_key[-2:]) for i in items]
            values = [json.loads(i.value_json) for i in items]
            rows += [dict(zip(keys, values, strict=True))] * bool(items)
            record = b""
    return rows


def test_an_offline_wandb_run_reads_back_with_the_same_values(digits_config):
    folder = run(digits_config | {"epochs": 3, "wandb_mode": "offline"})
    wandb.teardown()  # its service writes a little later
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    logged = wandb_history(file)
    expected = rows_of(folder)
    assert [{key: row[key] for key in expected[0]} for row in logged] == expected
    assert all(row["train/images_per_second"] > 0 for row in logged)


@pytest.mark.parametrize(
    ("outside", "asked", "mode"),
    [("disabled", "auto", "disabled"), ("offline", "auto", "offline"), ("", "auto", "auto")]
    + [("disabled", "offline", "offline"), ("dryrun", "auto", "offline"), ("?", "auto", "auto")],
)
def test_what_wandbs_own_variable_says_holds_where_the_config_leaves_it_open(
    digits_config, monkeypatch, outside, asked, mode
):
    monkeypatch.setenv("WANDB_MODE", outside)
    config, started = digits_config | {"wandb_mode": asked}, []
    monkeypatch.setattr(
        wandb_sink.WandbSink, "_start", lambda *arguments: started.append(arguments)
    )
    wandb_sink.WandbSink(Path(), config)
    assert wandb_sink.mode_of(config) == mode
    assert bool(started) == (mode != "disabled")


@pytest.fixture
def no_account(tmp_path, monkeypatch):
    """A home without a key, and W&B as freshly imported."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "XDG_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_BASE_URL", NOWHERE)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture(scope="module")
def weights_without_wandb(tmp_path_factory):
    """weights(config): those of the config trained with W&B disabled, trained once."""
    trained = []

    def weights(config):
        if not trained:
            folder = str(tmp_path_factory.mktemp("disabled") / "run")
            trained.append(weights_of(run(config | {"run_dir": folder})))
        return trained[0]

    return weights


def weights_of(folder):
    return load_model(folder / "checkpoints" / "best.pt")[0].state_dict()


def assert_same(weights, others):
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


FAULTS = {
    "no account": ("auto", {}, None),
    "no key, but asked to be online": ("online", {}, "not online"),
    "a key of the wrong shape": ("auto", {"WANDB_API_KEY": "short"}, "not online"),
    "no network": ("auto", {"WANDB_API_KEY": RIGHT_SHAPE}, "not online"),
    "online and no network": ("online", {"WANDB_API_KEY": RIGHT_SHAPE}, "not online"),
    "a file for its folder": ("auto", {"WANDB_DIR": "file"}, None),
    "a file for its cache": ("auto", {"WANDB_CACHE_DIR": "file"}, "cannot write to file"),
    "a file for its data": ("auto", {"WANDB_DATA_DIR": "file"}, None),
    "a file for its settings": ("auto", {"WANDB_CONFIG_DIR": "file"}, None),
    "a setting that is none": ("auto", {"WANDB_INIT_TIMEOUT": "soon"}, "goes on without it"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_wandb_costs_one_line_and_no_bit(
    fault, digits_config, no_account, weights_without_wandb, monkeypatch, capfd
):
    mode, environment, said = FAULTS[fault]
    expected = weights_without_wandb(digits_config)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    capfd.readouterr()
    start = time.monotonic()
    folder = run(digits_config | {"wandb_mode": mode})
    wandb.teardown()
    assert time.monotonic() - start < 30
    lines = capfd.readouterr().err.splitlines()  # those of its service too
    assert [line.startswith("warning: W&B") and said in line for line in lines] == [True] * bool(
        said
    )
    assert_same(weights_of(folder), expected)
    if said != "goes on without it":
        (file,) = folder.glob("wandb/offline-run-*/*.wandb")
        assert [row["val/loss"] for row in wandb_history(file)] == [
            row["val/loss"] for row in rows_of(folder)
        ]


def test_wandb_is_waited_for_as_long_as_readme_says():
    text = (DATA.parent / "README.md").read_text(encoding="utf-8")
    (seconds,) = re.findall(r"cannot\s+be\s+reached\s+\(after\s+(\d+)\s+seconds\)", text)
    assert wandb_sink.SETTINGS["WANDB_INIT_TIMEOUT"] == seconds


def test_without_wandb_installed_a_run_says_so_and_trains(
    digits_config, weights_without_wandb, monkeypatch, capfd
):
    expected = weights_without_wandb(digits_config)
    capfd.readouterr()
    monkeypatch.setitem(sys.modules, "wandb", None)
    folder = run(digits_config | {"wandb_mode": "auto"})
    (line,) = capfd.readouterr().err.splitlines()
    assert "goes on without it" in line
    assert_same(weights_of(folder), expected)


SERVICE_KILLED = """
import json, os, signal, sys
from pathlib import Path
import tracking
from dataset import load_datasets
from models import build_model
from training import train

log = tracking.Tracker.log

def children():
    for path in Path("/proc").glob("[0-9]*/stat"):
        name, _, rest = path.read_text().partition("(")[2].rpartition(")")
        if rest.split()[1] == str(os.getpid()):
            yield name, int(path.parent.name)

def kill_service(self, metrics, step):
    if step == 2:
        (service,) = [pid for name, pid in children() if name == "wandb-core"]
        os.kill(service, signal.SIGKILL)
        os.waitid(os.P_PID, service, os.WEXITED | os.WNOWAIT)
    log(self, metrics, step)

tracking.Tracker.log = kill_service
config = json.loads(sys.argv[1])
train_set, val_set, _ = load_datasets(config)
train(build_model(config), train_set, val_set, config)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the service in /proc")
def test_a_killed_service_of_wandb_costs_one_line_and_no_bit(digits_config, no_account, tmp_path):
    config = digits_config | {"epochs": 4}
    expected = weights_of(run(config | {"run_dir": str(tmp_path / "disabled")}))
    command = [sys.executable, "-c", SERVICE_KILLED]
    command.append(json.dumps(config | {"wandb_mode": "auto"}))
    environment = os.environ | {"PYTHONPATH": str(DATA.parent)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: W&B stopped")
    assert len(rows_of(tmp_path / "run")) == 4
    assert_same(weights_of(tmp_path / "run"), expected)


def offline_files(folder):
    (files,) = folder.glob("wandb/offline-run-*/files")
    return files


def test_seeds_trained_at_once_are_one_offline_run_each(digits_config, no_account):
    config = digits_config | {"seeds": [0, 1], "epochs": 2, "wandb_mode": "offline"}
    exercise_1_1.main(config)
    wandb.teardown()
    for seed in (0, 1):
        (file,) = Path(config["run_dir"]).glob(f"seed_{seed}/wandb/offline-run-*/*.wandb")
        rows = [row for row in wandb_history(file) if "train/loss" in row]
        assert [row["epoch"] for row in rows] == [1, 2]
        assert "predictions/path" in wandb_history(file)[-1]
        assert f"run-seed_{seed}".encode() in file.read_bytes()  # its name


def test_pictures_predictions_and_the_best_values_reach_an_offline_run(digits_config, no_account):
    model = exercise_1_3.config["model"] | {"layers": [8]}
    config = exercise_1_3.config | digits_config | {"model": model, "wandb_mode": "offline"}
    results = exercise_1_3.main(config | {"epochs": 2})
    wandb.teardown()  # its service writes a little later
    folder = Path(config["run_dir"])
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    last = wandb_history(file)[-1]
    names = {"samples", "curves", "confusion", "mistakes"}
    assert last.keys() >= {f"plots/{name}/path" for name in names}
    table = json.loads((offline_files(folder) / last["predictions/path"]).read_text())
    assert table["columns"] == ["image", "true", "predicted", "confidence", "map"]
    assert len(table["data"]) == 50
    wrong = round((1 - results["val"]["accuracy"]) * 144)
    for number, (image, true, predicted, _, overlay) in enumerate(table["data"]):
        assert (true != predicted) == (number < wrong)
        assert image == overlay == "Image"  # they lie in an artifact, which the log lists
    records = file.read_bytes()
    assert len(set(re.findall(rb"media/images/(\w+\.png)", records))) > 50
    for word in (b"best/test_accuracy", b"exercise_1_3", b"digits"):
        assert word in records


def test_a_fault_of_wandb_after_the_training_costs_one_line(
    digits_config, no_account, monkeypatch, capfd
):
    def broken(*arguments):
        raise RuntimeError("no table today")

    monkeypatch.setattr(wandb, "Table", broken)
    capfd.readouterr()
    exercise_1_1.main(digits_config | {"wandb_mode": "offline"})
    (line,) = capfd.readouterr().err.splitlines()
    assert line == "warning: W&B stopped (no table today); training goes on without it"
    assert Path(digits_config["run_dir"], "results.json").is_file()


class OnlineRun:
    """What the lab asks of an online run, remembered."""

    id = "abcdefgh"

    def __init__(self, logged):
        self.logged, self.summary = logged, {}

    def define_metric(self, *names, **settings):
        pass

    def log(self, row):
        self.logged.append(row["epoch"])

    def finish(self):
        pass


def test_a_run_that_is_gone_on_with_online_is_the_same_run_there_and_logs_what_is_new(
    digits_config, monkeypatch
):
    started, logged = [], []
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "init", lambda **words: started.append(words) or OnlineRun(logged))
    config = digits_config | {"wandb_mode": "online"}
    run(config | {"epochs": 2})
    run(config | {"epochs": 4, "resume": config["run_dir"]})
    assert [(words["id"], words["resume"]) for words in started] == [
        (None, None),
        ("abcdefgh", "allow"),
    ]
    assert logged == [1, 2, 3, 4]


def test_the_run_that_was_logged_last_is_that_of_the_latest_time(tmp_path):
    for name in ("offline-run-20240202_000000-bbbbbbbb", "run-20240101_000000-aaaaaaaa"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    assert wandb_sink.last_id(tmp_path) == "bbbbbbbb"
    (tmp_path / "wandb" / "run-20240303_000000-cccccccc").mkdir()
    assert wandb_sink.last_id(tmp_path) == "cccccccc"
    (tmp_path / "wandb" / "offline-run-20240404_000000-my-own-id").mkdir()
    assert wandb_sink.last_id(tmp_path) == "my-own-id"
