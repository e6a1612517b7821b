"""Where a run leaves its traces: one folder, and one log(metrics, step) with three sinks."""

import contextlib
import csv
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch.utils.tensorboard import SummaryWriter

from wandb_sink import WandbSink


def open_run(config, fill=lambda folder: None):
    """Create the run folder with config.json and what `fill(folder)` writes; return its path.

    It appears complete or not at all, and of two runs that start with one name one wins: the other
    gets ValueError, as where the folder was there before or cannot be written. A run that the
    config resumes has its folder.
    """
    folder = Path(config["run_dir"])
    if config["resume"] != "none":
        return folder
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        for name in ("checkpoints", "tensorboard", "plots"):
            (unfinished / name).mkdir(parents=True, exist_ok=True)
        write_json(unfinished / "config.json", config)
        fill(unfinished)
        unfinished.rename(folder)
    except OSError as error:
        taken = folder.is_dir()
        raise ValueError(
            f"run folder {folder} already exists: go on with --resume {folder}, or choose another "
            f"--run_dir"
            if taken
            else f"run folder {folder} cannot be written: {error.strerror}; choose another "
            f"--run_dir"
        ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


@contextlib.contextmanager
def only_writer(folder):
    """Hold the run folder; raises ValueError where another process holds it.

    The system lets go of it when the process ends, however it ends.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"run folder {folder} is being written by another process: wait for it, or choose "
            f"another --run_dir"
        ) from None
    except OSError as error:
        raise ValueError(f"run folder {folder} cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


def write_json(path, content):
    """Write `content`, tensors as lists, so that a reader never sees half a file."""
    text = json.dumps(content, indent=2, default=lambda value: value.tolist())
    unfinished = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.tmp")
    unfinished.write_text(text + "\n", encoding="utf-8")
    unfinished.replace(path)


def describe_process(device):
    """Command, commit, versions, device and threads of this process."""
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }


def write_manifest(folder, config, train_set, device):
    """What it takes to repeat the run: command, commit, versions, device, threads, data."""
    data = {"dataset": config["dataset"], "data_sha256": fingerprint(train_set)}
    write_json(folder / "manifest.json", describe_process(device) | data | {"resumed": []})


def note_resumed(folder, config, epoch, device):
    """Add to the manifest that the run goes on, after `epoch` epochs, and by what."""
    write_json(folder / "config.json", config)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["resumed"].append({"after_epoch": epoch} | describe_process(device))
    write_json(path, manifest)


def git_commit():
    """The commit of this code, with a plus where files differ from it; "unknown" without git."""
    here = Path(__file__).parent

    def git(*arguments):
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def device_name(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {device.type}, {os.cpu_count()} cores"


def fingerprint(dataset):
    """A SHA-256 of up to 1,000 evenly spread images and all labels."""
    import hashlib

    step = max(1, len(dataset) // 1000)
    digest = hashlib.sha256(dataset.images[::step].cpu().contiguous().numpy().tobytes())
    digest.update(dataset.labels.cpu().numpy().tobytes())
    return digest.hexdigest()


class Tracker:
    """log(metrics, step) to TensorBoard, W&B and metrics.csv under the same `split/metric` names.

    `history` holds the rows of the epochs that a resumed run keeps; later ones are dropped from
    every sink, so that no point is there twice.
    """

    def __init__(self, folder, config, history, wandb_id=None):
        self.folder = folder
        self.metrics_file = folder / "metrics.csv"
        self.tensorboard = SummaryWriter(folder / "tensorboard", purge_step=len(history) + 1)
        self.wandb = WandbSink(folder, config, wandb_id)
        self.wandb_id = self.wandb.id
        self.metrics_file.unlink(missing_ok=True)
        for row in history:
            self._write_row(row)

    def log(self, metrics, step):
        """`metrics` maps split/metric to a float; `step` is the epoch, from 1.

        Speed is left out of metrics.csv, so that a run repeated is the same file byte for byte.
        """
        self._write_row({"epoch": step} | metrics)
        for name, value in metrics.items():
            self.tensorboard.add_scalar(name, value, step)
        self.tensorboard.flush()
        self.wandb.log({"epoch": step} | metrics)

    def _write_row(self, row):
        row = {name: value for name, value in row.items() if not name.endswith("per_second")}
        new = not self.metrics_file.exists()
        with self.metrics_file.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)

    def close(self):
        self.tensorboard.close()
        self.wandb.close()
