"""Kill a real run at random moments and go on with it, for as long as you like.

    python -m tests.soak --minutes 5

Exercise 1.1 on MNIST, 50 epochs, in processes of their own that end by SIGKILL; after each, every
checkpoint must be whole. A run that is finished must equal the uninterrupted one bit for bit, and
the next begins. Prints what was survived; exit code 1 where anything was lost.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from checkpoint import load_checkpoint, load_last

ROOT = Path(__file__).parents[1]
KEYS = ("epoch", "model", "optimizer", "scheduler")


def command_of(folder, epochs):
    """What starts the run in `folder`, or goes on with it."""
    start = [sys.executable, str(ROOT / "exercise_1_1.py"), "--wandb_mode", "disabled"]
    if (folder / "config.json").is_file():
        return [*start, "--resume", str(folder)]
    start += ["--data_dir", str(ROOT / "data"), "--device", "cpu", "--compile", "off"]
    return [*start, "--epochs", str(epochs), "--run_dir", str(folder)]


def run_until(folder, epochs, moment=None):
    """Run to the end, or kill after `moment` = (text to be printed first, seconds from then on);
    (whether it was killed, its exit code)."""
    path = folder.parent / "output"
    with path.open("w") as output:
        process = subprocess.Popen(command_of(folder, epochs), stdout=output, stderr=output)
    try:
        while moment and process.poll() is None and moment[0] not in path.read_text():
            time.sleep(0.01)
        code = process.wait(moment and moment[1])
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        return True, process.wait()
    finally:
        process.kill()  # where the soak itself is stopped
    if code:
        raise AssertionError(f"exit code {code}: {path.read_text()[-2000:]}")
    return False, code


def verify(folder, epoch):
    """(epoch now, checkpoints read); AssertionError where one is not whole or epochs are gone."""
    if not folder.is_dir() and not epoch:
        return 0, 0
    paths = list((folder / "checkpoints").glob("*.pt"))
    try:
        for path in paths:
            load_checkpoint(path)
        now = load_last(folder)["epoch"]
    except (ValueError, FileNotFoundError) as error:
        raise AssertionError(str(error)) from None
    if now < epoch:
        raise AssertionError(f"{folder} was at epoch {epoch} and is at {now}")
    return now, len(paths)


def content_of(folder):
    """The bytes of weights, optimizer, schedule and metrics at the end of a run."""
    found = [(folder / "metrics.csv").read_bytes()]
    for name in ("last.pt", "best.pt"):
        state = load_checkpoint(folder / "checkpoints" / name)
        leaves, structure = torch.utils._pytree.tree_flatten([state[key] for key in KEYS])
        tensors = [leaf.numpy().tobytes() if torch.is_tensor(leaf) else leaf for leaf in leaves]
        found += [str(structure), *tensors]
    return found


def soak(folder, minutes, epochs, draw, counts):
    """Add to `counts` what is survived in `minutes`; the last run is then left to end by itself."""
    start, straight = time.monotonic(), folder / "straight"
    run_until(straight, epochs)
    longest = (time.monotonic() - start) / 8
    print(f"uninterrupted: {4 * longest:.0f} s; kills come within {longest:.0f} s", flush=True)
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        run, epoch, killed = folder / f"run{counts['runs']}", 0, True
        while killed:
            resumed = (run / "config.json").is_file()
            began = draw.choice(["", "run folder:", "run folder:", "run folder:"])
            moment = began, draw.uniform(0, longest)  # from the command, or from the training on
            killed, _ = run_until(run, epochs, None if time.monotonic() > end else moment)
            before, (epoch, read) = epoch, verify(run, epoch)
            counts["kills"] += killed
            counts["resumes"] += resumed
            counts["checkpoints"] += read
            counts["epochs"] += epoch - before
            print(f"{'killed' if killed else 'finished'} at epoch {epoch}", flush=True)
        if content_of(run) != content_of(straight):
            raise AssertionError(f"{run} differs from {straight}, which was not interrupted")
        counts["runs"] += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; drawn by default")
    flags = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if flags.seed is None else flags.seed
    counts = dict.fromkeys(("runs", "kills", "resumes", "epochs", "checkpoints"), 0)
    lost = None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            soak(Path(folder), flags.minutes, flags.epochs, random.Random(seed), counts)
        except AssertionError as error:
            lost = error
    print(
        f"{counts['kills']} kills and {counts['resumes']} resumes over {counts['epochs']} epochs, "
        f"{counts['checkpoints']} checkpoints verified; {counts['runs']} finished runs equal the "
        f"uninterrupted one bit for bit (seed {seed})"
    )
    print(f"LOST: {lost}" if lost else "nothing was lost")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
