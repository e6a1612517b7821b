"""Whatever a config holds, a run trains or ends in one line, and writes in its run folder alone."""

import contextlib
import copy
import io
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import dataset
import exercise_1_1
import exercise_1_2
import exercise_1_3
import exercise_2_3
import training
from config import parse_config
from exits import exit_cleanly

EXERCISES = [exercise_1_1, exercise_1_2, exercise_1_3, exercise_2_3]
EXAMPLES = int(os.environ.get("LAB01_EXAMPLES", "75"))
SEEDED = "LAB01_EXAMPLES" not in os.environ  # a longer search draws other examples each time

TEXTS = st.sampled_from(
    ["", "none", "auto", "adam", "digits", "minst", "best", "a\nb", "'\"", "nul\0", "\ud800", "🙂",
     "a\u2028b", "\r", "--lr", "1e-3", "nan", "-1", "│ x │", "──────", "x" * 5000, "[bold]", "%s{}"]
)  # fmt: skip
NUMBERS = st.sampled_from(
    [0, 1, -1, 2, 3, 20, 0.0, -0.0, 0.5, 1.0, -0.5, 1e-3, 0.999999, 1e-300, 1e300, 1.7e308,
     float("nan"), float("inf"), float("-inf"), 10**9, 2**31, 2**63, 2**64, -(2**63), 10**30,
     10**5000, True, False]
)  # fmt: skip
PATHS = st.sampled_from(
    ["auto", "none", "new", "new/er", "../beside", "../out", "new/../odd", "..", ".", "/",
     "ABSOLUTE/new", "ABSOLUTE/a/b", "file", "file/below", "taken", "empty", "started", "-x",
     "/dev/null", "/proc/none/here", "n" * 300, "n" * 255, "n/" * 3000, "a b", "a'\"b", "a\nb",
     "a\0b", "🙂", "~",
     "finished", "listed", "garbled", "\udcff", "--lr", "", "a\tb", "C:\\x", "new/", "./new"]
)  # fmt: skip
VALUES = st.one_of(
    NUMBERS,
    TEXTS,
    st.none(),
    st.lists(st.one_of(NUMBERS, TEXTS), max_size=3),
    st.dictionaries(st.one_of(TEXTS, st.integers()), NUMBERS, max_size=2),
    st.sampled_from([b"bytes", (1, 2), 1j, {1}, [[1]], [{}], {"a": {"b": 1}}]),
)
LAYERS = st.lists(
    st.one_of(
        st.integers(1, 8),
        NUMBERS,
        st.fixed_dictionaries(
            {},
            optional={
                "channels": st.one_of(st.integers(1, 8), VALUES),
                "kernel_size": st.one_of(st.integers(1, 3), NUMBERS),
                "stride": st.one_of(st.integers(1, 3), NUMBERS),
                "padding": st.one_of(st.integers(0, 2), NUMBERS),
                "dropout": NUMBERS,
                "pool": NUMBERS,
                "pol": NUMBERS,
            },
        ),
    ),
    max_size=4,
)
# what a person might well ask for, and what nobody should
ODD = {
    "run_dir": PATHS,
    "data_dir": PATHS,
    "resume": PATHS,
    "checkpoint": PATHS,
    "seeds": st.one_of(st.lists(st.integers(0, 9), max_size=3), VALUES),
    "dataset": st.one_of(st.sampled_from(["mnist", "cifar10", "image_folder"]), TEXTS),
    "epochs": st.one_of(st.integers(1, 2), VALUES),
    "batch_size": st.one_of(st.integers(1, 90), VALUES),
    "optimizer": st.one_of(st.sampled_from(["adam", "adamw", "sgd"]), VALUES),
    "schedule": st.one_of(st.sampled_from(["constant", "cosine", "one_cycle"]), VALUES),
    "precision": st.one_of(st.sampled_from(["auto", "bfloat16"]), VALUES),
    "device": st.one_of(st.sampled_from(["cuda:9", "cuda:\u00b2", "cpu:0", "meta", "xla"]), VALUES),
    "wandb_mode": st.one_of(TEXTS.filter(lambda text: text != "auto"), NUMBERS),  # auto is slow
    "compile": NUMBERS,  # "on" takes minutes
    "image_size": st.one_of(st.integers(1, 9), VALUES),
    "model.kind": st.one_of(st.sampled_from(["mlp", "skip_mlp", "cnn"]), VALUES),
    "model.layers": st.one_of(LAYERS, VALUES, st.just([64, 8, 10])),
    "model.in_channels": st.one_of(st.integers(1, 3), VALUES),
    "cam.indices": st.one_of(st.lists(st.integers(-1, 40), max_size=2), VALUES),
    "model": VALUES,
    "cam": VALUES,
    "model.stem": VALUES,
    "learning_rate": VALUES,
    "a\nkey": VALUES,
}
PLAIN = {
    "lr", "momentum", "weight_decay", "warmup_epochs", "label_smoothing", "shift", "rotate", "zoom",
    "elastic", "crop", "flip", "cutout", "val_fraction", "checkpoint_every", "seed", "preset",
    "resize", "on_bad_image", "cam.per_class", "model.dropout", "model.kernel_size", "model.stride",
    "model.padding", "model.residual", "model.min_map", "model.num_classes",
    "model.image_size",
}  # fmt: skip
KEYS = ODD | dict.fromkeys(sorted(PLAIN), st.one_of(NUMBERS, VALUES))
CHANGES = st.lists(
    st.sampled_from(sorted(KEYS)).flatmap(lambda key: st.tuples(st.just(key), KEYS[key])),
    max_size=3,
)


class Trained(BaseException):
    """An epoch has been trained, which is enough to see."""


def small(exercise):
    """The exercise's config, made small."""
    config = copy.deepcopy(exercise.config) | {"dataset": "digits", "epochs": 1, "device": "cpu"}
    config |= {"wandb_mode": "disabled", "run_dir": "run"}
    if config["model"]["kind"] == "cnn":
        config["model"]["layers"] = [4, 4]
    return config


def changed(config, key, value):
    """Set config[a][b] for the key "a.b", whatever config[a] is."""
    section, _, name = key.rpartition(".")
    where = config.setdefault(section, {}) if section else config
    if isinstance(where, dict):
        where[name] = value


def words_of(value):
    """What stands for `value` on a command line."""
    with contextlib.suppress(ValueError):  # the text of a very long number
        return [str(v) for v in value] if isinstance(value, list) else [str(value)]
    return ["9" * 5000]


def everything(root):
    """{path: (size, time of the last change)} of all below `root`."""
    found = {}
    for folder, _, files in os.walk(root):
        found[folder] = None
        for name in files:
            status = (Path(folder) / name).lstat()
            found[f"{folder}/{name}"] = (status.st_size, status.st_mtime_ns)
    return found


def attempt(run):
    """(exit code or "trained", lines on stderr) of run(); any other exception comes through."""
    complaints = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(complaints):
        try:
            run()
            code = 0
        except Trained:
            code = "trained"
        except SystemExit as stop:
            code = stop.code
    return code, complaints.getvalue().splitlines()


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    """A folder two levels below its root, with good and bad run folders in it."""
    root = tmp_path_factory.mktemp("playground")
    work = root / "deep" / "work"
    for name in ("empty", "taken/below", "started", "listed", "garbled/checkpoints"):
        (work / name).mkdir(parents=True)
    (work / "file").write_text("a file")
    (work / "started/config.json").write_text("{}")
    (work / "listed/config.json").write_text("[1, 2]")
    (work / "garbled/config.json").write_bytes(b"\xff{")
    (work / "garbled/checkpoints/last.pt").write_bytes(b"\x80nothing")
    splits, *rest = dataset.LOADERS["digits"]({})
    splits = {name: (images[:80], labels[:80]) for name, (images, labels) in splits.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(dataset.LOADERS, "digits", lambda config: (splits, *rest))
        exercise_1_1.main(small(exercise_1_1) | {"run_dir": str(root / "finished")})

        def no_network(*arguments, **options):
            raise OSError("no network")

        def stop(*arguments):
            raise Trained

        for name in ("MNIST", "CIFAR10", "Imagenette"):
            patch.setattr(f"torchvision.datasets.{name}", no_network)
        patch.setattr(training.CheckpointWriter, "save", stop)
        with training.threads_restored():
            torch.set_num_threads(1)  # nor do seeds then start processes, which nothing would stop
            yield root


@pytest.mark.timeout(300)
@settings(
    max_examples=EXAMPLES,
    derandomize=SEEDED,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    exercise=st.sampled_from(EXERCISES),
    changes=CHANGES,
    by_flags=st.booleans(),
    preset=st.sampled_from([None] * 9 + ["digits", "best", "odd"]),
    left_out=st.sampled_from([None] * 40 + ["lr", "model.layers", "model.kind", "cam", "seed"]),
)
def test_a_run_trains_or_ends_in_one_line_and_writes_in_its_folder_alone(
    playground, exercise, changes, by_flags, preset, left_out
):
    root, config, flags = playground, small(exercise), []
    presets = exercise.presets | {"odd": {}}
    for key, value in changes:
        value = value.replace("ABSOLUTE", str(root / "else")) if isinstance(value, str) else value
        if by_flags:
            flags += [f"--{key}", *words_of(value)]
        else:
            changed(presets["odd"] if preset == "odd" else config, key, value)
    if left_out:
        section, _, name = left_out.rpartition(".")
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            (config[section] if section else config).pop(name, None)
    if preset:
        flags += ["--preset", preset]
    work, finished = root / "deep/work", root / "deep/work/finished"
    shutil.copytree(root / "finished", finished)
    before = everything(root)
    places = [work / "runs"]

    def run():
        asked = parse_config(config, presets, flags) if by_flags or preset else config
        places.extend(work / str(asked[key]) for key in ("run_dir", "resume"))
        exit_cleanly(exercise.main)(asked)

    try:
        with warnings.catch_warnings(), contextlib.chdir(work):
            warnings.simplefilter("error")
            code, complaints = attempt(run)
    finally:
        after = everything(root)
        for path in map(Path, sorted(after.keys() - before.keys(), reverse=True)):
            path.rmdir() if path.is_dir() else path.unlink()
        shutil.rmtree(finished)

    event(f"ends with {code}")
    written = {path for path in after.keys() | before.keys() if after.get(path) != before.get(path)}
    assert code in ("trained", 0, 2)
    if code == 2:
        (line,) = complaints
        assert line.startswith("error: ")
        assert len(line) > len("error: ")
    elif code == "trained":
        assert written
    homes = [Path(os.path.normpath(place)) for place in places]
    for path in map(Path, written):
        assert any(path.is_relative_to(h) or h.is_relative_to(path) for h in homes), path
