"""The study of ingredients: what each training lacks, and what it leaves behind."""

import json
from statistics import fmean

import pytest
import torch

import exercise_1_1
from config import defaults, differences
from dataset import deskew, load_datasets
from evaluate import Mirrored
from studies import ingredients
from studies.ingredients import LEFT_OUT, Flags, cell_configs, complete, main


def lacking(network):
    """Of every training but the whole one, the settings in which it differs from that."""
    nothing, *others = cell_configs(complete(Flags(network, seeds=[3])))
    return [differences(defaults | nothing, defaults | o).keys() - {"arm"} for o in others]


def test_every_training_lacks_what_its_name_says_and_nothing_else():
    assert lacking("cnn") == [
        {"flip", "shift"},
        {"schedule"},
        {"label_smoothing"},
        {"model.whiten"},
        {"model.layers"},
        {"optimizer", "lr", "momentum", "weight_decay", "batch_size", "schedule"},
    ]
    assert lacking("mlp") == [
        {"deskew"},
        {"rotate", "shift", "zoom"},
        {"elastic"},
        {"rotate", "shift", "zoom", "elastic"},
        {"schedule"},
        {"weight_decay"},
        {"optimizer", "lr", "weight_decay", "batch_size", "schedule"},
    ]
    cells = cell_configs(complete(Flags("cnn", seeds=[3])))
    halves = [[layer["channels"] for layer in c["model"]["layers"]] for c in (cells[0], cells[5])]
    assert halves[0] == [2 * channels for channels in halves[1]]


def test_the_defaults_optimisation_is_that_of_the_default():
    last = cell_configs(complete(Flags("mlp")))[-1]
    for key in ("optimizer", "lr", "weight_decay", "batch_size", "schedule"):
        assert last[key] == exercise_1_1.config[key]


def test_it_measures_all_of_them_and_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        ingredients, "judge", lambda model, *_: {"val/accuracy": isinstance(model, Mirrored) / 4}
    )
    flags = Flags(dataset="digits", images=64, epochs=1, seeds=[0, 1], out=str(tmp_path))
    main(flags)
    results = json.loads((tmp_path / "results.json").read_text())
    arms = LEFT_OUT["cnn"]
    found = [(cell["config"]["arm"], cell["config"]["seed"]) for cell in results["cells"]]
    assert found == [(arm, seed) for seed in (0, 1) for arm in arms]
    assert {"command", "commit", "machine", "torch", "threads", "seconds"} <= results.keys()
    table = capsys.readouterr().out
    (tmp_path / "cells" / "nothing-seed-1.json").unlink()
    main(flags)
    again = capsys.readouterr().out
    assert "8 of 14: without nothing, seed 1" in again
    assert " of 14:" not in again.replace("8 of 14:", "")
    last = [cell["history"][-1]["val/accuracy"] for cell in results["cells"]]
    for position, arm in enumerate(arms):
        mean = fmean(last[position :: len(arms)])
        for text in (table, again):
            assert f"without {arm:38}  {100 * mean:.2f} +- " in text
    assert table.count("with mirror images 25.00 +- 0.00") == len(arms)


def test_each_training_of_the_mlp_sees_digits_as_its_config_has_them(tmp_path, monkeypatch):
    seen = {}

    def note(config, train_set, val_set, device):
        seen[config["arm"]] = train_set.images[:9], val_set.images[:9]
        return {"history": [{"val/accuracy": 0.5}], "seconds": 0.0}

    monkeypatch.setattr(ingredients, "measure_cell", note)
    main(Flags("mlp", dataset="digits", epochs=1, seeds=[0], out=str(tmp_path)))
    assert seen.keys() == LEFT_OUT["mlp"].keys()
    leaning = load_datasets(exercise_1_1.config | {"dataset": "digits"})
    for arm, sets in seen.items():
        for images, whole in zip(sets, leaning[:2], strict=True):
            there = whole.images[:9]
            wanted = there if arm == "setting digits upright" else deskew(there)
            assert torch.equal(images, wanted)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"images": -1}, {"seeds": []}, {"seeds": [1, 1]}])
def test_a_setting_that_cannot_be_is_refused(wrong, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(Flags(out=str(tmp_path / "out"), **wrong))
    assert f"--{next(iter(wrong))} must be" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
