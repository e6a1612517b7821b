"""Checkpoints: whole or absent, and never code."""

import contextlib
import errno
import io
import os
import pathlib
import pickle
import random
import stat

import pytest
import torch

import checkpoint
from checkpoint import (
    CheckpointWriter,
    load_checkpoint,
    load_last,
    load_model,
    mend,
    save_checkpoint,
)
from config import check_unchanged, complete_config
from models import build_model

STATE = {"epoch": 1, "model": {"weight": torch.arange(600.0)}, "history": []}


@pytest.fixture
def path(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints" / "last.pt"


def test_what_is_saved_is_loaded_and_plain_torch_reads_it_too(path):
    save_checkpoint(path, STATE)
    for state in (load_checkpoint(path), torch.load(path, weights_only=True)):
        assert torch.equal(state["model"]["weight"], STATE["model"]["weight"])
        assert state["format"] == checkpoint.FORMAT


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace"])
def test_a_save_that_fails_leaves_the_old_checkpoint(path, monkeypatch, call):
    save_checkpoint(path, STATE)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="space"):
        patch.setattr(
            {"os": os, "pathlib": pathlib.Path}[call.split(".")[0]], call.split(".")[-1], fail
        )
        save_checkpoint(path, STATE | {"epoch": 2})
    assert load_last(path.parents[1])["epoch"] == 1


def test_every_flipped_bit_is_noticed(path):
    save_checkpoint(path, STATE)
    content = path.read_bytes()
    draw = random.Random(0)
    for position in [0, len(content) - 1, *(draw.randrange(len(content)) for _ in range(200))]:
        flipped = bytearray(content)
        flipped[position] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match="damaged"):
            load_checkpoint(path)


def test_last_is_written_as_often_as_asked_and_best_where_an_epoch_is(path, tmp_path):
    writer = CheckpointWriter(tmp_path, {"checkpoint_every": 3, "epochs": 6})
    history, found = [], []
    for accuracy, loss in ((0.5, 3), (0.7, 2), (0.7, 2), (0.8, 2), (0.6, 1), (0.8, 1)):
        history.append({"val/accuracy": accuracy, "val/loss": loss})
        writer.save({"history": history})
        there = {file.stem: load_checkpoint(file)["epoch"] for file in path.parent.glob("*.pt")}
        epochs = [there.get(name, 0) for name in ("best", "last", "previous")]
        found.append((*epochs, load_last(tmp_path)["epoch"]))
    assert found[:3] == [(1, 0, 0, 1), (2, 0, 0, 2), (2, 3, 0, 3)]
    assert found[3:] == [(4, 3, 0, 4), (4, 3, 0, 4), (6, 6, 3, 6)]


def test_with_the_last_epoch_kept_best_is_written_together_with_last(path, tmp_path):
    writer = CheckpointWriter(tmp_path, {"checkpoint_every": 2, "epochs": 5, "keep": "last"})
    history, found = [], []
    for accuracy in (0.9, 0.7, 0.8, 0.6, 0.5):
        history.append({"val/accuracy": accuracy, "val/loss": 1.0})
        writer.save({"history": history})
        there = {file.stem: load_checkpoint(file)["epoch"] for file in path.parent.glob("*.pt")}
        found.append((there.get("best", 0), there.get("last", 0)))
    assert found == [(0, 0), (2, 2), (2, 2), (4, 4), (5, 5)]
    (path.parent / "best.pt").unlink()
    mend(tmp_path, load_last(tmp_path))
    assert load_checkpoint(path.parent / "best.pt")["epoch"] == 5


class Malicious:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_a_checkpoint_that_carries_code_is_refused_and_runs_nothing(path):
    buffer = io.BytesIO()
    torch.save({"format": 1, "model": Malicious()}, buffer, pickle_module=pickle)
    content = buffer.getvalue()
    seal = checkpoint.hashlib.sha256(content).digest()
    path.write_bytes(content + checkpoint.MARK + seal)
    with pytest.raises(ValueError, match="refused"):
        load_checkpoint(path)
    assert not os.path.exists("executed")  # noqa: PTH110


def test_a_newer_format_is_refused(path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    save_checkpoint(path, STATE)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="format 99"):
        load_checkpoint(path)


def test_load_model_rebuilds_the_network_in_eval_mode(path, digits_config):
    model = build_model(digits_config | {"seed": 5})
    save_checkpoint(path, STATE | {"model": model.state_dict(), "config": digits_config})
    loaded, config = load_model(path)
    assert config == digits_config
    assert not loaded.training
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(model(images), loaded(images))
    path.rename(path.with_name("best.pt"))
    assert torch.equal(load_model(path.parents[1])[0](images), model(images))


@pytest.mark.skipif(os.name != "posix", reason="no other system syncs folders")
@pytest.mark.parametrize(("number", "fine"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_file_system_that_cannot_sync_a_folder_is_no_fault(tmp_path, monkeypatch, number, fine):
    sync = os.fsync

    def partly(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", partly)
    with contextlib.nullcontext() if fine else pytest.raises(OSError, match="Input/output"):
        save_checkpoint(tmp_path / "best.pt", {"epoch": 3})
    assert load_checkpoint(tmp_path / "best.pt")["epoch"] == 3


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"model": {}}, "has no config: what a run saved has both$"),
        ({"config": {}, "model": {}}, "does not say of which network it is: its config has no"),
        ({"config": None, "model": {}}, "does not say of which network it is"),
        ({"config": {}, "code": pathlib.PurePosixPath("x")}, "refused: Weights only load failed$"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_in_few_words(path, state, reason):
    save_checkpoint(path, state)
    with pytest.raises(ValueError, match=reason):
        load_model(path)


def test_a_key_that_came_after_a_run_had_its_default_in_it(digits_config):
    config = complete_config(digits_config)
    started = {key: value for key, value in config.items() if key != "label_smoothing"}
    check_unchanged(started, config)
    with pytest.raises(ValueError, match=r"label_smoothing 0\.0 -> 0\.1"):
        check_unchanged(started, config | {"label_smoothing": 0.1})


def test_a_network_that_this_code_does_not_have_is_named(path, digits_config):
    for changes, reason in (
        ({"kind": "tiny"}, "model.kind must be one of"),
        ({"width": 3}, "model.width is no setting of a mlp"),
    ):
        config = digits_config | {"model": digits_config["model"] | changes}
        save_checkpoint(path, {"epoch": 1, "model": {}, "config": config})
        with pytest.raises(ValueError, match=f"of a network that is not here: {reason}"):
            load_model(path)
