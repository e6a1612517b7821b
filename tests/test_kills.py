"""kill -9 at any moment costs no more than the epoch it came in."""

import random
import signal
import time
from pathlib import Path

import pytest
import torch
from test_training import comparable

from checkpoint import load_checkpoint, load_last

PLACES = [
    "synced",  # the first: the folder itself is not there yet
    "training",
    "evaluating",
    "half of best.pt",
    "half of last.pt",
    "synced",
    "renamed to previous.pt",
    "renamed to last.pt",
    "renamed to best.pt",
    "renamed to metrics.csv",
]
KILLS = 15  # once at every place, and five at any time
FLAGS = "--dataset digits --model.layers 64 32 16 10 --model.dropout 0.3 --shift 1 --lr 0.01"
FLAGS += " --schedule one_cycle --wandb_mode disabled --device cpu --compile off"
FLAGS += f" --epochs {2 * KILLS + 1}"  # a killed run never gets beyond its second epoch


def arguments_of(folder):
    """Those that start the run, or go on with it where it is there."""
    there = (folder / "config.json").is_file()
    return ["--resume", folder] if there else [*FLAGS.split(), "--run_dir", folder]


def assert_whole(folder, epoch):
    """Every checkpoint is whole or absent, and none of `epoch` is lost; the epoch now."""
    for path in (folder / "checkpoints").glob("*.pt"):
        load_checkpoint(path)
    state = load_last(folder)
    assert state["epoch"] >= epoch
    return state["epoch"]


def content_of(folder):
    """What must not depend on kills: every byte of weights, optimizer, schedule and metrics."""
    found = [(folder / "metrics.csv").read_bytes()]
    for name in ("last.pt", "best.pt"):
        leaves, structure = torch.utils._pytree.tree_flatten(
            comparable(load_checkpoint(folder / "checkpoints" / name))
        )
        found += [leaf.numpy().tobytes() if isinstance(leaf, torch.Tensor) else leaf
                  for leaf in leaves]  # fmt: skip
        found.append(str(structure))
    return found


def test_a_run_killed_at_every_place_ends_as_the_one_that_was_not(forks, tmp_path):
    straight = forks.start("exercise_1_2.py", *arguments_of(tmp_path / "straight"))
    folder, draw, epoch, epochs = tmp_path / "run", random.Random(), 0, []
    for number in range(KILLS):
        marker = tmp_path / f"reached{number}"
        at_any_time = number % 3 == 2
        place = "nowhere" if at_any_time else PLACES[number * 2 // 3 % len(PLACES)]
        hook = ["forks", "pause_at", place, draw.randint(1, 2), str(marker)]
        child = forks.start("exercise_1_2.py", *arguments_of(folder), hook=hook)
        if at_any_time:
            time.sleep(draw.uniform(0.0, 0.4))
        else:
            child.wait_for(marker)
        child.kill(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, child.err
        if epochs or folder.is_dir():  # once it is there it stays
            epoch = assert_whole(folder, epoch)
            epochs.append(epoch)
    assert not any("Traceback" in path.read_text() for path in tmp_path.glob("*.err"))
    last = forks.start("exercise_1_2.py", *arguments_of(folder))
    assert last.wait() == 0, last.err
    assert straight.wait() == 0, straight.err
    assert content_of(folder) == content_of(tmp_path / "straight")
    assert len(epochs) > KILLS - 5
    assert 2 < epochs[-1] <= 2 * KILLS, epochs


def test_the_kills_see_a_checkpoint_that_is_written_in_place(forks, tmp_path):
    hook = ["forks", "write_in_place", 3, "reached"]
    child = forks.start("exercise_1_2.py", *arguments_of(tmp_path / "run"), hook=hook)
    child.wait_for(Path("reached"))
    child.kill(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    with pytest.raises(ValueError, match="damaged"):
        assert_whole(tmp_path / "run", 0)
