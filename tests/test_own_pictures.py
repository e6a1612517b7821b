"""One's own pictures: folders of every layout, uneven classes, and more than the memory holds."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dataset
import exercise_1_1
import exercise_1_3
import exercise_2_3
from cache import read_image
from checkpoint import load_checkpoint, load_model, save_checkpoint
from config import parse_config
from dataset import batches, fit_memory, load_datasets
from evaluate import Flags, evaluate, load_judged
from mapped import MappedImages
from models import build_model

SETTINGS = exercise_1_1.config | {"dataset": "image_folder", "image_size": 8, "batch_size": 4}


def write_pictures(folder, counts, size=8):
    """folder/<split>/<class>/<n>.png, `counts` of them, each of one grey: no two alike."""
    grey = 0
    for place, count in counts.items():
        (folder / place).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (size, size), grey).save(folder / place / f"{number}.png")
            grey += 1
    return SETTINGS | {"data_dir": str(folder)}


def trained_on(folder):
    """The config of a CNN that was trained for an epoch on pictures in `folder`."""
    counts = {f"{split}/{label}": 6 for split in ("train", "test") for label in ("cat", "dog")}
    config = exercise_1_3.config | write_pictures(folder, counts)
    config |= {"model": {"kind": "cnn", "layers": [4]}, "epochs": 1, "run_dir": "trained"}
    config |= {"wandb_mode": "disabled", "device": "cpu"}
    exercise_1_3.main(config)
    return config


def greys(images):
    return images[:, 0, 0, 0].tolist()


def test_without_a_test_folder_a_share_is_held_out_the_same_for_every_seed(tmp_path):
    config = write_pictures(tmp_path / "own", {"train/cat": 40, "train/dog": 60})
    sets = [load_datasets(config | {"seed": seed}) for seed in (0, 0, 1)]
    assert [len(s) for s in sets[0]] == [81, 9, 10]
    for train, val, test in sets:
        assert sorted(greys(train.images) + greys(val.images) + greys(test.images)) == [*range(100)]
    (_, val, test), (_, again, _), (_, other, other_test) = sets
    assert greys(val.images) == greys(again.images) != greys(other.images)
    assert greys(test.images) == greys(other_test.images)


def test_a_validation_folder_beside_a_test_folder_is_the_validation_set(tmp_path):
    counts = {f"{split}/{label}": 3 for split in ("train", "val", "test") for label in "ab"}
    sets = load_datasets(write_pictures(tmp_path / "own", counts))
    assert [greys(s.images) for s in sets] == [[*range(6)], [*range(6, 12)], [*range(12, 18)]]


def test_a_validation_folder_alone_is_the_test_set(tmp_path):
    counts = {"train/a": 5, "train/b": 5, "val/a": 2, "val/b": 2}
    train, val, test = load_datasets(write_pictures(tmp_path / "own", counts))
    assert sorted(greys(train.images) + greys(val.images)) == [*range(10)]
    assert greys(test.images) == [10, 11, 12, 13]


def test_a_validation_folder_of_other_classes_is_refused(tmp_path):
    counts = {"train/a": 2, "train/b": 2, "test/a": 1, "test/b": 1, "val/a": 1}
    with pytest.raises(ValueError, match=r"train and val hold different classes: \['b'\]"):
        load_datasets(write_pictures(tmp_path / "own", counts))


def test_pictures_that_changed_are_not_trained_on_with_the_old_split(tmp_path):
    config = trained_on(tmp_path / "own")
    resumed = config | {"resume": config["run_dir"], "epochs": 2}
    late = tmp_path / "own" / "train" / "cat" / "late.png"
    shutil.copyfile(late.with_name("1.png"), late)
    with pytest.raises(ValueError, match="not those that it was started with"):
        exercise_1_3.main(resumed)
    path = Path(config["run_dir"]) / "checkpoints" / "last.pt"
    state = load_checkpoint(path)
    del state["data"]["sha256"]  # as older ones are: the manifest knows
    save_checkpoint(path, state)
    with pytest.raises(ValueError, match="not those that it was started with"):
        exercise_1_3.main(resumed)
    late.unlink()
    assert exercise_1_3.main(resumed)["epochs"] == 2


def test_maps_are_drawn_where_the_pictures_are_and_weights_need_none(tmp_path):
    config = trained_on(tmp_path / "own")
    best = Path(config["run_dir"]) / "checkpoints" / "best.pt"
    maps = {"checkpoint": str(best), "run_dir": "maps", "wandb_mode": "disabled"}
    exercise_2_3.main(exercise_2_3.config | maps)  # in the folder that it was trained on
    manifest = json.loads(Path("maps/cam/manifest.json").read_text())
    assert {row["true"] for row in manifest["images"]} == {"cat", "dog"}
    for name in ("config.json", "results.json"):  # they speak of the network that is explained
        written = json.loads(Path("maps", name).read_text())
        of_run = written.get("config", written)
        for key in ("dataset", "image_size", "model", "lr", "epochs"):
            assert (
                of_run[key] == json.loads(Path(config["run_dir"], "config.json").read_text())[key]
            )
    assert written["epochs"] == written["val"]["best_epoch"] == 1
    assert json.loads(Path("maps/manifest.json").read_text())["dataset"] == "image_folder"
    (tmp_path / "own").rename(tmp_path / "elsewhere")
    moved = maps | {"run_dir": "moved", "data_dir": str(tmp_path / "elsewhere")}
    exercise_2_3.main(exercise_2_3.config | moved)
    assert json.loads(Path("moved/cam/manifest.json").read_text()) == manifest
    shutil.rmtree(tmp_path / "elsewhere")
    assert load_model(best)[0].classifier.out_features == 2


def test_maps_of_other_pictures_are_those_that_the_network_was_trained_to_see(tmp_path):
    config = trained_on(tmp_path / "own")
    maps = exercise_2_3.config | {"checkpoint": "trained", "wandb_mode": "disabled"}
    results = exercise_2_3.main(maps | {"run_dir": "maps"})
    shutil.copytree(tmp_path / "own", tmp_path / "other")
    for picture in (tmp_path / "other" / "train").rglob("*.png"):
        Image.new("L", (8, 8), 255).save(picture)  # of another mean and deviation
    other = maps | {"data_dir": str(tmp_path / "other")}
    assert exercise_2_3.main(other | {"run_dir": "again"})["test"]["loss"] == pytest.approx(
        results["test"]["loss"], rel=1e-5
    )
    for split in ("train", "test"):
        (tmp_path / "other" / split / "dog").rename(tmp_path / "other" / split / "wolf")
    with pytest.raises(ValueError, match=r"best.pt knows the classes cat, dog; .* has cat, wolf"):
        exercise_2_3.main(other | {"run_dir": "renamed"})
    assert config["dataset"] == "image_folder" and not Path("renamed").exists()


@pytest.mark.parametrize("flag", ["--data_dir", "--data-dir"])
def test_a_data_folder_that_is_named_is_taken_even_where_it_is_the_usual_one(tmp_path, flag):
    trained_on(tmp_path / "own")
    own = exercise_2_3.config, exercise_2_3.presets
    args = ["--checkpoint", "trained", "--run_dir", "maps", "--wandb_mode", "disabled"]
    exercise_2_3.main(parse_config(*own, args))
    Path("data").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no folder .*data/train"):
        exercise_2_3.main(parse_config(*own, [*args, flag, "data", "--run_dir", "others"]))


def test_own_pictures_that_are_gone_are_missed_by_the_name_that_they_were_trained_under(tmp_path):
    trained_on(tmp_path / "own")
    (tmp_path / "own").rename(tmp_path / "elsewhere")
    drawn = exercise_2_3.config | {"checkpoint": "trained", "run_dir": "maps"}
    with pytest.raises(FileNotFoundError, match=r"no folder .*own/train; --data_dir names"):
        exercise_2_3.main(drawn)
    assert not Path("maps").exists()


def test_what_is_passed_over_in_a_class_is_said_once(tmp_path, capsys):
    config = write_pictures(tmp_path / "own", {"train/cat": 10, "train/dog": 10})
    cats = tmp_path / "own" / "train" / "cat"
    for name in ("1.HEIC", "2.HEIC", "notes", ".hidden"):
        (cats / name).touch()
    (cats / "day2").mkdir()
    shutil.copy(cats / "1.png", cats / "one more.JFIF")
    for _ in range(2):
        train, val, test = load_datasets(config)
    assert len(train) + len(val) + len(test) == 21
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{cats}: passed over 2 .HEIC, 1 folders, 1 notes"


def test_a_class_without_a_test_image_is_named(tmp_path, capsys):
    counts = {"train/cat": 20, "train/dog": 20, "test/cat": 3, "test/dog": 1}
    config = write_pictures(tmp_path / "own", counts)
    load_datasets(config)
    assert "no test image" not in capsys.readouterr().out
    load_datasets(config | {"val_fraction": 0.025})
    (line,) = [one for one in capsys.readouterr().out.splitlines() if "no validation" in one]
    assert line.startswith(("no validation image of cat: ", "no validation image of dog: "))


def test_a_folder_of_own_pictures_is_not_downloaded_into(tmp_path):
    config = write_pictures(tmp_path / "own", {"train/cat": 2, "train/dog": 2})
    with pytest.raises(ValueError, match=r"own holds no CIFAR10 but .* --dataset image_folder"):
        load_datasets(config | {"dataset": "cifar10"})


def test_pictures_that_were_moved_and_named_at_the_resume_are_found_by_what_comes_after(tmp_path):
    config = trained_on(tmp_path / "own")
    (tmp_path / "own").rename(tmp_path / "new")
    moved = {"data_dir": str(tmp_path / "new"), "resume": "trained", "epochs": 2}
    save_best = Path("trained/checkpoints/best.pt").read_bytes()
    exercise_1_3.main(config | moved)
    Path("trained/checkpoints/best.pt").write_bytes(save_best)  # as if the first epoch were best
    _, test_set = load_judged(Flags("trained"))
    assert len(test_set) == 12
    exercise_2_3.main(exercise_2_3.config | {"checkpoint": "trained", "run_dir": "maps"})


def test_uneven_classes_are_said_with_what_a_constant_answer_would_reach(tmp_path, capsys):
    counts = {"train/cat": 10, "train/dog": 90, "test/cat": 1, "test/dog": 1}
    train, _, _ = load_datasets(write_pictures(tmp_path / "own", counts))
    cats, dogs = torch.bincount(train.labels).tolist()
    said = capsys.readouterr().out
    assert f"uneven classes: {cats} training images of cat, {dogs} of dog" in said
    assert f"always saying dog would be right for {dogs / (cats + dogs):.0%} of them" in said
    counts = {"train/cat": 50, "train/dog": 50}
    load_datasets(write_pictures(tmp_path / "even", counts))
    assert "uneven" not in capsys.readouterr().out


def test_what_is_not_square_is_squashed_cropped_or_padded(tmp_path):
    stripes = np.zeros((4, 8, 3), np.uint8)
    stripes[:, 2:6] = 255  # the middle square is white, what lies beside it black
    Image.fromarray(stripes).save(tmp_path / "wide.png")
    read = {
        way: read_image(tmp_path / "wide.png", {"image_size": 4, "resize": way})[0] / 255
        for way in ("squash", "crop", "pad")
    }
    assert read["crop"].min() == 1
    assert read["squash"][:, [0, 3]].max() < 0.5 < read["squash"][:, 1:3].min()
    assert read["pad"][[0, 3]].max() == 0 < read["pad"][1:3].max()


def test_images_on_the_disk_are_chosen_in_the_order_asked_for():
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1)
    some = MappedImages(images).subset(torch.tensor([4, 1, 3]))
    assert some[:].flatten().tolist() == [4, 1, 3]
    assert some.subset([2, 0])[:].flatten().tolist() == [3, 4]


@pytest.mark.parametrize(("memory", "kind"), [(400, torch.Tensor), (399, MappedImages)])
def test_images_of_more_than_a_quarter_of_the_memory_are_left_on_the_disk(
    monkeypatch, memory, kind
):
    monkeypatch.setattr(dataset, "memory_bytes", lambda: memory)
    assert isinstance(fit_memory(torch.zeros(25, 1, 2, 2, dtype=torch.uint8)), kind)


def test_images_left_on_the_disk_train_and_judge_as_those_in_memory(tmp_path, monkeypatch):
    counts = {f"{split}/{label}": 20 for split in ("train", "test") for label in "ab"}
    config = write_pictures(tmp_path / "own", counts) | {"rotate": 20.0, "cutout": 2}
    in_memory = load_datasets(config)
    monkeypatch.setattr(dataset, "IN_MEMORY", 0)
    on_disk = load_datasets(config)
    model = build_model(config | {"model": exercise_1_3.config["model"] | {"layers": [4]}})
    for one, other in zip(in_memory, on_disk, strict=True):
        assert isinstance(other.images, MappedImages)
        assert one.images.shape == other.images.shape
        assert one.images.nbytes == other.images.nbytes
        assert torch.equal(one.images, other.images[:])
        dealt = zip(batches(one, config, epoch=3), batches(other, config, epoch=3), strict=True)
        for (images, labels), (others, other_labels) in dealt:
            assert torch.equal(images, others)
            assert torch.equal(labels, other_labels)
        first, second = evaluate(model, one, 7), evaluate(model, other, 7)
        assert torch.equal(first["confusion"], second["confusion"])
        assert first["loss"] == second["loss"]


MEMORY = """
import json, sys
from pathlib import Path
import dataset

def own_memory():
    '''Bytes of this process that no file stands behind.'''
    (line,) = [t for t in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in t]
    return int(line.split()[1]) * 1024

config = json.loads(sys.argv[1])
dataset.load_datasets(config)  # decoded
taken = {}
for share in (0, 0, 1):  # the first takes what the allocator keeps from then on
    dataset.IN_MEMORY = share
    before = own_memory()
    train, _, _ = dataset.load_datasets(config)
    for start in range(0, len(train), 8):
        train.images[start : start + 8].float().sum()
    taken[share] = (own_memory() - before) / train.images.nbytes
print(json.dumps(list(taken.values())))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
def test_images_left_on_the_disk_take_no_memory(tmp_path, forks):
    config = write_pictures(tmp_path / "own", {"train/a": 50, "train/b": 50}, size=512)
    (tmp_path / "memory.py").write_text(MEMORY)
    done = forks.start(tmp_path / "memory.py", json.dumps(config | {"image_size": 512}))
    assert done.wait() == 0, done.err
    on_disk, in_memory = json.loads(done.out.splitlines()[-1])
    assert on_disk < 0.5 < 0.9 < in_memory


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_copied_ahead_are_those_of_a_set_on_the_gpu(tmp_path):
    config = write_pictures(tmp_path / "own", {"train/a": 100, "train/b": 100}) | {"rotate": 20.0}
    train, _, _ = load_datasets(config)
    device, dealt = torch.device("cuda"), []
    for home in (train, train.to(device)):
        dealt.append([(i.sum(0), labels) for i, labels in batches(home, config, 1, device)])
    for (images, labels), (others, other_labels) in zip(*dealt, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)
