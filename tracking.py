"""Where a run leaves its traces: one folder, and one log(metrics, step) with three sinks."""

import contextlib
import csv
import io
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from checks import already_there, first_line
from dataset import data_sha256
from distributed import first_only, rank, world
from events import EventFile, chart_layout, config_text, hparams_start, last_step
from files import write_json, write_whole
from flags import program
from outcome import leave_behind, running_exercise
from wandb_sink import WandbSink


def open_run(config, fill=lambda folder: None):
    """Create the run folder with config.json and what `fill(folder)` writes; return its path.

    It appears complete or not at all, and of two runs that start with one name one wins: the other
    gets ValueError, as where the folder was there before or cannot be written. A run that the
    config resumes has its folder, and of several processes rank 0 alone makes one.
    """
    folder = Path(config["run_dir"])
    if config["resume"] != "none" or rank() > 0:
        return folder
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        for name in ("checkpoints", "tensorboard", "plots"):
            (unfinished / name).mkdir(parents=True, exist_ok=True)
        write_json(unfinished / "config.json", config)
        fill(unfinished)
        unfinished.rename(folder)
    except OSError as error:
        raise ValueError(
            already_there(folder, config)
            if folder.is_dir()
            else f"run folder {folder} cannot be written: {error.strerror or error}; choose "
            f"another --run_dir"
        ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


@contextlib.contextmanager
def only_writer(folder):
    """Hold the run folder; raises ValueError where another process holds it.

    The system lets go of it when the process ends, however it ends.
    """
    if rank() > 0:  # it writes nothing
        yield
        return
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"run folder {folder} is being written by another process: wait for it, or choose "
            f"another --run_dir"
        ) from None
    except OSError as error:
        raise ValueError(
            f"run folder {folder} cannot be written: {error.strerror or error}"
        ) from None
    for left in folder.glob(".*.tmp"):  # what a process that was killed had half written
        with contextlib.suppress(OSError):
            left.unlink()
    try:
        yield
    finally:
        lock.release()


def describe_process(device):
    """Command, commit, versions, device and threads of this process."""
    return {
        "command": shlex.join([*program(), *sys.argv[1:]]),
        "commit": git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in ("torchvision", "numpy", "pillow")},
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "processes": world(),
    }


@contextlib.contextmanager
def only_warned(what):
    """What fails inside, on a full disk say, costs a line, not the run."""
    try:
        yield
    except Exception as error:  # memory that is missing, or a name that cannot be drawn
        reason = getattr(error, "strerror", None) or first_line(error)
        print(f"warning: {what} could not be written ({reason})", file=sys.stderr)


def write_manifest(folder, config, sha256, device):
    """What it takes to repeat the run: command, commit, versions, device, threads, data."""
    data = {"dataset": config["dataset"], "data_sha256": sha256}
    about = {"started": datetime.now().astimezone().isoformat(timespec="seconds")}
    about |= {"exercise": known} if (known := running_exercise()) else {}
    about |= describe_process(device) | data | {"resumed": []}
    write_json(folder / "manifest.json", about)


def known_sha256(state, source):
    """The data_sha256 of what the network of a checkpoint was trained on, None where nobody knows.

    An older checkpoint leaves it to the manifest of its run folder; `source` is the one or the
    other.
    """
    if "sha256" in state.get("data", {}):
        return state["data"]["sha256"]
    source = Path(source).absolute()
    folder = source if source.is_dir() else source.parent.parent
    with contextlib.suppress(OSError, ValueError):
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return manifest.get("data_sha256")
    return None


@first_only
def check_same_data(state, source, train_set, way_out="start a new run"):
    """Raise ValueError where the network of the checkpoint `state` was trained on other pictures
    than those of `train_set`: some of those that it held out may be among these."""
    if known_sha256(state, source) not in (None, data_sha256(train_set)):
        raise ValueError(
            f"the training images of {source} are not those that it was started with (their "
            f"data_sha256 is another): bring those back, or {way_out}"
        )


@first_only
def note_resumed(folder, config, epoch, device):
    """Add to the manifest that the run goes on, after `epoch` epochs, and by what."""
    write_json(folder / "config.json", config)
    path, manifest = folder / "manifest.json", {"resumed": []}
    with contextlib.suppress(OSError, ValueError, TypeError):  # one that is lost does not matter
        manifest |= json.loads(path.read_text(encoding="utf-8"))
    manifest["resumed"].append({"after_epoch": epoch} | describe_process(device))
    write_json(path, manifest)


def git_commit():
    """The commit of this code, with a plus where files differ from it; "unknown" without git."""
    git = ["git", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
    try:
        home = Path(__file__).parent
        return subprocess.run(
            git, cwd=home, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def device_name(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    instructions = torch.backends.cpu.get_cpu_capability()  # AVX2, AVX512, ...: bits depend on it
    return f"{processor_name()} {device.type}, {os.cpu_count()} cores, {instructions}"


def processor_name():
    """What the processor calls itself, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class Tracker:
    """log(metrics, step) to TensorBoard, W&B and metrics.csv under the same `split/metric` names.

    `history` holds the rows of the epochs that a resumed run keeps; later ones are dropped from
    TensorBoard and metrics.csv, so that no point is there twice. W&B takes nothing back: epochs
    that were lost with a checkpoint are there as they were and as they are trained again. What
    cannot be written, on a full disk say, is tried again after the next epoch: none of this ends a
    run, whose history is in the checkpoint.
    `norms(epoch)` are more scalars, for TensorBoard and W&B alone. Without `wandb` W&B is left to
    the end of the run. Of several processes rank 0 alone writes.
    """

    def __init__(self, folder, config, history, wandb_id=None, norms=lambda epoch: {}, wandb=True):
        self.folder, self.rows, self.events = folder, list(history), None
        self.wandb_id, self.config, self.norms = None, config, norms
        if rank() > 0:
            return
        last = min(last_step(folder / "tensorboard"), len(history))
        self.purge_step = last + 1
        self.unwritten = list(history[last:])  # what TensorBoard does not have yet
        self.wandb = WandbSink(folder, config if wandb else {"wandb_mode": "disabled"}, wandb_id)
        for row in [] if wandb_id else history:
            self.wandb.log(row)
        self.wandb_id = self.wandb.id
        self._write()

    @first_only
    def log(self, metrics, step):
        """`metrics` maps split/metric to a float; `step` is the epoch, from 1."""
        row = {"epoch": step} | metrics
        self.rows.append(row)
        everything = row | self.norms(step)
        self.unwritten.append(everything)
        self._write()
        self.wandb.log(everything)

    def _open_events(self):
        (self.folder / "tensorboard").mkdir(exist_ok=True)
        events = EventFile(self.folder / "tensorboard", self.purge_step)
        row = hparams_start(self.config, str(self.folder))
        events.add({}, self.purge_step, chart_layout(), config_text(self.config), row)
        return events

    def _write(self):
        try:
            write_metrics(self.folder, self.rows)
            self.events = self.events or self._open_events()
            while self.unwritten:
                epoch, *metrics = self.unwritten[0].items()
                self.events.add(dict(metrics), epoch[1])
                self.unwritten.pop(0)
        except OSError as error:
            print(
                f"warning: metrics of epoch {len(self.rows)} could not be written to {self.folder} "
                f"({error.strerror or error}); the checkpoint holds them, trying again next epoch",
                file=sys.stderr,
            )

    @first_only
    def close(self):
        if self.events:
            self.events.close()
        if not leave_behind(wandb=self.wandb):
            self.wandb.close()


def write_metrics(folder, history):
    """metrics.csv of a history, a row an epoch.

    Speed is left out, so that a run repeated is the same file byte for byte. What came later than
    an epoch, a measure that was added and the run resumed, is empty there.
    """
    rows = [{k: v for k, v in row.items() if not k.endswith("per_second")} for row in history]
    text = io.StringIO(newline="")
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, names or ["epoch"])
    writer.writeheader()
    writer.writerows(rows)
    write_whole(folder / "metrics.csv", text.getvalue())
