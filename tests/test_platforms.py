"""Runs as on Windows, as far as this can be had elsewhere: without fork and POSIX, on a code page,
and where what is open cannot be renamed or removed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import commands

QUICK = ["--epochs", 2, "--wandb_mode", "disabled", "--device", "cpu"]
DIGITS = ["--dataset", "digits", *QUICK]
pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads /proc")


def start(forks, script, *arguments):
    return forks.start(script, *arguments, hook=["forks", "as_on_windows"])


def finish(child):
    """What it printed, in the letters of the code page."""
    assert child.wait() == 0, child.err
    assert child.err == ""
    return child.outputs[0].read_bytes().decode("cp437")


def test_a_run_is_the_same_and_is_gone_on_with_and_judged(forks):
    here = forks.start("exercise_1_1.py", *DIGITS, "--run_dir", "here")
    finish(start(forks, "exercise_1_1.py", *DIGITS, "--run_dir", "there"))
    assert here.wait() == 0
    assert Path("here/metrics.csv").read_text() == Path("there/metrics.csv").read_text()
    resumed = start(forks, "exercise_1_1.py", "--resume", "there", "--epochs", 3)
    assert "epoch 3/3" in finish(resumed)
    for folders in (["there"], ["here", "there"]):
        assert "accurac" in finish(start(forks, "evaluate.py", *folders))


def test_seeds_and_maps(forks):
    several = start(forks, "exercise_1_1.py", *DIGITS, "--seeds", 0, 1)
    drawn = start(forks, "exercise_2_3.py", *DIGITS, "--cam.per_class", 1, "--model.layers", 8)
    assert "of 2 seeds" in finish(several)
    assert "10 maps, " in finish(drawn)


def test_pictures_whose_classes_the_code_page_cannot_write(forks):
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("\u732b", "\u03c3\u03ba\u03cd\u03bb\u03bf\u03c2"):
            Path("pictures", split, name).mkdir(parents=True)
            for number in range(10):
                pixels = draw.integers(0, 255, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(Path("pictures", split, name, f"{number}.png"))
    asked = ["--dataset", "image_folder", "--data_dir", "pictures", "--image_size", 16]
    asked += ["--model.layers", 4, "--run_dir", "run", *QUICK]
    printed = finish(start(forks, "exercise_1_3.py", *asked))
    assert "\\u732b" in printed or "\\u03c3" in printed  # the one most often wrong
    assert "\\u732b" in finish(start(forks, "evaluate.py", "run"))


def test_what_is_open_stays_where_it_is(forks):
    """So the hook sees it."""
    Path("script.py").write_text("import os; file = open('kept', 'w'); os.replace('kept', 'moved')")
    child = start(forks, str(Path("script.py").resolve()))
    assert child.wait() == 1
    assert "it is being used by another process" in child.err


def test_commands_are_quoted_for_the_shell_there(monkeypatch):
    monkeypatch.setattr(commands.os, "name", "nt")
    assert commands.spelled("evaluate.py", r"C:\my runs\a") == r'evaluate.py "C:\my runs\a"'
