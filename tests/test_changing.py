"""The examples of CHANGING.md: each patch fits the code as it is, and does what the page says."""

import json
import re
import shutil
import subprocess

import pytest
from conftest import DATA
from torch import nn

import exercise_1_3
import models
import rules
from experiment import complete_config

ROOT = DATA.parent
PAGE = (ROOT / "CHANGING.md").read_text(encoding="utf-8")
PATCHES = re.findall(r"```diff\n(.*?)```", PAGE, flags=re.DOTALL)
LAYERS = [{"channels": 8, "groups": 1}, {"channels": 8, "groups": 4}]
SCRIPT = f"""
import exercise_1_3
exercise_1_3.main(exercise_1_3.config | {{
    "dataset": "parity", "optimizer": "adagrad", "lr": 0.05, "epochs": 3, "run_dir": "run",
    "model": exercise_1_3.config["model"] | {{"layers": {LAYERS}, "dropout": 0.0}},
    "device": "cpu", "wandb_mode": "disabled",
}})
import exercise_1_1
exercise_1_1.main(exercise_1_1.config | {{
    "dataset": "digits", "seeds": [0, 1], "epochs": 2, "run_dir": "seeds", "device": "cpu",
    "wandb_mode": "disabled",
}})
"""


def test_every_example_touches_two_files_at_most():
    assert len(PATCHES) == 4
    for patch in PATCHES:
        assert len(re.findall(r"^\+\+\+ b/", patch, flags=re.MULTILINE)) <= 2


@pytest.mark.skipif(not shutil.which("git"), reason="applies patches with git")
def test_with_all_patches_a_run_has_the_layer_the_optimizer_the_data_and_the_measure(
    tmp_path, forks
):
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    for patch in PATCHES:
        apply = ["git", "apply", "-"]
        subprocess.run(apply, input=patch, text=True, cwd=tmp_path, check=True, timeout=60)
    (tmp_path / "patched.py").write_text(SCRIPT)
    done = forks.start(tmp_path / "patched.py", hook=["forks", "import_from", str(tmp_path)])
    assert done.wait() == 0, done.err
    header, *rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    column = header.split(",").index("val/confidence")
    assert all(0.5 <= float(row.split(",")[column]) <= 1 for row in rows)
    for seed in (0, 1):  # trained at once
        metrics = tmp_path / "seeds" / f"seed_{seed}" / "metrics.csv"
        assert "val/confidence" in metrics.read_text().splitlines()[0]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(results["test"]["confusion"]) == 2
    assert results["test"]["accuracy"] > 0.75  # a coin has 0.5
    assert re.search(r"layers\.1\.conv +Conv2d +8 x \d x \d +144\n", done.out)  # 8 x 2 x 3 x 3


def test_a_new_kind_without_layers_gets_the_number_of_classes(monkeypatch, digits_config):
    class Flat(nn.Linear):
        def __init__(self, num_classes):
            super().__init__(64, num_classes)

    monkeypatch.setitem(rules.MODEL, "flat", {"num_classes": rules.whole(1)})
    monkeypatch.setitem(rules.KIND, "kind", rules.one_of(*rules.MODEL))
    monkeypatch.setitem(models.MODELS, "flat", Flat)
    config = complete_config(digits_config | {"model": {"kind": "flat"}})
    assert models.build_model(config).out_features == 10


def test_a_new_kind_with_layers_gets_them_by_that_name(monkeypatch, digits_config):
    class Deep(models.MLP):
        def __init__(self, layers):
            super().__init__(layers)

    monkeypatch.setitem(rules.MODEL, "deep", {"layers": rules.SIZES})
    monkeypatch.setitem(rules.KIND, "kind", rules.one_of(*rules.MODEL))
    monkeypatch.setitem(models.MODELS, "deep", Deep)
    config = complete_config(digits_config | {"model": {"kind": "deep", "layers": [64, 8, 10]}})
    assert models.count_parameters(models.build_model(config)) == 610


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "parity"},
        {"optimizer": "adagrad"},
        {"model": exercise_1_3.config["model"] | {"layers": LAYERS}},
    ],
)
def test_without_the_patches_there_is_none_of_it(changes):
    with pytest.raises(ValueError, match=r"parity|adagrad|groups"):
        complete_config(exercise_1_3.config | {"dataset": "digits"} | changes)
