"""Checkpoints that cannot be half written and cannot run code.

A checkpoint is an ordinary torch file, read with weights_only=True, followed by a mark and the
SHA-256 of everything before it: {"format", "epoch", "model", "optimizer", "scheduler", "config",
"history", "wandb_id"}.
"""

import hashlib
import io
import os
import pickle
import shutil
import sys
from pathlib import Path

import torch

from distributed import first_only
from models import build_model

FORMAT = 1
MARK = b"LAB01-sha256"


def save_checkpoint(path, state):
    """Write `state` so that `path` holds either its old content or all of the new one.

    The previous `last.pt` stays beside it as `previous.pt`.
    """
    _write(Path(path), _sealed(state))


def _sealed(state):
    buffer = io.BytesIO()
    torch.save({"format": FORMAT} | state, buffer)
    content = buffer.getvalue()
    return content + MARK + hashlib.sha256(content).digest()


def _write(path, content):
    unfinished = path.with_name(f".{path.name}.tmp")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if path.name == "last.pt" and path.exists():
        path.replace(path.with_name("previous.pt"))
    unfinished.replace(path)
    _sync_folder(path.parent)


class CheckpointWriter:
    """Writes the checkpoints of a run: `best` whenever the validation accuracy rose, `last` every
    checkpoint_every epochs and at the end.

    What cannot be written, on a full disk say, is tried again after the next epoch; in the last
    epoch it raises ValueError.
    """

    def __init__(self, folder, config):
        self.folder, self.config, self.waiting = Path(folder) / "checkpoints", config, {}

    @first_only
    def save(self, state):
        """`state` is that of the last epoch of state["history"]."""
        *before, now = [row["val/accuracy"] for row in state["history"]]
        epoch, epochs = len(before) + 1, self.config["epochs"]
        content = _sealed(state | {"epoch": epoch, "config": self.config})
        if now > max(before, default=-1.0):
            self.waiting["best.pt"] = content
        due = epoch % self.config["checkpoint_every"] == 0 or epoch == epochs
        if due or "last.pt" in self.waiting:
            self.waiting["last.pt"] = content
        for name in sorted(self.waiting):  # best before last: what last speaks of is there
            try:
                _write(self.folder / name, self.waiting[name])
                del self.waiting[name]
            except OSError as error:
                self._report(name, error, epoch, final=epoch == epochs)

    def _report(self, name, error, epoch, final):
        free = shutil.disk_usage(self.folder).free / 2**20
        text = (
            f"{name} of epoch {epoch} could not be written to {self.folder} ({error.strerror}; "
            f"{len(self.waiting[name]) / 2**20:.1f} MiB to write, {free:.1f} MiB free)"
        )
        if final:
            raise ValueError(
                f"{text}: make room, then --resume {self.folder.parent} repeats what is missing"
            ) from None
        print(f"warning: {text}; the one before stays, trying again next epoch", file=sys.stderr)


def _sync_folder(folder):
    """Make a rename durable; Windows has no such call and needs none."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def load_checkpoint(path):
    """The state saved at `path`, on the CPU.

    Raises FileNotFoundError where there is none and ValueError where it is damaged, is no
    checkpoint of ours, carries code, or was written by a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; train one first: python exercise_1_3.py")
    content = path.read_bytes()
    tail = len(MARK) + hashlib.sha256().digest_size
    body, seal = content[:-tail], content[-tail:]
    if seal != MARK + hashlib.sha256(body).digest():
        raise ValueError(f"checkpoint {path} is damaged or not ours: its checksum does not fit")
    try:
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"checkpoint {path} holds more than tensors, refused: {reason}") from None
    if state["format"] > FORMAT:
        raise ValueError(
            f"checkpoint {path} has format {state['format']}, this version reads up to {FORMAT}: "
            f"update LAB01"
        )
    return state


def load_last(folder):
    """The newest whole checkpoint of a run: `last.pt`, or `previous.pt` where that is damaged."""
    folder = Path(folder) / "checkpoints"
    try:
        return load_checkpoint(folder / "last.pt")
    except (FileNotFoundError, ValueError) as error:
        if not (folder / "previous.pt").is_file():
            raise
        state = load_checkpoint(folder / "previous.pt")
        print(f"{error}; going on from the one before, epoch {state['epoch']}", file=sys.stderr)
        return state


def load_model(path):
    """(model in eval mode with the weights saved at `path`, config it was trained with)."""
    state = load_checkpoint(path)
    model = build_model(state["config"])
    model.load_state_dict(state["model"])
    return model.eval(), state["config"]
