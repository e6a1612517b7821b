"""What a GPU changes: training, resuming, seeds, a teacher and maps there, on digits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_exercises import SMALL_CNN, smoke

import exercise_1_1
import exercise_1_2
import exercise_1_3
import exercise_2_3
from checkpoint import load_last

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = {"device": "cuda", "compile": "on"}


def was_captured(folder):
    return json.loads(Path(folder, "config.json").read_text())["compile"] == "on"


@pytest.mark.parametrize("precision", ["auto", "float32"])
@pytest.mark.parametrize("exercise", [exercise_1_1, exercise_1_2, exercise_1_3, exercise_2_3])
def test_an_exercise_learns_on_a_gpu(exercise, precision):
    changes = {"model": SMALL_CNN, "lr": 1e-2} if exercise is exercise_2_3 else {}
    results = smoke(exercise, "run", precision=precision, **changes, **GPU)
    assert results["test"]["accuracy"] > 0.3  # ten classes: chance is 0.1
    assert was_captured("run")
    again = smoke(exercise, "run", precision=precision, resume="run", **changes, **GPU)
    assert again["test"]["loss"] == pytest.approx(results["test"]["loss"], rel=1e-4)


@pytest.mark.parametrize(("optimizer", "lr"), [("adam", 1e-2), ("sgd", 0.1), ("muon", 1e-2)])
@pytest.mark.parametrize(("first", "then"), [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")])
def test_a_run_goes_on_on_another_device(optimizer, lr, first, then):
    model = {"model": SMALL_CNN, "lr": lr, "optimizer": optimizer}
    smoke(exercise_1_3, "run", **model, device=first, compile="auto", epochs=1)
    results = smoke(exercise_1_3, "run", **model, device=then, resume="run", epochs=3)
    assert [row["epoch"] for row in load_last("run")["history"]] == [1, 2, 3]
    assert results["test"]["accuracy"] > 0.3


def test_seeds_at_once_are_those_one_by_one_on_a_gpu():
    exact = GPU | {"precision": "float32"}
    together = smoke(exercise_1_1, "seeds", seeds=[0, 1], **exact)
    assert was_captured("seeds/seed_1")
    for seed, run in zip((0, 1), together["runs"], strict=True):
        single = smoke(exercise_1_1, f"single_{seed}", seed=seed, **exact)
        assert run["test"]["loss"] == pytest.approx(single["test"]["loss"], rel=1e-3)


def test_a_teacher_answers_inside_the_captured_step():
    smoke(exercise_1_3, "teacher", model=SMALL_CNN, lr=1e-2, epochs=4, **GPU)
    taught = smoke(exercise_1_1, "taught", teacher="teacher", **GPU)
    assert was_captured("taught")
    assert taught["test"]["accuracy"] > 0.3


def test_the_cpu_and_the_gpu_draw_the_same_maps():
    maps = {"model": SMALL_CNN, "lr": 1e-2, "epochs": 1}
    smoke(exercise_2_3, "run", **maps, device="cuda", precision="float32")
    rows = {}
    for device in ("cuda", "cpu"):
        smoke(exercise_2_3, device, checkpoint="run", device=device)
        rows[device] = json.loads(Path(device, "cam", "manifest.json").read_text())
    assert rows["cuda"]["worst_completeness_error"] < 1e-3
    drawn = {device: np.load(Path(device, "cam", "maps.npy")) for device in rows}
    pairs = zip(rows["cuda"]["images"], rows["cpu"]["images"], strict=True)
    alike = [ours["shown"] == theirs["shown"] for ours, theirs in pairs]
    assert sum(alike) > 25  # of 30: two classes may be as likely within rounding
    largest = abs(drawn["cpu"]).max()  # TF32 keeps three digits of a factor
    np.testing.assert_allclose(drawn["cuda"][alike], drawn["cpu"][alike], atol=0.02 * largest)
