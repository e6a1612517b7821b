"""A run folder is read while its run trains, and the run does not notice."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cam import cam
from checkpoint import load_model
from compare import read_run
from dataset import load_datasets
from evaluate import Flags, evaluate, load_judged

FLAGS = "--dataset digits --model.layers 8 8 --epochs 16 --device cpu --wandb_mode disabled"


def look_at(run, folder):
    """Judge, explain and read the run; the number of its epochs in metrics.csv."""
    result = evaluate(*load_judged(Flags(str(run))))
    assert 0 < result["accuracy"] <= 1
    model, config = load_model(run / "checkpoints" / "best.pt")
    settings = {"per_class": 0, "indices": [0], "contrast": "none", "grid": False}
    config |= {"run_dir": str(folder), "cam": settings}
    assert len(cam(model, load_datasets(config)[2], config)) == 1
    epochs = len(read_run(run)["rows"])
    if epochs:
        events = EventAccumulator(str(run / "tensorboard")).Reload()
        assert len(events.Scalars("val/loss")) >= epochs - 1  # written after the table
    return epochs


@pytest.mark.timeout(300)  # seconds: it trains twice
def test_a_run_that_trains_is_judged_explained_and_compared_and_ends_as_if_alone(forks, tmp_path):
    straight = forks.start("exercise_1_3.py", *FLAGS.split(), "--run_dir", tmp_path / "straight")
    assert straight.wait(100) == 0, straight.err
    # once before: what is slow at first shall not outlast the training
    assert look_at(tmp_path / "straight", tmp_path / "looked") == 16
    run = tmp_path / "run"
    child = forks.start("exercise_1_3.py", *FLAGS.split(), "--run_dir", run)
    child.wait_for(run / "checkpoints" / "best.pt")
    epochs = set()
    while not (run / "results.json").exists() and len(epochs) < 4:
        epochs.add(look_at(run, tmp_path / "looked"))
    assert child.wait(100) == 0, child.err
    assert len(epochs) > 2, epochs  # it was read in the middle of training
    metrics = [(folder / "metrics.csv").read_bytes() for folder in (run, tmp_path / "straight")]
    assert metrics[0] == metrics[1]
