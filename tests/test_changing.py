"""The examples of CHANGING.md: each patch fits the code as it is, and does what the page says."""

import json
import re
import shutil
import subprocess
import sys

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
    "wandb_mode": "disabled", "noise": 0.3,
}})
noisy = exercise_1_1.config | {{
    "dataset": "digits", "epochs": 2, "device": "cpu", "wandb_mode": "disabled", "noise": 0.3,
}}
exercise_1_1.main(noisy | {{"run_dir": "whole"}})
exercise_1_1.main(noisy | {{"run_dir": "resumed", "epochs": 1}})
exercise_1_1.main(noisy | {{"resume": "resumed"}})
"""


@pytest.fixture
def patched(tmp_path):
    """A folder with the code after all patches."""
    if not shutil.which("git"):
        pytest.skip("applies patches with git")
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    for patch in PATCHES:
        apply = ["git", "apply", "-"]
        subprocess.run(apply, input=patch, text=True, cwd=tmp_path, check=True, timeout=60)
    return tmp_path


def column(path, name):
    header, *rows = (line.split(",") for line in path.read_text().splitlines())
    return [float(row[header.index(name)]) for row in rows]


def test_every_example_touches_three_files_at_most():
    assert len(PATCHES) == 6
    for patch in PATCHES:
        assert len(re.findall(r"^\+\+\+ b/", patch, flags=re.MULTILINE)) <= 3


def test_the_patched_code_is_in_the_style_of_the_rest(patched):
    pytest.importorskip("ruff")
    shutil.copy(ROOT / "pyproject.toml", patched)
    for check in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *check, "--no-cache", "."]
        done = subprocess.run(command, cwd=patched, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout


def test_with_all_patches_a_run_has_the_layer_the_optimizer_the_data_and_the_measure(
    patched, forks
):
    tmp_path = patched
    (tmp_path / "patched.py").write_text(SCRIPT)
    done = forks.start(tmp_path / "patched.py", hook=["forks", "import_from", str(tmp_path)])
    assert done.wait() == 0, done.err
    confidence = column(tmp_path / "run" / "metrics.csv", "val/confidence")
    assert all(0.5 <= value <= 1 for value in confidence)
    for seed in (0, 1):  # trained at once
        assert column(tmp_path / "seeds" / f"seed_{seed}" / "metrics.csv", "val/confidence")
    several = json.loads((tmp_path / "seeds" / "results.json").read_text())
    assert 0.1 < several["mean"]["test_confidence"] < 1
    at_once, whole, resumed = (
        column(tmp_path / folder / "metrics.csv", "train/loss")
        for folder in ("seeds/seed_0", "whole", "resumed")
    )
    assert resumed == whole
    for split in ("train", "val"):  # squared errors of logits near 0; ten classes have 2.3 nats
        assert max(column(tmp_path / "whole" / "metrics.csv", f"{split}/loss")) < 0.3
    assert at_once != pytest.approx(whole)  # without noise they are the same within rounding
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


class Deep(models.MLP):
    def __init__(self, layers):
        super().__init__(layers)


class Copied(models.MLP):
    def __init__(self, layer_sizes):
        super().__init__(layer_sizes)


@pytest.mark.parametrize("network", [Deep, Copied])
def test_a_new_kind_with_layers_gets_them_by_the_name_that_its_class_has(
    network, monkeypatch, digits_config
):
    monkeypatch.setitem(rules.MODEL, "deep", {"layers": rules.SIZES})
    monkeypatch.setitem(rules.KIND, "kind", rules.one_of(*rules.MODEL))
    monkeypatch.setitem(models.MODELS, "deep", network)
    config = complete_config(digits_config | {"model": {"kind": "deep", "layers": [64, 8, 10]}})
    assert models.count_parameters(models.build_model(config)) == 610


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "parity"},
        {"optimizer": "adagrad"},
        {"noise": 0.3},
        {"model": exercise_1_3.config["model"] | {"layers": LAYERS}},
    ],
)
def test_without_the_patches_there_is_none_of_it(changes):
    with pytest.raises(ValueError, match=r"parity|adagrad|noise|groups"):
        complete_config(exercise_1_3.config | {"dataset": "digits"} | changes)
