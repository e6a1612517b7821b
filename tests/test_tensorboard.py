"""What TensorBoard shows beside the curves, as its own reader reads it back."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata as hparams
from test_training import assert_same
from torch.nn import functional as F

import ending
import exercise_1_1
import training
from checkpoint import load_checkpoint, load_model
from dataset import load_datasets
from models import build_model
from norms import Norms
from training import train


def read(folder):
    size = {"images": 0, "tensors": 0, "scalars": 0}  # all of them
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance=size)
    return events.Reload()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(run folder, results, what TensorBoard reads) of a run that was finished, then looked at."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    config = exercise_1_1.config | {"dataset": "digits", "lr": 1e-3, "epochs": 2, "device": "cpu"}
    config |= {"wandb_mode": "disabled", "run_dir": str(folder)}
    results = exercise_1_1.main(config)
    again = exercise_1_1.main(config | {"resume": str(folder)})
    assert again["test"]["loss"] == results["test"]["loss"]
    return folder, results, read(folder)


@pytest.mark.parametrize("lost", ["[1]", "{}"])
def test_files_of_another_form_in_a_run_are_written_anew(finished, tmp_path, lost):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    for name in ("results.json", "manifest.json"):
        (folder / name).write_text(lost)
    results = exercise_1_1.main(finished[1]["config"] | {"resume": str(folder), "epochs": 3})
    assert json.loads((folder / "results.json").read_text())["epochs"] == results["epochs"] == 3
    (resumed,) = json.loads((folder / "manifest.json").read_text())["resumed"]
    assert resumed["after_epoch"] == 2
    (folder / "results.json").write_text(lost)
    exercise_1_1.main(finished[1]["config"] | {"resume": str(folder), "epochs": 3})
    assert json.loads((folder / "results.json").read_text())["epochs"] == 3


def test_every_figure_is_there_once_and_as_it_was_drawn(finished):
    folder, _, events = finished
    names = {"samples", "curves", "confusion", "mistakes"}
    assert set(events.Tags()["images"]) == {f"plots/{name}" for name in names}
    for name in names:
        (image,) = events.Images(f"plots/{name}")
        assert image.encoded_image_string == (folder / "plots" / f"{name}.png").read_bytes()
        assert (image.step, image.width > image.height / 2) == (2, True)


def test_training_and_validation_are_in_one_chart_and_all_else_in_its_own(finished):
    (event,) = finished[2].Tensors("custom_scalars__config__")
    (category,) = Layout.FromString(event.tensor_proto.string_val[0]).category
    tags = [list(chart.multiline.tag) for chart in category.chart]
    assert tags[:2] == [["^train/loss$", "^val/loss$"], ["^train/accuracy$", "^val/accuracy$"]]
    alone = ("train/lr", "train/images_per_second", "weight_norm/.*", "gradient_norm/.*")
    assert tags[2:] == [[f"^{tag}$"] for tag in alone]


def test_the_config_is_a_text(finished):
    (event,) = finished[2].Tensors("config/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert "| lr | `0.001` |" in text
    assert "| model.layers | `[64, 64, 64, 10]` |" in text


def test_hyperparameters_and_final_numbers_make_one_row_of_a_table(finished):
    _, results, events = finished
    content = events.SummaryMetadata(hparams.SESSION_START_INFO_TAG).plugin_data.content
    start = hparams.parse_session_start_info_plugin_data(content)
    assert start.hparams["lr"].number_value == 1e-3
    assert start.hparams["model.kind"].string_value == "mlp"
    assert start.hparams["flip"].bool_value is False
    assert "run_dir" not in start.hparams
    content = events.SummaryMetadata(hparams.SESSION_END_INFO_TAG).plugin_data.content
    assert hparams.parse_session_end_info_plugin_data(content).status == 1
    for split in ("val", "test"):
        (event,) = events.Scalars(f"best/{split}_accuracy")
        assert event.value == pytest.approx(results[split]["accuracy"])


def test_the_final_numbers_are_those_of_the_best_epoch():
    judged = {"accuracy": 0.5, "loss": 1.0}
    results = {"val": judged | {"best_epoch": 3}, "test": judged | {"accuracy": 0.4}, "epochs": 9}
    found = ending.final_numbers(results)
    assert (found["best_epoch"], found["best/test_accuracy"]) == (3, 0.4)


def test_the_norms_are_those_of_the_weights_of_every_layer_and_epoch(finished):
    folder, _, events = finished
    weights = load_checkpoint(folder / "checkpoints" / "last.pt")["model"]
    for layer in ("layers.0", "layers.2", "layers.4"):
        both = torch.cat([weights[f"{layer}.{part}"].flatten() for part in ("weight", "bias")])
        _, last = events.Scalars(f"weight_norm/{layer}")
        assert (last.step, last.value) == (2, pytest.approx(both.norm().item()))
        assert len(events.Scalars(f"gradient_norm/{layer}")) == 1  # 21 steps: every fifth epoch


def test_every_seed_is_a_row_with_its_pictures(digits_config):
    exercise_1_1.main(digits_config | {"seeds": [0, 1]})
    for seed in (0, 1):
        events = read(Path(digits_config["run_dir"], f"seed_{seed}"))
        assert len(events.Images("plots/samples")) == len(events.Images("plots/mistakes")) == 1
        assert hparams.SESSION_END_INFO_TAG in events.Tags()["tensors"]
        content = events.SummaryMetadata(hparams.SESSION_START_INFO_TAG).plugin_data.content
        start = hparams.parse_session_start_info_plugin_data(content)
        assert start.hparams["seed"].number_value == seed
    exercise_1_1.main(digits_config | {"seed": 1, "run_dir": "alone"})
    alone = read(Path("alone"))
    for name in ("weight_norm/layers.2", "gradient_norm/layers.2"):
        (own,), (expected,) = (found.Scalars(name) for found in (events, alone))
        assert own.value == pytest.approx(expected.value, rel=1e-5)


def test_a_gradient_norm_is_that_of_a_backward_pass_and_leaves_no_trace(everything_config):
    train_set, _, _ = load_datasets(everything_config)
    train_set = train_set.subset(train_set.labels.argsort())  # as sets read from folders are
    model = build_model(everything_config).train()
    images, labels = train_set.sample(64)
    assert len(images) > 50
    assert labels.unique().tolist() == list(range(10))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    norms = Norms(model, train_set, steps=100)
    found = norms(1)
    assert model.training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert_same(model.state_dict(), before)
    F.cross_entropy(model.eval()(images), labels).backward()
    for name, own in norms.layers.items():
        slopes = torch.cat([parameter.grad.flatten() for parameter in own])
        assert found[f"gradient_norm/{name}"] == pytest.approx(slopes.norm().item(), rel=1e-5)
        weights = torch.cat([parameter.detach().flatten() for parameter in own])
        assert found[f"weight_norm/{name}"] == pytest.approx(weights.norm().item(), rel=1e-5)


def test_the_norms_change_no_bit_of_the_training(everything_config, monkeypatch):
    reached = []
    for name in ("with", "without"):
        config = everything_config | {"run_dir": name, "epochs": 2}
        train_set, val_set, _ = load_datasets(config)
        model = build_model(config)
        train(model, train_set, val_set, config)
        reached.append(model.state_dict())
        monkeypatch.setattr(training, "Norms", lambda *arguments: lambda epoch: {})
    assert_same(*reached)


def test_the_mistakes_come_first_the_surest_before_the_others(finished):
    folder, results, _ = finished
    model, config = load_model(folder / "checkpoints" / "best.pt")
    _, val_set, _ = load_datasets(config)
    rows = ending.worst_first(model, val_set)
    wrong = [row for row in rows if row["true"] != row["predicted"]]
    assert len(wrong) == round((1 - results["val"]["accuracy"]) * len(val_set))
    assert rows[: len(wrong)] == sorted(wrong, key=lambda row: -row["confidence"])
    rest = rows[len(wrong) :]
    assert rest == sorted(rest, key=lambda row: row["confidence"])
    assert sorted(row["index"] for row in rows) == list(range(len(val_set)))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (torch.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory"),
    ],
)
def test_results_that_cannot_be_drawn_cost_a_line(
    digits_config, monkeypatch, capsys, error, reason
):
    def fails(*arguments):
        raise error

    monkeypatch.setattr(ending, "draw_mistakes", fails)
    exercise_1_1.main(digits_config)
    assert capsys.readouterr().err.splitlines() == [
        f"warning: a picture of the results could not be written ({reason})"
    ]
    assert json.loads(Path(digits_config["run_dir"], "results.json").read_text())["epochs"] == 1
