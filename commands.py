"""Commands to copy: spelled for this shell, with the Python that the user started."""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from checks import only_draws
from config import defaults
from distributed import world


def python():
    """The name under which this Python was started, where that finds it again; else its path."""
    typed = sys.orig_argv[0] if sys.orig_argv else ""
    if (found := shutil.which(typed)) and os.path.abspath(found) == sys.executable:  # noqa: PTH100
        return typed
    path = Path(sys.executable)
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return str(path)


def tool(name):
    """The words that start a program which was installed beside this Python."""
    beside = Path(python()).with_name(f"{name}.exe" if os.name == "nt" else name)
    if beside.is_file():
        return [str(beside)]
    module = {"tensorboard": "tensorboard.main"}.get(name, name)
    return [name] if beside.parent == Path() and shutil.which(name) else [python(), "-m", module]


def script(name):
    """The path of a script of the lab: beside the one that runs, as the user spelled that."""
    home = Path(__file__).parent
    started = Path(sys.argv[0])
    if started.suffix == ".py" and started.absolute().parent == home:
        return str(started.with_name(name))
    with contextlib.suppress(ValueError):  # another drive
        return min(os.path.relpath(home / name), str(home / name), key=len)
    return str(home / name)


def spelled(*words):
    """The words as one line that the shell takes apart again."""
    words = [str(word) for word in words]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def resume_command(folder, *flags):
    """What to type, here, to go on with the run in `folder`."""
    launcher = [python()] if world() == 1 else ["torchrun", "..."]  # its flags we do not know
    return spelled(*launcher, sys.argv[0], "--resume", folder, *flags)


def next_commands(results, has_map):
    """[(what it is for, the command)] for a finished run, or for several seeds of one.

    `has_map` says whether maps of its network show where it looks.
    """
    folder, config = Path(results["run_dir"]), results["config"]
    own = Path(sys.argv[0]).stem == results["exercise"]  # a script of the user's lies anywhere
    exercise = sys.argv[0] if own else script(f"{results['exercise']}.py")
    single = "runs" not in results
    rows = [("curves and pictures", spelled(*tool("tensorboard"), "--logdir", folder))]
    if offline := sorted(folder.glob("wandb/offline-run-*" if single else "*/wandb/offline-run-*")):
        rows.append(("upload to W&B", spelled(*tool("wandb"), "sync", *offline)))
    first = folder if single else results["runs"][0]["run_dir"]
    drawn = only_draws(config)
    judged = [python(), script("evaluate.py"), config["checkpoint"] if drawn else first]
    if drawn and config["data_dir"] != defaults["data_dir"]:
        judged += ["--data_dir", config["data_dir"]]
    rows.append(("every class" if single else "every class, of one seed", spelled(*judged)))
    if drawn:
        return rows
    if has_map and "cam" not in config:  # else they are drawn
        looked = spelled(python(), script("exercise_2_3.py"), "--checkpoint", first)
        rows.append(("what it looks at", looked))
    if config["schedule"] == "constant":  # the rate of the others has fallen to its end
        reached = results["epochs"] if single else results["runs"][0]["epochs"]
        longer = ("--resume", folder, "--epochs", 2 * reached)
        rows.append(("train on", spelled(python(), exercise, *longer)))
    return rows
