"""Checkpoints that cannot be half written and cannot run code.

A checkpoint is an ordinary torch file, read with weights_only=True, followed by a mark and the
SHA-256 of everything before it: {"format", "epoch", "model", "optimizer", "scheduler", "config",
"history", "wandb_id"}.
"""

import hashlib
import io
import os
import pickle
import sys
from pathlib import Path

import torch

from models import build_model

FORMAT = 1
MARK = b"LAB01-sha256"


def save_checkpoint(path, state):
    """Write `state` so that `path` holds either its old content or all of the new one.

    The previous `last.pt` stays beside it as `previous.pt`.
    """
    path = Path(path)
    buffer = io.BytesIO()
    torch.save({"format": FORMAT} | state, buffer)
    content = buffer.getvalue()
    unfinished = path.with_name(f".{path.name}.tmp")
    with unfinished.open("wb") as file:
        file.write(content + MARK + hashlib.sha256(content).digest())
        file.flush()
        os.fsync(file.fileno())
    if path.name == "last.pt" and path.exists():
        path.replace(path.with_name("previous.pt"))
    unfinished.replace(path)
    _sync_folder(path.parent)


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
