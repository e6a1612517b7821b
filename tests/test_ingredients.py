"""The study of ingredients: what each training lacks, and what it leaves behind."""

import json
from statistics import fmean

import pytest

from config import defaults, differences
from evaluate import Mirrored
from studies import ingredients
from studies.ingredients import LEFT_OUT, Flags, cell_configs, main


def test_every_training_lacks_what_its_name_says_and_nothing_else():
    nothing, *others = cell_configs(Flags(seeds=[3]))
    lacking = [differences(defaults | nothing, defaults | other).keys() for other in others]
    assert [keys - {"arm"} for keys in lacking] == [
        {"flip", "shift"},
        {"schedule"},
        {"label_smoothing"},
        {"model.whiten"},
        {"model.layers"},
        {"optimizer", "lr", "momentum", "weight_decay", "batch_size", "schedule"},
    ]
    halves = [
        [layer["channels"] for layer in config["model"]["layers"]]
        for config in (nothing, others[4])
    ]
    assert halves[0] == [2 * channels for channels in halves[1]]


def test_it_measures_all_of_them_and_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        ingredients, "judge", lambda model, *_: {"val/accuracy": isinstance(model, Mirrored) / 4}
    )
    flags = Flags(dataset="digits", images=64, epochs=1, seeds=[0, 1], out=str(tmp_path))
    main(flags)
    results = json.loads((tmp_path / "results.json").read_text())
    found = [(cell["config"]["arm"], cell["config"]["seed"]) for cell in results["cells"]]
    assert found == [(arm, seed) for seed in (0, 1) for arm in LEFT_OUT]
    assert {"command", "commit", "machine", "torch", "threads", "seconds"} <= results.keys()
    table = capsys.readouterr().out
    (tmp_path / "cells" / "nothing-seed-1.json").unlink()
    main(flags)
    again = capsys.readouterr().out
    assert "8 of 14: without nothing, seed 1" in again
    assert " of 14:" not in again.replace("8 of 14:", "")
    last = [cell["history"][-1]["val/accuracy"] for cell in results["cells"]]
    for position, arm in enumerate(LEFT_OUT):
        mean = fmean(last[position :: len(LEFT_OUT)])
        for text in (table, again):
            assert f"without {arm:25}  {100 * mean:.2f} +- " in text
    assert table.count("with mirror images 25.00 +- 0.00") == len(LEFT_OUT)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"images": -1}, {"seeds": []}])
def test_a_setting_that_cannot_be_is_refused(wrong, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(Flags(out=str(tmp_path / "out"), **wrong))
    assert f"--{next(iter(wrong))} must be" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
