"""The commands of README and FINDINGS: each is one that its program understands, on a run."""

import importlib
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tyro
from conftest import DATA
from PIL import Image

from config import parse_config
from studies.report import PAGES

TEXT = "".join((DATA.parent / page).read_text(encoding="utf-8") for page in PAGES)
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = [
    re.sub(" +#.*", "", line)  # what it is for
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
]


def test_readme_opens_with_a_run_and_the_tests():
    opening = [command for command in COMMANDS if command.startswith("python3 -m venv")]
    assert [shlex.split(command)[-2:] for command in opening] == [
        ["--dataset", "digits"],
        ["-m", "pytest"],
    ]
    assert COMMANDS[:2] == opening


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the commands name: finished runs called <folder>, and pictures."""
    place = tmp_path_factory.mktemp("readme")
    for exercise in ("exercise_1_1", "exercise_2_3"):
        checkpoints = place / "runs" / exercise / "<folder>" / "checkpoints"
        checkpoints.mkdir(parents=True)
        (checkpoints / "last.pt").touch()
        (checkpoints / "best.pt").touch()
        (checkpoints.parent / "config.json").write_text("{}")
    for split in ("train", "test"):
        (place / "pictures" / split / "cat").mkdir(parents=True)
    return place


@pytest.mark.parametrize("command", COMMANDS[2:])
def test_every_command_is_understood(command, place, monkeypatch):
    monkeypatch.chdir(place)
    program, *words = shlex.split(command.replace("<folder>", "'<folder>'"))
    if program == "sh":
        assert (DATA.parent / words[0]).is_file()
        return
    name = Path(program).name
    assert program == f".venv/bin/{name}"
    if name == "tensorboard":
        assert words == ["--logdir", "runs"]
        return
    assert name == "python"
    module = words.pop(0) if words[0] != "-m" else words[1]
    words = words[1:] if words[:1] == ["-m"] else words
    words = [word for word in words if word != module]
    if module.startswith("exercise_"):
        exercise = importlib.import_module(Path(module).stem)
        if "--help" in words:
            with pytest.raises(SystemExit, match="0"):
                parse_config(exercise.config, exercise.presets, words)
            return
        parse_config(exercise.config, exercise.presets, words)
    elif module == "tests.soak":
        assert words[0] == "--minutes"
    else:
        flags = importlib.import_module(module.removesuffix(".py")).Flags
        tyro.cli(flags, args=words)


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.timeout(600)
def test_every_command_runs_on_few_images(forks, tmp_path):
    """In the order of the pages, in one folder; the trainings for one epoch."""
    Path("data").symlink_to(DATA)
    Path("results").symlink_to(DATA.parent / "results")
    draw = np.random.default_rng(0)
    pictures = [f"pictures/{split}/{name}/{n}.png" for split in ("train", "test")
                for name in ("cat", "dog") for n in range(12)]  # fmt: skip
    for path in map(Path, ["photo.jpg", "folder/photo.jpg", *pictures]):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (90, 120, 3), dtype=np.uint8)).save(path)
    ran = 0
    for command in COMMANDS[2:]:
        program, *words = shlex.split(command.replace("<folder>", "'<folder>'"))
        if not program.endswith("python") or words[0] == "-m":
            continue  # tensorboard and the sweep have tests of their own, the studies, too
        for exercise in Path("runs").glob("exercise_*") if "<folder>" in command else ():
            best = max(exercise.glob("*/checkpoints/best.pt"), key=os.path.getmtime)
            here = f"{exercise}/<folder>"
            words = [word.replace(here, str(best.parents[1])) for word in words]
        if words[-1].endswith("*"):
            words[-1:] = map(str, Path(words[-1]).parent.iterdir())
        if words[0].startswith("exercise") and "--help" not in words:
            epochs = "2" if "--resume" in words else "1"
            words += ["--wandb_mode", "disabled"]
            if "--checkpoint" not in words:
                words += [] if "--epochs" in words else ["--epochs", epochs]
                words[words.index("--epochs") + 1] = epochs
        seen = 4000 if "--cam.indices" in words else 40  # all, where single ones are asked for
        child = forks.start(*words, hook=["forks", "few", 200, seen])
        assert child.wait(300) == 0, f"{command}: {child.err}"
        ran += 1
    assert ran > 12
