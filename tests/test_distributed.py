"""Several processes against one: real ones that talk over gloo. torchrun starts them in the tests
that are marked slow; the others give them its environment, without its agent."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA
from PIL import Image
from test_training import assert_same, comparable

import exercise_1_3
import exercise_2_3
from cam import cam
from checkpoint import load_checkpoint, load_last, load_model
from compiled import choose_compiled
from dataset import load_datasets
from evaluate import Flags, evaluate, load_judged, report
from models import build_model

ROOT = DATA.parent
pytestmark = pytest.mark.timeout(300)  # seconds: a launch takes ten on an idle machine
DIGITS = {"dataset": "digits", "device": "cpu", "wandb_mode": "disabled", "compile": "off"}
# 1,295 training images: whatever the batch size, the last batch is odd; augmented, with a schedule
MLP = exercise_1_3.config | DIGITS | {
    "model": {"kind": "mlp", "layers": [64, 16, 10]},
    "val_fraction": 0.0995, "batch_size": 64, "epochs": 3, "lr": 1e-2, "optimizer": "adamw",
    "schedule": "one_cycle", "shift": 1, "rotate": 10.0, "cutout": 2, "label_smoothing": 0.1,
}  # fmt: skip
LONE = MLP | {"batch_size": 1292, "epochs": 4}  # its last batch has 3 images: fewer than 4 ranks
CNN = exercise_1_3.config | DIGITS | {
    "model": exercise_1_3.config["model"] | {"layers": [16, 32], "dropout": 0.1},
    "epochs": 12, "lr": 1e-2, "shift": 1, "schedule": "one_cycle",
}  # fmt: skip
SEEDS = MLP | {"seeds": [0, 1, 2]}
MAPS = exercise_2_3.config | DIGITS | {
    "model": exercise_2_3.config["model"] | {"layers": [8], "min_map": 4, "whiten": True},
    "epochs": 1, "optimizer": "muon",
}  # fmt: skip
FLAGS = """--model.layers 16 32 --model.dropout 0.1 --epochs 12 --lr 1e-2 --shift 1
    --schedule one_cycle --dataset digits --device cpu --wandb_mode disabled --compile off"""
CNN_FLAGS = FLAGS.split()


def torchrun(script, *flags, processes=2, options=()):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", *options, str(ROOT / script), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process, seconds=200):
    try:
        return process.communicate(timeout=seconds)
    finally:
        process.kill()


def ranks_of(agent):
    """{rank: process id} of the processes that torchrun started."""
    pids = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    found = {}
    for pid in map(int, pids):
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        found |= {int(word[5:]): pid for word in words if word.startswith(b"RANK=")}
    return found


def wait_for_epoch(agent, epoch, pattern="runs/*/*/metrics.csv"):
    """Wait until the run has that many rows of metrics."""
    end = time.monotonic() + 200  # torch alone may take 60 to load on a busy machine
    while time.monotonic() < end and agent.poll() is None:
        if any(len(path.read_text().splitlines()) > epoch for path in Path().glob(pattern)):
            return
        time.sleep(0.01)
    pytest.fail(f"epoch {epoch} was not reached: {finish(agent, 1)}")


def run_together(folder, runs, processes, monkeypatch):
    monkeypatch.chdir(folder)
    Path("runs.json").write_text(json.dumps(runs))
    options = ["--log-dir", "logs", "--redirects", "3"]
    agent = torchrun("tests/together.py", processes=processes, options=options)
    complaint = finish(agent)[1]
    logs = {
        (rank, stream): next(Path("logs").glob(f"*/attempt_0/{rank}/{stream}.log")).read_text()
        for rank in range(processes)
        for stream in ("stdout", "stderr")
    }
    assert agent.returncode == 0, complaint + str(logs)
    return seen_by(processes) | {"folder": folder, "logs": logs}


def seen_by(processes):
    return {"seen": [torch.load(f"rank_{rank}.pt") for rank in range(processes)]}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def together(tmp_path_factory, forks):
    """The runs of two processes with the surroundings that torchrun gives, without its imports."""
    folder = tmp_path_factory.mktemp("together")
    runs = [MLP | {"run_dir": "mlp"}, LONE | {"run_dir": "lone"}, CNN | {"run_dir": "cnn"}]
    runs += [SEEDS | {"run_dir": "seeds"}, MAPS | {"run_dir": "maps"}]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("runs.json").write_text(json.dumps(runs))
        ranks = [
            forks.start(
                "tests/together.py", environment=shared | {"RANK": rank, "LOCAL_RANK": rank}
            )
            for rank in ("0", "1")
        ]
        assert [child.wait(200) for child in ranks] == [0, 0], [child.err for child in ranks]
        logs = {
            (rank, stream): text
            for rank, child in enumerate(ranks)
            for stream, text in (("stdout", child.out), ("stderr", child.err))
        }
        return seen_by(2) | {"folder": folder, "logs": logs}


def assert_equal_curves(folder, config):
    one = exercise_1_3.main(config | {"run_dir": "one"})
    for row, expected in zip(
        load_last(folder)["history"], load_last("one")["history"], strict=True
    ):
        for key in ("train/loss", "val/loss"):
            assert row[key] == pytest.approx(expected[key], abs=1e-6)
        for key in ("train/accuracy", "val/accuracy", "train/lr"):
            assert row[key] == expected[key]
    return one


@pytest.mark.parametrize(("name", "config"), [("mlp", MLP), ("lone", LONE)])
def test_two_processes_learn_what_one_does(together, name, config):
    one = assert_equal_curves(together["folder"] / name, config)
    for seen in together["seen"]:
        test = seen["test"][["mlp", "lone"].index(name)]
        assert test["confusion"].tolist() == one["test"]["confusion"].tolist()


def assert_exact_evaluation(launch):
    best = load_checkpoint(launch["folder"] / "mlp" / "checkpoints" / "best.pt")
    model = build_model(MLP)
    model.load_state_dict(best["model"])
    test_set = load_datasets(MLP)[2]
    assert len(test_set) == 359
    alone = evaluate(model, test_set)
    for seen in launch["seen"]:
        assert seen["exact"]["confusion"].tolist() == alone["confusion"].tolist()
        assert seen["exact"]["accuracy"] == alone["accuracy"]
        assert seen["exact"]["loss"] == pytest.approx(alone["loss"], rel=1e-6)


def test_evaluation_by_two_covers_every_image_once(together):
    assert_exact_evaluation(together)


def test_with_batchnorm_and_dropout_the_accuracy_is_that_of_one_process_within_five_points(
    together,
):
    one = exercise_1_3.main(CNN | {"run_dir": "one"})
    assert one["test"]["accuracy"] > 0.9
    assert abs(together["seen"][0]["test"][2]["accuracy"] - one["test"]["accuracy"]) < 0.05


def test_batchnorm_keeps_what_each_process_saw_until_it_is_averaged(together):
    alone, own, averaged = (
        torch.stack(means)
        for means in zip(*(seen["norms"] for seen in together["seen"]), strict=True)
    )
    torch.testing.assert_close(own, alone)
    assert (own[1] > own[0] + 1).all()
    torch.testing.assert_close(averaged, alone.mean(0).expand(2, -1))


def test_dropout_differs_by_process_and_by_epoch(together):
    first, second = (seen["dropout_seeds"][-2:] for seen in together["seen"])  # of two epochs
    assert len({*first, *second}) == 4


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_before_it_reaches_the_weights(together):
    for seen in together["seen"]:
        assert "the loss is nan in epoch 2, step 7" in seen["fate"]
        for left, expected in zip(seen["left"], together["seen"][-1]["reached"], strict=True):
            assert torch.equal(left, expected)


def test_the_first_rank_prints_and_writes_and_the_second_its_share_of_seeds_and_pictures(together):
    first, second = together["seen"]
    assert any("results.json" in Path(path).name for path in first["written"])
    places = {Path(path).relative_to(together["folder"]).parts[:2] for path in second["written"]}
    folders = {(parts[0], parts[1].strip(".").split(".")[0]) for parts in places}
    assert folders == {("seeds", "seed_1"), ("maps", "cam")}
    assert together["logs"][0, "stdout"].count("run folder: ") == 6
    assert together["logs"][1, "stdout"] == together["logs"][1, "stderr"] == ""


def test_two_processes_deal_out_the_seeds_and_each_learns_what_it_does_alone(together):
    several = json.loads((together["folder"] / "seeds" / "results.json").read_text())
    assert several["seeds"] == [0, 1, 2]
    for run in several["runs"]:
        one = exercise_1_3.main(MLP | {"seed": run["config"]["seed"]})
        assert run["test"]["confusion"] == one["test"]["confusion"].tolist()
        assert run["test"]["loss"] == pytest.approx(one["test"]["loss"], abs=1e-5)


def test_two_processes_draw_the_maps_that_one_draws(together):
    both = together["folder"] / "maps"
    model, config = load_model(both / "checkpoints" / "best.pt")
    cam(model, load_datasets(config)[2], config | {"run_dir": "one"})
    files = {path.relative_to("one") for path in Path("one/cam").rglob("*") if path.is_file()}
    assert len(files) == 2 * 30 + 3  # a picture and a thumbnail each
    assert {p.relative_to(both) for p in (both / "cam").rglob("*") if p.is_file()} == files
    places = [both / "cam", Path("one/cam")]
    np.testing.assert_allclose(*(np.load(place / "maps.npy") for place in places), atol=1e-5)
    for path in (path.relative_to("cam") for path in files if path.suffix == ".png"):
        drawn, expected = (np.asarray(Image.open(place / path)).astype(int) for place in places)
        assert abs(drawn - expected).max() <= 4, path  # of 255: the maps are rounded before it


def test_two_processes_judge_a_run_as_one_does(together):
    run = together["folder"] / "mlp"
    alone = report(evaluate(*load_judged(Flags(str(run)))), load_datasets(MLP)[2].classes)
    assert together["logs"][0, "stdout"].count(f"{alone}\n") == 1


@pytest.mark.slow
def test_a_signal_stops_both_ranks_at_once_and_the_run_goes_on_bit_for_bit(together):
    agent = torchrun("exercise_1_3.py", *CNN_FLAGS, "--run_dir", "run")
    wait_for_epoch(agent, 3, "run/metrics.csv")
    pids = ranks_of(agent)
    agent.send_signal(signal.SIGTERM)
    _, complaint = finish(agent, 60)
    assert complaint.count("stopping at the next batch") == 1
    assert complaint.count("stopped; go on with: ") == 1
    assert sorted(pids) == [0, 1]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids.values())
    assert 3 <= load_last("run")["epoch"] < CNN["epochs"]
    resumed = torchrun("exercise_1_3.py", "--resume", "run")
    complaint = finish(resumed)[1]
    assert resumed.returncode == 0, complaint
    straight = load_last(together["folder"] / "cnn")
    assert_same(comparable(load_last("run")), comparable(straight))


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_run_and_torchrun_resumes_it_bit_for_bit(together):
    agent = torchrun("exercise_1_3.py", *CNN_FLAGS, options=["--max-restarts=1"])
    wait_for_epoch(agent, 3)
    before = ranks_of(agent)
    start = time.monotonic()
    os.kill(before[1], signal.SIGKILL)
    while Path(f"/proc/{before[0]}").exists():
        assert time.monotonic() < start + 60
        time.sleep(0.05)
    _, complaint = finish(agent)
    assert agent.returncode == 0, complaint
    (folder,) = [path for path in Path("runs/exercise_1_3").iterdir() if path.is_dir()]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [3 <= part["after_epoch"] < 12 for part in manifest["resumed"]] == [True]
    assert manifest["processes"] == 2
    straight = load_last(together["folder"] / "cnn")
    assert_same(comparable(load_last(folder)), comparable(straight))


@pytest.mark.slow
def test_a_batch_size_that_the_processes_do_not_divide_is_refused_once():
    agent = torchrun("exercise_1_3.py", *CNN_FLAGS, "--batch_size", "63")
    out, complaint = finish(agent)
    assert complaint.count("error: ") == complaint.count("error: batch_size 63") == 1
    assert "--batch_size 64" in complaint
    assert "exitcode  : 2" in complaint
    assert out == ""
    assert not list(Path().iterdir())


def test_several_processes_take_the_plain_step_and_say_so(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    asked = [MLP | {"compile": "on"}, MLP | {"compile": "auto"}]
    for config, steps in zip(asked, (1, 50_000), strict=True):
        assert not choose_compiled(config, build_model(MLP), torch.device("cpu"), steps)
        said = capsys.readouterr().err
        assert said == "the plain step is taken: 2 processes train together\n"


@pytest.mark.slow
def test_four_processes_learn_and_evaluate_what_one_does(tmp_path, monkeypatch):
    runs = [MLP | {"run_dir": "mlp"}, LONE | {"run_dir": "lone"}]
    launch = run_together(tmp_path, runs, 4, monkeypatch)
    assert_equal_curves(tmp_path / "mlp", MLP)
    Path("one").rename("one_mlp")
    assert_equal_curves(tmp_path / "lone", LONE)
    assert_exact_evaluation(launch)
