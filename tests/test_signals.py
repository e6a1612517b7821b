"""Ctrl-C and SIGTERM: stopped at the next batch, closed, and gone on with by what was printed."""

import contextlib
import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import DATA
from test_tracking import expected_scalars, scalars
from test_training import assert_same, comparable, run

import interruption
from checkpoint import load_checkpoint

FLAGS = ["--dataset", "digits", "--wandb_mode", "disabled", "--device", "cpu", "--compile", "off"]
LONG = [*FLAGS, "--epochs", "2000"]


def start_training(forks, *arguments, hook=None):
    child = forks.start("exercise_1_1.py", *arguments, hook=hook)
    child.wait_for(lambda: "epoch 3/" in child.out)
    return child


def printed_command(errors):
    (line,) = [line for line in errors.splitlines() if line.startswith("stopped; ")]
    return shlex.split(line.removeprefix("stopped; go on with: "))


def state_of(folder):
    return load_checkpoint(Path(folder) / "checkpoints" / "last.pt")


def test_ctrl_c_in_the_real_command_and_the_command_that_it_prints(forks, tmp_path):
    """The script in a Python of its own, from a folder whose name needs quotes."""
    script = str(DATA.parent / "exercise_1_1.py")
    folder = "Läufe & more/it's"
    command = [sys.executable, script, *FLAGS, "--epochs", "8", "--run_dir", folder]
    straight = forks.start("exercise_1_1.py", *FLAGS, "--epochs", 8, "--run_dir", "straight")
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        for line in process.stdout:
            if line.startswith("epoch 2/"):
                process.send_signal(signal.SIGINT)
                break
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    resumed = printed_command(errors)
    assert Path(resumed[0]).resolve() == Path(sys.executable).resolve()
    assert 2 <= state_of(folder)["epoch"] < 8
    child = forks.start(
        Path(resumed[1]).name, *resumed[2:]
    )  # the rest of the command, word by word
    assert child.wait() == 0, child.err
    assert straight.wait() == 0
    assert_same(comparable(state_of(folder)), comparable(state_of("straight")))
    metrics = [Path(name, "metrics.csv").read_bytes() for name in (folder, "straight")]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_at_the_next_batch_and_closes_everything(forks, signum, code):
    child = start_training(forks, *LONG, "--run_dir", "run")
    child.kill(signum)
    assert child.wait() == code
    assert "Traceback" not in child.err
    assert "exercise_1_1.py --resume run" in child.err
    folder, epochs = Path("run"), state_of("run")["epoch"]
    with (folder / "metrics.csv").open() as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == list(range(1, epochs + 1))
    assert scalars(folder) == expected_scalars(folder)
    assert json.loads((folder / "config.json").read_text())["epochs"] == 2000


def test_a_second_ctrl_c_ends_at_once(forks):
    hook = ["forks", "slow", "training", "evaluate", "evaluating", 30]
    child = forks.start("exercise_1_1.py", *LONG, "--run_dir", "run", hook=hook)
    child.wait_for(Path("evaluating"))
    child.kill(signal.SIGINT)
    child.wait_for(lambda: "once more" in child.err)
    child.kill(signal.SIGINT)
    assert child.wait(10) == 130
    assert "Traceback" not in child.err
    assert state_of("run")["epoch"] == 0


def test_ctrl_c_before_the_training_ends_without_a_traceback(forks):
    hook = ["forks", "slow", "sklearn.datasets", "load_digits", "loading", 30]
    child = forks.start("exercise_1_1.py", *LONG, "--run_dir", "run", hook=hook)
    child.wait_for(Path("loading"))
    child.kill(signal.SIGINT)
    assert child.wait(10) == 130
    assert "Traceback" not in child.err
    assert not Path("run").exists()


def test_several_seeds_at_once_stop_and_go_on_to_the_same_results(forks):
    seeds = [*FLAGS, "--epochs", "20", "--seeds", "0", "1"]
    straight = forks.start("exercise_1_1.py", *seeds, "--run_dir", "straight")
    child = start_training(forks, *seeds, "--run_dir", "run")
    child.kill(signal.SIGTERM)
    assert child.wait() == 143
    assert printed_command(child.err)[2:] == ["--resume", "run"]
    before = [state_of(f"run/seed_{seed}")["epoch"] for seed in (0, 1)]
    assert all(3 <= epoch < 20 for epoch in before)
    again = forks.start("exercise_1_1.py", "--resume", "run")
    assert again.wait() == 0, again.err
    assert straight.wait() == 0, straight.err
    for seed in (0, 1):
        states = [state_of(f"{name}/seed_{seed}") for name in ("run", "straight")]
        for name, weights in states[1]["model"].items():  # a stack rounds otherwise than one alone
            torch.testing.assert_close(states[0]["model"][name], weights, atol=1e-3, rtol=1e-2)
        folder = Path("run", f"seed_{seed}")
        assert scalars(folder) == expected_scalars(folder)
        assert len(scalars(folder)["val/loss"]) == 20


def test_handlers_come_back_and_what_is_ignored_stays_so(digits_config):
    def mine(signum, frame):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, mine), signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run(digits_config)
        with interruption.stop_requests("folder") as check:
            assert signal.getsignal(signal.SIGTERM) is not mine
            signal.raise_signal(signal.SIGINT)
            check()  # ignored, as in a job of the background
        assert signal.getsignal(signal.SIGTERM) is mine
        with pytest.raises(interruption.Stopped), interruption.stop_requests("folder") as check:
            signal.raise_signal(signal.SIGTERM)
            check()
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


def test_another_thread_than_the_main_one_trains_and_catches_nothing(digits_config):
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    results = []
    thread = threading.Thread(target=lambda: results.append(run(digits_config)))
    thread.start()
    thread.join(60)
    assert len(results) == 1
    assert results[0][1]["epoch"] == 1
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


SEVERAL = [sys.executable]  # seeds on two threads: a process and a stack each
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]


@contextlib.contextmanager
def started(command, until, *flags):
    """Exercise 1.1 as a group of processes, once a line starts with `until`."""
    command = [*command, str(DATA.parent / "exercise_1_1.py"), *FLAGS, "--epochs", "20000"]
    command += ["--run_dir", "several", *flags]
    several = {"stdout": -1, "stderr": -1, "text": True, "start_new_session": True}
    threads = os.environ | {"OMP_NUM_THREADS": "2"}
    with subprocess.Popen(command, env=threads, **several) as process:
        for line in process.stdout:
            if line.startswith(until):
                break
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
@pytest.mark.parametrize("wait", [0.1, 1.5, 8.0])  # as they start, import, train
def test_ctrl_c_reaches_all_processes_of_a_terminal_and_only_one_speaks(wait):
    with started(SEVERAL, "run folder", "--seeds", "0", "1") as process:
        time.sleep(wait)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert printed_command(errors)[-2:] == ["--resume", "several"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
@pytest.mark.parametrize("how", ["killed", "terminated as by timeout"])
def test_no_process_outlives_the_one_that_started_it(how):
    """timeout signals the process, then its whole group: the first one twice, the others once."""
    with started(SEVERAL, "epoch 2/", "--seeds", "0", "1") as process:
        process.kill() if how == "killed" else process.terminate()
        if how != "killed":
            os.killpg(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=20)  # ends when no process has the pipes any more
    assert process.returncode < 0 or process.returncode == 143
    assert errors.count("stopping at the next batch") <= 1  # not a line a process


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_the_processes_of_a_torchrun_that_is_killed_end_with_it():
    with started(TORCHRUN, "epoch 2/") as process:
        process.kill()
        process.communicate(timeout=20)


def test_a_signal_is_taken_also_where_nothing_can_be_said(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(interruption.os, "write", full)
    with pytest.raises(interruption.Stopped), interruption.stop_requests("run") as check:
        os.kill(os.getpid(), signal.SIGINT)
        check()


def test_seeds_are_not_added_to_a_run_that_trains(forks):
    child = start_training(forks, *LONG, "--seeds", "0", "1", "--run_dir", "run")
    before = Path("run/config.json").read_bytes()
    more = forks.start("exercise_1_1.py", "--resume", "run", "--seeds", "0", "1", "2")
    assert more.wait() == 2
    assert "being written by another process" in more.err
    assert Path("run/config.json").read_bytes() == before and not Path("run/seed_2").exists()
    child.kill(signal.SIGTERM)
    assert child.wait() == 143


def test_the_run_of_another_exercise_is_not_gone_on_with(forks):
    child = start_training(forks, *LONG, "--run_dir", "run")
    child.kill(signal.SIGTERM)
    assert child.wait() == 143
    other = forks.start("exercise_1_2.py", "--resume", "run")
    assert other.wait() == 2
    assert "that run is of exercise_1_1: resume it by exercise_1_1.py" in other.err
    done = forks.start("exercise_1_1.py", "--resume", "run", "--epochs", state_of("run")["epoch"])
    assert done.wait() == 0, done.err
    Path("run/manifest.json").unlink()  # results.json says it, too
    assert forks.start("exercise_1_2.py", "--resume", "run").wait() == 2


@pytest.mark.slow
def test_a_script_that_its_own_processes_would_run_again_is_told_why_nothing_trains(tmp_path):
    settings = {"dataset": "digits", "epochs": 3000, "seeds": [0, 1], "run_dir": "run"}
    settings |= {"wandb_mode": "disabled", "device": "cpu"}
    script = f"import exercise_1_1\nexercise_1_1.main(exercise_1_1.config | {settings})\n"
    (tmp_path / "own.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": str(DATA.parent), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "own.py"], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "main under if __name__ == '__main__'" in last, done.stderr
    assert "--resume" not in last and not (tmp_path / "run").exists()
