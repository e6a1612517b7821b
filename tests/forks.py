"""Processes that start in no time: forks of one that has imported everything and computed nothing.

`python forks.py` is that process. It reads a line of JSON a request and answers with another.
"""

import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import blank

ROOT = Path(__file__).parents[1]


class Forks:
    """Starts scripts of the project as processes of their own."""

    def __init__(self):
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "WANDB_MODE": "offline"}
        environment |= {"CUDA_VISIBLE_DEVICES": ""}  # equal to the bit is promised on CPUs
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip

    def ask(self, timeout=60, **request):
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        assert select.select([self.server.stdout], [], [], timeout)[0], "no answer"
        return json.loads(self.server.stdout.readline())

    def start(self, script, *arguments, hook=None, environment=None):
        """`script` of the project, in the current folder; `hook` is (module, function, values...),
        called before it."""
        return Child(self, script, list(map(str, arguments)), hook, environment or {})

    def close(self):
        self.server.kill()  # it holds nothing, and its end takes seconds otherwise
        self.server.communicate()


class Child:
    count = 0

    def __init__(self, forks, script, arguments, hook, environment):
        Child.count += 1
        self.forks, self.folder = forks, Path.cwd()
        self.outputs = [self.folder / f"{Child.count}.{kind}" for kind in ("out", "err")]
        for output in self.outputs:
            output.write_text("")
        self.pid = forks.ask(
            script=str(ROOT / script), arguments=arguments, folder=str(self.folder), hook=hook,
            outputs=list(map(str, self.outputs)), environment=environment,
        )  # fmt: skip

    @property
    def out(self):
        return self.outputs[0].read_text()

    @property
    def err(self):
        return self.outputs[1].read_text()

    def kill(self, signum):
        os.kill(self.pid, signum)

    def wait(self, timeout=60):
        """The exit code, negative where a signal ended it."""
        return self.forks.ask(timeout + 10, wait=self.pid, limit=timeout)

    def wait_for(self, path, timeout=60):
        """Until `path` is there, or text that `path` (a function) finds."""
        there, end = path if callable(path) else path.exists, time.monotonic() + timeout
        while not there():
            assert time.monotonic() < end, f"not reached; {self.err}"
            time.sleep(0.001)


def serve():
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    for name in ("exercise_1_1", "exercise_2_3", "sklearn.datasets", "torch._dynamo"):
        importlib.import_module(name)
    importlib.import_module("plots").Figure = blank.Figure
    tasks = Path("/proc/self/task")
    assert not tasks.is_dir() or len(list(tasks.iterdir())) == 1, "a fork would lose threads"
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = wait(request["wait"], request["limit"])
        elif not (answer := os.fork()):
            run(**request)
        print(json.dumps(answer), flush=True)


def wait(pid, limit):
    end = time.monotonic() + limit
    while not (status := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(status[1])


def run(script, arguments, folder, outputs, hook, environment):
    """In the child: become `python script arguments` in `folder`."""
    code = 0
    try:
        os.chdir(folder)
        os.environ.update(environment)
        null = os.open(os.devnull, os.O_RDONLY)
        streams = [os.open(path, os.O_WRONLY | os.O_CREAT, 0o644) for path in outputs]
        for number, stream in enumerate([null, *streams]):
            os.dup2(stream, number)
        sys.argv = [script, *arguments]
        if hook:
            module, function, *values = hook
            getattr(importlib.import_module(module), function)(*values)
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def import_from(folder):
    """A hook: the modules of the project are those in `folder`."""
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").parent == ROOT:
            del sys.modules[name]
    sys.path.insert(0, folder)


def pause_at(place, count, marker):
    """A hook: the run writes `marker` and stands still, the `count`-th time it comes to `place`.

    In its third epoch it stands still anyway.
    """
    import checkpoint
    import training

    seen, epochs = [], set()
    deal, judge, write = training.batches, training.evaluate, checkpoint._write
    sync, replace = os.fsync, Path.replace

    def reached(name):
        seen.append(name)
        if name == "third epoch" or seen.count(place) == count:
            Path(marker).touch()
            time.sleep(60)

    def batches(train_set, config, epoch, device):
        epochs.add(epoch)
        for number, batch in enumerate(deal(train_set, config, epoch, device)):
            if number == 7:
                reached("third epoch" if len(epochs) == 3 else "training")
            yield batch

    def evaluate(model, dataset):
        reached("evaluating")
        return judge(model, dataset)

    def write_slowly(path, content):
        path.with_name(f".{path.name}.tmp").write_bytes(content[: len(content) // 2])
        reached(f"half of {path.name}")
        write(path, content)

    def fsync(descriptor):
        sync(descriptor)
        reached("synced")

    def rename(path, target):
        replace(path, target)
        reached(f"renamed to {Path(target).name}")

    training.batches, training.evaluate, checkpoint._write = batches, evaluate, write_slowly
    os.fsync, Path.replace = fsync, rename


def write_in_place(count, marker):
    """A hook: checkpoints are written where they are read; as `pause_at`, half-way through one."""
    import checkpoint

    written = []

    def write(path, content):
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            written.append(path.name)
            if written.count("last.pt") == count:
                Path(marker).touch()
                time.sleep(60)
            file.write(content[len(content) // 2 :])

    checkpoint._write = write


def gone_after(epochs):
    """A hook: the process is gone, at once, when so many epochs have been logged."""
    from tracking import Tracker

    log = Tracker.log

    def gone(tracker, metrics, step):
        log(tracker, metrics, step)
        if step == epochs:
            os._exit(9)

    Tracker.log = gone


def meet_before_the_rename(folder, count):
    """A hook: `count` processes name their run folders at the same moment."""
    rename = Path.rename

    def together(path, target):
        (Path(folder) / f"ready{os.getpid()}").touch()
        end = time.monotonic() + 30
        while len(list(Path(folder).glob("ready*"))) < count and time.monotonic() < end:
            pass
        return rename(path, target)

    Path.rename = together


def limit_memory(megabytes):
    """A hook: so much more than what is taken now."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def as_on_windows():
    """A hook: what Python lacks there is missing, the console has the code page of a DOS box, and
    what is open, or holds what is open, is neither renamed nor removed."""
    me = Path("/proc/self")
    for module in ("fcntl", "resource", "pwd", "grp", "termios", "pty", "readline"):
        sys.modules[module] = None
    for name in ("fork", "sysconf", "getuid", "geteuid", "uname", "sched_getaffinity"):
        delattr(os, name)
    for name in ("SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGCHLD"):
        delattr(signal, name)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="cp437", errors="strict")

    def holding(function):
        def checked(*paths, **options):
            opened = [os.path.realpath(descriptor) for descriptor in me.joinpath("fd").iterdir()]
            opened += [line.split()[-1] for line in me.joinpath("maps").read_text().splitlines()]
            for path in map(os.path.realpath, paths):
                if any(name == path or name.startswith(path + os.sep) for name in opened):
                    raise PermissionError(13, "it is being used by another process", path)
            return function(*paths, **options)

        return checked

    for name in ("rename", "replace", "unlink", "remove"):
        setattr(os, name, holding(getattr(os, name)))


def few(images, test_images):
    """A hook: of every data set there are so many images to train on, and so many to test on."""
    import torch

    import dataset

    def take(load):
        def loaded(config):
            splits, *about = load(config)
            for name, (pixels, labels) in splits.items():
                most = test_images if name == "test" else images
                rows = torch.arange(0, len(labels), max(1, len(labels) // most))
                splits[name] = pixels[rows], labels[rows]
            return splits, *about

        return loaded

    dataset.LOADERS = {name: take(load) for name, load in dataset.LOADERS.items()}


def nobody_reads():
    """A hook: whoever read the output has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)


def without_wandb():
    """A hook: whoever imports wandb is refused."""
    assert "wandb" not in sys.modules
    sys.modules["wandb"] = None


def slow(module, function, marker, seconds):
    """A hook: `function` of `module` writes `marker` and waits, then does what it does."""
    module = importlib.import_module(module)
    original = getattr(module, function)

    def waiting(*arguments, **options):
        Path(marker).touch()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.01)
        return original(*arguments, **options)

    setattr(module, function, waiting)


if __name__ == "__main__":
    serve()
