"""Every way to hold it wrong ends in one line that names the thing, and leaves nothing behind."""

import errno
import json
import os
import re
import shutil
import sys
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from conftest import DATA, write_pictures
from PIL import Image

import cam
import evaluate
import exercise_1_1
import exercise_1_2
import exercise_1_3
import exercise_2_3
from checkpoint import find_checkpoint, save_checkpoint
from config import merge, parse_config
from dataset import load_datasets
from exits import exit_cleanly, read_flags
from models import build_model

WRONG = [
    (exercise_1_3, "--crop 0.5 --crop_size 16 --cutout 16", "cutout 16", "16 pixels"),
    (exercise_1_1, "--learning_rate 3", "--learning_rate", "--lr"),
    (exercise_1_1, "--epoch 3", "--epoch", "--epochs"),
    (exercise_1_3, "--dropout 0.1", "--dropout", "--model.dropout"),
    (exercise_1_1, "--lr fast", "--lr", "fast"),
    (exercise_1_1, "--epochs 1.5", "--epochs", "1.5"),
    (exercise_1_1, "--lr", "--lr", "argument"),
    (exercise_1_1, "--dataset minst", "minst", "mnist"),
    (exercise_1_1, "--optimizer adm", "adm", "adam"),
    (exercise_1_1, "--optimizer SGD", "SGD", "did you mean sgd?"),
    (exercise_1_1, "--schedule linear", "linear", "cosine"),
    (exercise_1_1, "--device gpu", "gpu", "cuda"),
    (exercise_1_1, "--device cuda:x", "cuda:x", "cpu"),
    (exercise_1_1, "--precision float16", "float16", "bfloat16"),
    (exercise_1_1, "--compile yes", "yes", "auto"),
    (exercise_1_1, "--wandb_mode never", "never", "disabled"),
    (exercise_1_1, "--resize stretch", "stretch", "squash"),
    (exercise_1_3, "--deskew", "deskew", "cifar10"),
    (exercise_1_1, "--preset bset", "bset", "digits"),
    (exercise_1_1, "--epochs 0", "epochs", "0"),
    (exercise_1_1, "--epochs -1", "epochs", "-1"),
    (exercise_1_1, "--batch_size 0", "batch_size", "0"),
    (exercise_1_1, "--checkpoint_every 0", "checkpoint_every", "0"),
    (exercise_1_1, "--lr 0", "lr", "above 0"),
    (exercise_1_1, "--lr nan", "lr", "nan"),
    (exercise_1_1, "--lr inf", "lr", "inf"),
    (exercise_1_1, "--val_fraction 0", "val_fraction", "0"),
    (exercise_1_1, "--val_fraction 1", "val_fraction", "1"),
    (exercise_1_1, "--weight_decay -1", "weight_decay", "-1"),
    (exercise_1_1, "--momentum 1", "momentum", "1"),
    (exercise_1_1, "--label_smoothing 1", "label_smoothing", "1"),
    (exercise_1_1, "--warmup_epochs -1", "warmup_epochs", "-1"),
    (exercise_1_1, "--rotate 400", "rotate", "400"),
    (exercise_1_1, "--zoom 1", "zoom", "1"),
    (exercise_1_1, "--crop 0", "crop", "0"),
    (exercise_1_1, "--crop 0.5 --crop_size 14", "crop_size", "mlp"),
    (exercise_1_3, "--crop_size 24", "crop_size", "--crop 0.35"),
    (exercise_1_3, "--crop 0.5 --crop_size 8", "crop_size", "from 16 to 32"),
    (exercise_1_1, "--shift -1", "shift", "-1"),
    (exercise_1_1, "--cutout -1", "cutout", "-1"),
    (exercise_1_1, "--elastic -1", "elastic", "-1"),
    (exercise_1_1, "--seed -1", "seed", "-1"),
    (exercise_1_1, "--seeds 1 1", "seeds", "differ"),
    (exercise_1_1, "--seeds 1 -2", "seeds", "-2"),
    (exercise_1_1, "--image_size -8", "image_size", "-8"),
    (exercise_1_1, "--model.kind resnet", "resnet", "cnn"),
    (exercise_1_1, "--model.layers 100 64 10", "100", "784 64 10"),
    (exercise_1_1, "--model.layers 784 64 11", "11", "784 64 10"),
    (exercise_1_1, "--model.layers 784", "model.layers", "short"),
    (exercise_1_1, "--model.layers 784 0 10", "model.layers", "positive"),
    (exercise_1_1, "--model.layers", "model.layers", "positive"),
    (exercise_1_2, "--model.dropout 1", "model.dropout", "1"),
    (exercise_1_2, "--model.kind mlp --model.dropout 0.5", "model.dropout", "skip_mlp and cnn"),
    (exercise_1_3, "--model.min_map 4", "--model.min_map", "write it into the dict"),
    (exercise_1_1, "--flip True", "True", "--no_flip"),
    (exercise_1_1, "--seed 0 1", "1", "--seeds 0 1 2"),
    (exercise_1_1, "--seeds 0,1,2", "0,1,2", "with spaces"),
    (exercise_1_1, "--seeds --epochs 1", "--seeds needs numbers", "--seeds 0 1 2"),
    (exercise_2_3, "--cam.indices", "--cam.indices needs numbers", "0 1 2"),
    (exercise_1_1, "--dropout 0.2", "--dropout is for skip_mlp and cnn", "this is a mlp"),
    (exercise_1_1, "--cpu", "--cpu", "did you mean --device?"),
    (exercise_1_1, "--resume --wandb_mode disabled", "--resume", "Missing value"),
    (exercise_1_1, "--dataset digits --shift 8", "shift", "8 pixels a side"),
    (exercise_1_3, "--cutout 32", "cutout", "32 pixels a side"),
    (exercise_1_2, "--model.layers 784 10", "model.layers", "short"),
    (exercise_1_3, "--model.kernel_size 0", "kernel_size", "0"),
    (exercise_1_3, "--model.stride 0", "stride", "0"),
    (exercise_1_3, "--model.layers 0", "model.layers", "positive"),
    (exercise_1_1, "--dataset image_folder --data_dir nowhere", "nowhere", "train"),
    (exercise_1_1, "--dataset image_folder --data_dir empty", "empty", "class folders"),
    (exercise_1_1, "--dataset image_folder --data_dir good", "--image_size", "64"),
    (exercise_1_1, "--resume nowhere", "nowhere", "config.json"),
    (exercise_1_1, "--resume finished --seeds 1 2", "--seeds", "one seed"),
    (exercise_1_1, "--resume started", "started", "no checkpoint"),
    (exercise_1_1, "--run_dir taken", "taken", "another --run_dir"),
    (exercise_1_1, "--run_dir file", "file", "folder"),
    (exercise_1_1, "--dataset digits --val_fraction 0.0001", "val_fraction", "0.0001"),
    (exercise_1_1, "--dataset image_folder --data_dir broken --image_size 8", "3.png", "broken"),
    (exercise_1_1, "--dataset image_folder --data_dir odd --image_size 8", "odd", "bird"),
    (exercise_1_1, "--dataset image_folder --data_dir hollow --image_size 8", "hollow", "bird"),
    (exercise_1_1, "--dataset mnist --data_dir nowhere", "MNIST/raw", "--dataset digits"),
    (exercise_1_3, "--data_dir nowhere", "cifar-10-batches-py", "--dataset digits"),
    (exercise_2_3, "--data_dir nowhere", "imagenette2-160", "--dataset digits"),
    (exercise_2_3, "--dataset digits --cam.indices 5 359", "359", "358"),
    (exercise_2_3, "--dataset digits --cam.contrast 3,x", "cam.contrast", "known: 0, 1"),
    (exercise_1_1, "--dataset digits --hold_out_boxed", "hold_out_boxed", "imagenette_boxes.csv"),
    (exercise_2_3, "--hold_out_boxed --on_bad_image skip", "skip", "--on_bad_image error"),
    (exercise_2_3, "--cam.indices -1", "cam.indices", "-1"),
    (exercise_2_3, "--cam.per_class -1", "cam.per_class", "-1"),
    (exercise_2_3, "--checkpoint best.pt", "best.pt", "name a run folder"),
    (exercise_2_3, "--checkpoint a.pt --resume finished", "a.pt", "one of the two"),
    (exercise_2_3, "--checkpoint mlp.pt", "mlp.pt", "no maps"),
    (exercise_2_3, "--checkpoint mlp.pt --seed 7", "seed of its training", "--cam.indices"),
    (exercise_2_3, "--checkpoint mlp.pt --seeds 1 2 --lr 1", "lr, seeds", "leave that out"),
    (exercise_2_3, "--checkpoint seeds", "several seeds", "seeds/seed_3"),
    (exercise_1_1, "--schedule one_cycle --warmup_epochs 2", "warmup_epochs", "cosine"),
    (exercise_1_1, "--epochs 3 --warmup_epochs 3", "warmup_epochs 3 of 3", "raise --epochs"),
    (exercise_1_1, "--model.layers 128", "--model.layers 784 128 10", "too short"),
    (exercise_2_3, "--checkpoint file", "file", "checksum"),
]


@pytest.fixture(scope="module")
def landscape(tmp_path_factory):
    """Good and bad folders beside one another."""
    home = tmp_path_factory.mktemp("landscape")
    for name in ("good", "broken", "odd", "hollow"):
        write_pictures(home / name, size=8)
    (home / "broken/train/dog/3.png").write_bytes(b"not a picture")
    (home / "odd/test/bird").mkdir()
    (home / "odd/test/bird/1.png").write_bytes((home / "good/test/cat/1.png").read_bytes())
    for name in ("hollow/train/bird", "empty/train", "finished/checkpoints", "seeds/seed_3"):
        (home / name).mkdir(parents=True)
    for name in ("started/config.json", "finished/config.json", "taken/results.json"):
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text("{}")
    (home / "finished/checkpoints/last.pt").write_text("")
    (home / "file").write_text("a file")
    mlp = {"dataset": "digits", "model": {"kind": "mlp", "layers": [64, 10]}}
    about = {"classes": list("0123456789"), "mean": [0.5], "std": [0.2], "shape": [1, 8, 8]}
    state = {"epoch": 1, "model": build_model(exercise_1_1.config | mlp).state_dict()}
    save_checkpoint(home / "mlp.pt", state | {"config": exercise_1_1.config | mlp, "data": about})
    return home


@pytest.fixture
def surroundings(landscape, monkeypatch):
    """A copy of that, and no network."""
    shutil.copytree(landscape, ".", dirs_exist_ok=True)

    def no_network(*arguments, **options):
        raise urllib.error.URLError("no network")

    for name in ("MNIST", "CIFAR10", "Imagenette"):
        monkeypatch.setattr(torchvision.datasets, name, no_network)


@pytest.mark.parametrize(
    ("exercise", "flags", "thing", "way_out"),
    WRONG,
    ids=[f"{e.__name__} {f}" for e, f, *_ in WRONG],
)
def test_a_mistake_ends_in_one_line_and_exit_code_2(
    surroundings, capsys, exercise, flags, thing, way_out
):
    before = sorted(Path.cwd().rglob("*"))
    main = exit_cleanly(exercise.main)
    with pytest.raises(SystemExit) as stop:
        main(parse_config(exercise.config, exercise.presets, flags.split()))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert thing in line
    assert way_out in line
    assert sorted(Path.cwd().rglob("*")) == before  # nothing written


CNN = exercise_1_3.config["model"] | {"layers": [4, 4, 4, 4, 4]}
MLP = exercise_1_1.config["model"]
WRONG_IN_PYTHON = [
    (exercise_1_1, {"learning_rate": 1}, "learning_rate", "lr"),
    (exercise_1_1, {"lr": True}, "lr", "above 0"),
    (exercise_1_1, {"epochs": 10**5000}, "epochs", "1,000,000,000"),
    (exercise_1_1, {"model": {"kind": "mlp"}}, "model.layers", "missing"),
    (exercise_1_1, {"model": MLP | {"layers": [784, 10**9, 10]}}, "memory", "--model.layers"),
    (exercise_1_1, {"run_dir": "a\nb"}, "run_dir", "one line"),
    (exercise_1_1, {"run_dir": "n" * 255}, "run_dir", "200 bytes"),
    (exercise_1_1, {"run_dir": ".."}, "already exists", "--run_dir"),
    (exercise_1_3, {"model": CNN | {"in_channels": 3}}, "model.in_channels", "leave it out"),
    (exercise_1_3, {"model": CNN | {"layers": [{"pool": 1}]}}, "model.layers[0].channels", "whole"),
    (exercise_1_3, {"model": CNN | {"layers": [{"channels": 4, "pol": 1}]}}, "pol", "pool"),
    (exercise_1_3, {"model": CNN, "batch_size": 431}, "batch_size 431", "--batch_size"),
    (exercise_1_3, {"model": CNN, "crop": 0.5, "crop_size": 4}, "crop_size 4", "fewer layers"),
    (exercise_2_3, {"model": MLP}, "maps", "--model.kind cnn"),
    (exercise_2_3, {"cam": {"per_class": 1}}, "cam.indices", "list"),
]


@pytest.mark.parametrize(("exercise", "changes", "thing", "way_out"), WRONG_IN_PYTHON)
def test_a_mistake_in_a_dict_ends_in_one_line_and_exit_code_2(
    capsys, exercise, changes, thing, way_out
):
    small = {"dataset": "digits", "wandb_mode": "disabled", "device": "cpu", "epochs": 1}
    before = sorted(Path.cwd().rglob("*"))
    with pytest.raises(SystemExit) as stop:
        exit_cleanly(exercise.main)(exercise.config | small | changes)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert thing in line
    assert way_out in line
    assert sorted(Path.cwd().rglob("*")) == before  # nothing written


def test_a_config_that_lacks_a_part_names_the_config_to_start_from(capsys):
    lacking = {key: value for key, value in exercise_2_3.config.items() if key != "cam"}
    with pytest.raises(SystemExit):
        exit_cleanly(exercise_2_3.main)(lacking)
    assert "cam is missing: lay your changes over exercise_2_3.config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "kind", "thing"),
    [
        ({"kind": "mlp", "layers": 5}, "cnn", "model.layers"),
        ({"kind": "cnn", "layers": [{"kernel_size": 5}]}, "mlp", "model.layers[0].channels"),
    ],
)
def test_a_mistake_in_the_dict_is_named_with_a_network_of_another_kind_too(
    model, kind, thing, capsys
):
    with pytest.raises(SystemExit) as stop:
        parse_config(exercise_1_1.config | {"model": model}, {}, ["--model.kind", kind])
    assert stop.value.code == 2
    assert thing in capsys.readouterr().err


def test_cuda_without_one_is_refused(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(SystemExit) as stop:
        parse_config(exercise_1_1.config, {}, ["--device", "cuda"])
    assert stop.value.code == 2
    assert "--device auto" in capsys.readouterr().err


def test_flags_reach_nested_keys_and_keep_the_rest():
    flags = "--model.layers 784 128 10 --lr 1e-3 --seeds 1 2 --dataset mnist"
    config = parse_config(exercise_1_1.config, exercise_1_1.presets, flags.split())
    assert config["model"] == {"kind": "mlp", "layers": [784, 128, 10]}
    assert (config["lr"], config["seeds"]) == (1e-3, [1, 2])
    assert exercise_1_1.config["model"]["layers"] == [784, 64, 64, 10]
    rest = {key: value for key, value in config.items() if key not in ("model", "lr", "seeds")}
    assert rest.items() <= exercise_1_1.config.items()


def test_a_number_written_without_a_point_takes_a_fraction():
    assert parse_config(exercise_1_1.config | {"lr": 1}, {}, ["--lr", "0.5"])["lr"] == 0.5


def test_a_preset_lies_under_the_flags_and_over_the_config():
    presets = {"best": {"lr": 0.5, "epochs": 7}}
    config = parse_config(exercise_1_1.config, presets, ["--epochs", "3", "--preset", "best"])
    assert (config["lr"], config["epochs"], config["preset"]) == (0.5, 3, "best")


def test_layers_that_a_preset_gives_as_dicts_stay_and_give_way_to_a_flag():
    layers = [{"channels": 4, "pool": 1}, 8]
    presets = {"best": {"model": {"layers": layers}}}

    def parse(*flags):
        return parse_config(exercise_1_3.config, presets, ["--preset", "best", *flags])

    assert parse("--lr", "0.1")["model"]["layers"] == layers
    assert parse("--model.layers", "4", "8")["model"]["layers"] == [4, 8]


def test_a_network_of_another_kind_has_its_own_settings_alone(tmp_path, capsys):
    presets = {"small": {"model": {"kind": "cnn", "layers": [4]}}}

    def model_of(*flags, exercise=exercise_2_3):
        return parse_config(exercise.config, presets, flags)["model"]

    by_flag = model_of("--model.kind", "resnet18", "--model.pretrained")
    assert by_flag == {"kind": "resnet18", "pretrained": True}
    left_out = "without dropout, layers, min_map, residual"
    assert capsys.readouterr().out == f"model.kind resnet18: {left_out}\n"
    convolutional = model_of("--model.kind", "cnn", exercise=exercise_1_2)
    assert convolutional["layers"] == [128, 64, 64]  # without the ends, 784 values and 10 classes
    plain = model_of("--model.kind", "mlp", "--model.layers", "784", "10", exercise=exercise_1_2)
    assert plain == {"kind": "mlp", "layers": [784, 10]}
    assert model_of("--preset", "small", exercise=exercise_1_1) == presets["small"]["model"]
    flags = [
        "--preset",
        "best",
        "--model.kind",
        "mlp",
        "--model.layers",
        "3072",
        "64",
        "10",
        "--optimizer",
        "adam",
    ]
    config = parse_config(exercise_1_3.config, exercise_1_3.presets, flags)
    assert config["model"] == {"kind": "mlp", "layers": [3072, 64, 10]}
    written = exercise_2_3.config | {"model": by_flag}
    (tmp_path / "config.json").write_text(json.dumps(written))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").touch()
    assert model_of("--resume", str(tmp_path)) == by_flag


def test_a_run_is_gone_on_with_as_the_network_that_it_is_and_by_its_own_script(digits_config):
    model = {"kind": "cnn", "layers": [4, 4]}
    exercise_1_3.main(exercise_1_3.config | digits_config | {"model": model})
    folder = digits_config["run_dir"]
    resumed = parse_config(exercise_2_3.config, exercise_2_3.presets, ["--resume", folder])
    assert resumed["model"].keys() == model.keys() | {"image_size", "in_channels", "num_classes"}
    longer = resumed | {"epochs": 2}
    with pytest.raises(ValueError, match=r"model.min_map None -> 8"):
        exercise_1_3.main(longer | {"model": resumed["model"] | {"min_map": 8}})
    with pytest.raises(ValueError, match=r"that run is of exercise_1_3: resume it by exercise_1_3"):
        exercise_2_3.main(longer)
    assert exercise_1_3.main(longer)["epochs"] == 2


def test_a_preset_called_like_a_data_set_comes_with_it_and_is_announced(capsys):
    config = parse_config(exercise_1_1.config, exercise_1_1.presets, ["--dataset", "digits"])
    assert config["lr"] == 1e-3
    assert "lr 0.001 instead of 0.0001" in capsys.readouterr().out
    flags = ["--dataset", "digits", "--preset", "none"]
    config = parse_config(exercise_1_1.config, exercise_1_1.presets, flags)
    assert (config["lr"], capsys.readouterr().out) == (1e-4, "")
    written = exercise_1_1.config | {"dataset": "digits"}  # the dict says what it says
    assert parse_config(written, exercise_1_1.presets, [])["lr"] == 1e-4
    said = "--preset digits would set lr 0.001 instead of 0.0001\n"
    assert capsys.readouterr().out == said


def test_a_preset_that_is_written_into_the_dict_is_laid_over_it_and_a_wrong_one_named(capsys):
    presets = {"best": {"lr": 0.5, "epochs": 7}, "digits": {"lr": 0.1}}
    written = exercise_1_1.config | {"preset": "best"}
    config = parse_config(written, presets, ["--epochs", "3", "--dataset", "digits"])
    assert (config["lr"], config["epochs"], config["preset"]) == (0.5, 3, "best")
    for wrong in ("bset", ["best"]):
        with pytest.raises(SystemExit):
            parse_config(written | {"preset": wrong}, presets, [])
        said = f"preset {wrong!r} is none of this script's: none, best"
        assert said in capsys.readouterr().err


def test_where_nobody_reads_the_output_any_more_it_ends_without_a_word(monkeypatch, capsys):
    @exit_cleanly
    def gone(config):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    closed = []
    monkeypatch.setattr(os, "dup2", lambda *files: closed.append(files))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(fileno=lambda: 1))
    with pytest.raises(SystemExit, match="141"):
        gone({})
    assert len(closed) == 1 and not capsys.readouterr().err


def test_a_folder_in_the_home_is_found_by_its_tilde(monkeypatch, tmp_path, digits_config):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    results = exercise_1_1.main(digits_config | {"run_dir": "~/one"})
    assert results["run_dir"] == str(tmp_path / "home" / "one")
    assert Path(results["run_dir"], "results.json").is_file() and not Path("~").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "dataset must be one of"),
        ({"dataset": "digits", "val_fraction": "0.1"}, "val_fraction must be a number"),
        ({"dataset": "digits", "image_size": -3}, "image_size must be a whole number"),
        ({"dataset": "image_folder", "data_dir": "own"}, "image_folder needs a size"),
    ],
)
def test_data_that_are_loaded_from_python_say_what_is_wrong_too(changes, said):
    Path("own/train/cat").mkdir(parents=True)
    with pytest.raises(ValueError, match=said):
        load_datasets(changes)
    assert not Path("own/.cache").exists()


@pytest.mark.parametrize("changes", [{3: 4}, {"model": {"kind": "mlp", "layers": {1: 784}}}])
def test_a_key_that_is_no_text_is_named(changes, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_config(exercise_1_1.config | changes, exercise_1_1.presets, [])
    assert "3 is no setting" in (error := capsys.readouterr().err) or "model.layers" in error


def test_a_folder_that_is_no_run_is_not_offered_to_go_on_with(digits_config):
    (Path(digits_config["run_dir"]) / "of_mine").mkdir(parents=True)
    with pytest.raises(ValueError, match="run already exists: choose another --run_dir"):
        exercise_1_1.main(digits_config)


def test_a_loss_that_is_not_finite_in_the_first_epoch_speaks_of_none_before(digits_config):
    with pytest.raises(ValueError, match=r"lower --lr$"):
        exercise_1_1.main(digits_config | {"optimizer": "sgd", "lr": 1e30})


def test_on_a_terminal_a_mistake_is_the_same_line(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for args, line in (
        ("--lr abc", "error: --lr 'abc': not a number\n"),
        ("--seeds 0,1", "error: --seeds '0,1': whole numbers are needed"),
        ("--preset foo", "error: invalid choice 'foo' for argument '--preset'"),
        ('--model.layers 8 {"channels":4}', "error: --model.layers takes whole numbers alone"),
    ):
        with pytest.raises(SystemExit, match="2"):
            parse_config(exercise_1_1.config, exercise_1_1.presets, args.split())
        assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize(
    ("script", "args", "line"),
    [
        (evaluate, "", "name a run folder, or a checkpoint"),
        (evaluate, "run --foo", "unknown flag --foo; --help lists all"),
        (evaluate, "run --split foo", "invalid choice 'foo' for argument '--split'"),
        (cam, "photo.png", "--checkpoint is missing: a run folder, or a best.pt"),
    ],
)
def test_a_mistake_in_another_script_is_one_line_too(script, args, line, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *args.split()])
    with pytest.raises(SystemExit, match="2"):
        read_flags(script.Flags)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and line in error


def test_of_a_flag_that_stands_twice_the_last_counts_everywhere():
    presets = {"best": {"lr": 0.5}, "wide": {"lr": 0.25}}
    config = parse_config(exercise_1_1.config, presets, ["--preset", "best", "--preset=wide"])
    assert (config["preset"], config["lr"]) == ("wide", 0.25)


def test_help_shows_the_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as stop:
        parse_config(exercise_1_1.config, {}, ["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("--model.layers", "784 64 64 10", "0.0001", "--seeds"))


def test_help_says_what_stands_beside_a_key_and_which_names_it_takes(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr("sys.argv", [exercise_2_3.__file__])
    with pytest.raises(SystemExit):
        parse_config(exercise_2_3.config, exercise_2_3.presets, ["--help"])
    shown = capsys.readouterr().out
    for script in ("config.py", "exercise_2_3.py"):
        source = (DATA.parent / script).read_text(encoding="utf-8").split("presets = {")[0]
        notes = re.findall(r'^ +"\w+": .*,  # (.*)', source, re.MULTILINE)
        assert len(notes) > 5
        for note in notes:
            assert note in shown
    assert "{adam,adamw,sgd,muon}" in shown
    assert "{constant,cosine,one_cycle}" in shown


def test_the_script_itself_exits_with_code_2(forks):
    child = forks.start("exercise_1_1.py", "--dataset", "digits", "--epochs", 0)
    assert child.wait() == 2
    assert child.err == "error: epochs must be a whole number from 1 to 1,000,000,000, got 0\n"
    assert {path.absolute() for path in Path().iterdir()} == set(child.outputs)


def test_a_run_goes_on_where_it_is_and_in_no_other_folder(digits_config, tmp_path, capsys):
    exercise_1_1.main(digits_config)
    folder = digits_config["run_dir"]
    words = ["--resume", folder, "--run_dir"]
    with pytest.raises(SystemExit):
        parse_config(exercise_1_1.config, {}, [*words, str(tmp_path / "other")])
    assert "a run goes on where it is" in capsys.readouterr().err
    assert parse_config(exercise_1_1.config, {}, [*words, "auto"])["resume"] == folder
    assert parse_config(exercise_1_1.config, {}, [*words, f"{folder}/"])["resume"] == folder


def test_the_step_that_a_run_began_with_stays_and_that_is_said(digits_config, capsys):
    exercise_1_1.main(digits_config | {"compile": "off"})
    resumed = digits_config | {"resume": digits_config["run_dir"], "epochs": 2, "compile": "on"}
    exercise_1_1.main(resumed)
    assert "compile stays off, as the run began" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["exercise_1_1.py", "evaluate.py"])
def test_help_whose_reader_has_gone_ends_without_a_word(forks, script):
    child = forks.start(script, "--help", hook=["forks", "nobody_reads"])
    assert child.wait() == 141
    assert child.err == ""


def test_with_batchnorm_a_last_batch_of_one_is_named_for_an_mlp_too(digits_config, monkeypatch):
    mlp = exercise_1_1.build_model

    def built(config):
        return torch.nn.Sequential(mlp(config), torch.nn.BatchNorm1d(10))

    monkeypatch.setattr(exercise_1_1, "build_model", built)
    with pytest.raises(ValueError, match="batch_size 1293 leaves a batch of one of the 1294"):
        exercise_1_1.main(digits_config | {"batch_size": 1293})


def test_a_class_that_is_held_out_as_a_whole_is_named_before_a_training_and_judged_all_the_same(
    digits_config, picture_folder
):
    folder = picture_folder()
    for path in sorted(folder.glob("train/dog/*"))[1:]:
        path.unlink()
    own = {"dataset": "image_folder", "data_dir": str(folder), "image_size": 8}
    config = exercise_1_3.config | digits_config | own | {"val_fraction": 0.5}
    config["model"] = {"kind": "cnn", "layers": [4]}
    missing = [load_datasets(config | {"seed": seed})[0].labels.sum() == 0 for seed in range(20)]
    assert 3 < sum(missing) < 17
    for change in ({"seed": missing.index(True)}, {"seeds": [missing.index(True)]}):
        with pytest.raises(
            ValueError, match="of class dog all pictures are held out, none is left"
        ):
            exercise_1_3.main(config | change)
    seeds = [missing.index(False), missing.index(True)]
    mlp = {"model": {"kind": "mlp", "layers": [192, 8, 2]}, "seeds": seeds}
    with pytest.raises(ValueError, match="of class dog all pictures are held out"):
        exercise_1_1.main(config | mlp)


def test_a_run_on_published_pictures_of_which_one_is_gone_is_not_gone_on_with(
    digits_config, tmp_path, capsys
):
    for split in ("train", "test"):
        for label in "abcdefghij":
            folder = tmp_path / "cifar10" / split / label
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:02}.png")
    config = exercise_1_3.config | digits_config | {"dataset": "cifar10"}
    config |= {"model": {"kind": "cnn", "layers": [4]}, "data_dir": str(tmp_path)}
    exercise_1_3.main(config)
    (tmp_path / "cifar10" / "train" / "a" / "00.png").unlink()
    with pytest.raises(ValueError, match=r"training images of .* are not those"):
        exercise_1_3.main(config | {"resume": config["run_dir"], "epochs": 2})
    with pytest.raises(ValueError, match=r"training images of .* are not those"):
        evaluate.load_judged(evaluate.Flags(config["run_dir"], split="val"))
    capsys.readouterr()
    explained = exercise_2_3.config | {"checkpoint": config["run_dir"], "wandb_mode": "disabled"}
    exercise_2_3.main(explained | {"run_dir": str(tmp_path / "maps"), "data_dir": str(tmp_path)})
    assert "may have learnt some that are validation images" in capsys.readouterr().err
    assert len(evaluate.load_judged(evaluate.Flags(config["run_dir"]))[1]) == 40  # apart from them


def test_folders_that_are_named_from_home_are_found(digits_config, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    exercise_1_1.main(digits_config)  # in run/
    assert parse_config(exercise_1_1.config, {}, ["--resume=~/run"])["resume"] == f"{tmp_path}/run"
    found = find_checkpoint("~/run")
    assert found == tmp_path / "run" / "checkpoints" / "best.pt"
    flags = ["--checkpoint=~/run/checkpoints/best.pt"]
    assert parse_config(exercise_2_3.config, {}, flags)["checkpoint"] == str(found)


def test_a_preset_that_is_only_named_is_refused_by_main(digits_config):
    config = exercise_1_1.config | digits_config
    for preset, said in (("best", "nothing of it is in the config"), ("x", "none of this")):
        with pytest.raises(ValueError, match=said):
            exercise_1_1.main(config | {"preset": preset})
    assert not Path(digits_config["run_dir"]).exists()
    merged = merge(config, exercise_1_1.presets["best"] | {"deskew": False})
    assert exercise_1_1.main(merged | {"preset": "best", "epochs": 1})["config"]["lr"] == 4e-3


def test_numbers_and_paths_of_a_notebook_are_taken_as_what_they_are(digits_config, tmp_path):
    config = exercise_1_1.config | digits_config
    notebook = {"lr": np.logspace(-3, -2, 2)[0], "epochs": np.int64(1), "seeds": range(2)}
    notebook |= {"model": {"kind": "mlp", "layers": (64, np.int32(8), 10)}}
    results = exercise_1_1.main(config | notebook | {"run_dir": tmp_path / "seeds"})
    written = json.loads((tmp_path / "seeds" / "config.json").read_text())
    assert written["lr"] == 1e-3 and written["seeds"] == results["seeds"] == [0, 1]
    assert written["model"]["layers"] == [64, 8, 10]
    with pytest.raises(ValueError, match="lr must be a number"):  # several are not one
        exercise_1_1.main(config | {"lr": np.logspace(-3, -2, 2)})


@pytest.mark.parametrize("columns", ["1", "30"])
def test_help_can_be_read_on_the_narrowest_terminal(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit) as ended:
        parse_config(exercise_1_1.config, exercise_1_1.presets, ["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0 and os.environ["COLUMNS"] == columns
    assert len(lines) < 200 and any("up to so many degrees" in line for line in lines)


def test_a_list_inside_itself_is_no_setting(digits_config):
    endless = [1]
    endless.append(endless)
    with pytest.raises(ValueError, match="seeds must be a list"):
        exercise_1_1.main(exercise_1_1.config | digits_config | {"seeds": endless})
