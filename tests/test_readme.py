"""README's commands: each is one that its program understands, on a run that is there."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import tyro
from conftest import DATA

from config import parse_config

README = (DATA.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]


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
