"""Checkpoints that cannot be half written and cannot run code.

A checkpoint is an ordinary torch file, read with weights_only=True, followed by a mark and the
SHA-256 of everything before it: {"format", "epoch", "model", "optimizer", "scheduler", "config",
"history", "seconds", "wandb_id", "teacher", "data": {"classes", "mean", "std", "shape", "sha256"}}.
"""

import contextlib
import errno
import hashlib
import io
import os
import pickle
import shutil
import sys
from pathlib import Path

import torch
from torch import nn

from checks import first_line, started_config
from distributed import first_only
from models import build_model
from outcome import kept_of
from rules import check_model

FORMAT = 1
MARK = b"LAB01-sha256"


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Write `state` so that `path` holds either its old content or all of the new one.

    The previous `last.pt` stays beside it as `previous.pt`. Raises OSError on a full disk, say.
    """
    _write(Path(path), _sealed(state))


def _sealed(state):
    buffer = io.BytesIO()
    torch.save({"format": FORMAT} | state, buffer)
    buffer.seek(0, io.SEEK_END)
    buffer.write(MARK + hashlib.sha256(buffer.getbuffer()).digest())
    return buffer.getvalue()  # no copy, as adding to it would make


def _write(path, content):
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.name == "last.pt" and path.exists() and _split(path.read_bytes())[1]:
            path.replace(path.with_name("previous.pt"))  # a damaged one never replaces a whole one
        unfinished.replace(path)
        _sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):  # what is half written takes the room that is missing
            unfinished.unlink(missing_ok=True)
        raise


def _split(content):
    """(the torch file, whether its checksum fits)."""
    tail = len(MARK) + hashlib.sha256().digest_size
    body, seal = content[:-tail], content[-tail:]
    return body, seal == MARK + hashlib.sha256(body).digest()


class CheckpointWriter:
    """Writes the checkpoints of a run: `last` every checkpoint_every epochs and at the end, `best`
    after an epoch that is the best so far, or with config["keep"] "last" together with `last`.

    What cannot be written, on a full disk say, is tried again after the next epoch; in the last
    epoch it raises ValueError.
    """

    def __init__(self, folder, config):
        self.folder, self.config, self.waiting = Path(folder) / "checkpoints", config, {}

    @first_only
    def save(self, state):
        """`state` is that of the last epoch of state["history"]."""
        epoch, epochs = len(state["history"]), self.config["epochs"]
        keep = self.config.get("keep", "best")
        due = epoch % self.config["checkpoint_every"] == 0 or epoch == epochs
        best = kept_of(state["history"], keep) is state["history"][-1] and (due or keep == "best")
        last = due or "last.pt" in self.waiting
        content = _sealed(state | {"epoch": epoch, "config": self.config}) if best or last else b""
        self.waiting |= {"best.pt": content} if best else {}
        self.waiting |= {"last.pt": content} if last else {}
        for name in sorted(self.waiting):  # best before last: what last speaks of is there
            try:
                _write(self.folder / name, self.waiting[name])
                del self.waiting[name]
            except OSError as error:
                self._report(name, error, epoch, final=epoch == epochs)
                break

    def _report(self, name, error, epoch, final):
        free = shutil.disk_usage(self.folder).free / 2**20
        text = (
            f"{name} of epoch {epoch} could not be written to {self.folder} ({error.strerror}; "
            f"{len(self.waiting[name]) / 2**20:.1f} MiB to write, {free:.1f} MiB free)"
        )
        if final:
            run = self.folder.parent
            run = run.parent if (run.parent / "config.json").is_file() else run  # of --seeds
            raise ValueError(
                f"{text}: make room, then --resume {run} repeats what is missing"
            ) from None
        print(f"warning: {text}; the one before stays, trying again next epoch", file=sys.stderr)


def _sync_folder(folder):
    """Make a rename durable; Windows and some shared file systems have no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)


def load_checkpoint(path: str | Path) -> dict:
    """The state saved at `path`, on the CPU.

    Raises FileNotFoundError where there is none and ValueError where it is damaged, is no
    checkpoint of ours, carries code, or was written by a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; train one first: python exercise_1_3.py")
    body, whole = _split(path.read_bytes())
    if not whole:
        raise ValueError(f"checkpoint {path} is damaged or not ours: its checksum does not fit")
    try:
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = first_line(error).partition(". ")[0]
        raise ValueError(f"checkpoint {path} holds more than tensors, refused: {reason}") from None
    if not isinstance(state, dict) or "format" not in state:
        raise ValueError(f"checkpoint {path} holds no state of a network")
    if state["format"] > FORMAT:
        raise ValueError(
            f"checkpoint {path} has format {state['format']}, this version reads up to {FORMAT}: "
            f"update LAB01"
        )
    return state


def load_last(folder):
    """The newest whole checkpoint of a run: `last.pt`, `previous.pt` where that is damaged, or
    `best.pt` where that is newer. Says so where it is not the one that was saved last."""
    folder, newest, problems = Path(folder) / "checkpoints", None, {}
    for name in ("last.pt", "previous.pt", "best.pt"):
        try:
            state = load_checkpoint(folder / name)
        except (FileNotFoundError, ValueError) as problem:
            problems[name] = problem
        else:
            if newest is None or state["epoch"] > newest["epoch"]:
                newest, source = state, name
    if newest is None:
        raise problems["last.pt"]
    if error := problems.get("last.pt"):
        reason = error if (folder / "last.pt").exists() else f"{folder / 'last.pt'} is not there"
        print(f"{reason}; going on from {source}, epoch {newest['epoch']}", file=sys.stderr)
    return newest


def mend(folder, newest):
    """Make the checkpoints of a run whole: `last.pt` from `newest`, which `load_last` found, and
    `best.pt` from one of the epoch that is kept. Raises ValueError where none of it is whole."""
    folder, history = Path(folder) / "checkpoints", newest["history"]
    last = folder / "last.pt"
    if not last.is_file() or not _split(last.read_bytes())[1]:
        _write(last, _sealed(newest))
    if not history:
        return
    best = kept_of(history, newest["config"].get("keep", "best"))
    for name in ("best.pt", "last.pt", "previous.pt"):
        with contextlib.suppress(FileNotFoundError, ValueError):
            state = load_checkpoint(folder / name)
            row = state["history"][-1] if state["epoch"] else {}
            equal = row.get("val/accuracy") == best["val/accuracy"]
            # the best.pt of an older run is the first of equal epochs
            if row == best or (equal and name == "best.pt"):
                if name != "best.pt":
                    print(f"best.pt is not whole; {name} is of that epoch too", file=sys.stderr)
                    _write(folder / "best.pt", _sealed(state))
                return
    raise ValueError(
        f"{folder / 'best.pt'} is damaged or missing, and with it the weights of epoch "
        f"{best['epoch']}, the best so far: start the run afresh in a new folder"
    )


def load_weights(part, state, source):
    """part.load_state_dict(state); ValueError with `source` and the shapes where they differ."""
    try:
        part.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise ValueError(
            f"checkpoint {source} is of another {type(part).__name__}: {lines[-1].rstrip('.')}"
        ) from None


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint at `path`: itself, or the best.pt of a run folder.

    Raises ValueError for a folder of several seeds or runs, FileNotFoundError where nothing is.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}; name a run folder or its best.pt")
    if path.name == "checkpoints" and (path / "best.pt").is_file():
        return path / "best.pt"
    if seeds := sorted(path.glob("seed_*")):
        raise ValueError(f"{path} is of several seeds: name one of {', '.join(map(str, seeds))}")
    if not path.is_dir() or (best := path / "checkpoints" / "best.pt").is_file():
        return best if path.is_dir() else path
    if runs := sorted(file.parent.parent for file in path.glob("**/checkpoints/best.pt")):
        some = ", ".join(map(str, runs[:3])) + ", ..." * (len(runs) > 3)
        raise ValueError(f"{path} is no run, it holds some: name one, {some}")
    raise FileNotFoundError(
        f"no checkpoint at {best}: that folder is no run, or has not trained an epoch"
    )


def data_dir_of(state, path):
    """Where the data are of the run whose checkpoint at `path` holds `state`: they may have been
    moved since it was written, and the resumed run told so."""
    told = started_config(path.parent.parent).get("data_dir")
    return told if isinstance(told, str) else state["config"]["data_dir"]


def load_model(path: str | Path) -> tuple[nn.Module, dict]:
    """(model in eval mode with the weights saved at `path`, a checkpoint or a run folder; config it
    was trained with). Raises FileNotFoundError where there is none, ValueError where it is damaged
    or of another network."""
    path = find_checkpoint(path)
    state = load_checkpoint(path)
    return build_trained(state, path), state["config"]


def load_trained(path: str | Path) -> tuple[nn.Module, dict]:
    """(model in eval mode with the weights saved at `path`, all that was saved there). Raises
    ValueError where that does not say which images it was trained on."""
    state = load_checkpoint(path)
    model = build_trained(state, path)
    if "data" not in state:
        raise ValueError(
            f"checkpoint {path} does not say which images it was trained on: name one that a run "
            f"saved"
        )
    return model, state


def build_trained(state, path):
    """The network, in eval mode, of what was saved at `path`."""
    if missing := {"config", "model"} - state.keys():
        raise ValueError(f"checkpoint {path} has no {' and no '.join(sorted(missing))}: what a run "
                         f"saved has both")  # fmt: skip
    if not isinstance(state["config"], dict) or "model" not in state["config"]:
        raise ValueError(f"checkpoint {path} does not say of which network it is: its config has "
                         f"no model")  # fmt: skip
    config, data = dict(state["config"]), state.get("data")
    if "pretrained" in config["model"]:
        config["model"] = config["model"] | {"pretrained": False}  # its weights are in the file
    try:
        check_model(config["model"])
    except ValueError as error:
        raise ValueError(f"checkpoint {path} is of a network that is not here: {error}") from None
    model = build_model(config, data and (tuple(data["shape"]), len(data["classes"])))
    load_weights(model, state["model"], path)
    return model.eval()
