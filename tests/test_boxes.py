"""Boxes: where they lie, and the share of a map that they hold."""

import pytest
import torch
from conftest import DATA
from PIL import Image

import dataset
import exercise_1_3
import exercise_2_3
import rules
from boxes import FILE, PICTURES, box_mask, energy_inside, load_boxes
from cache import read_image
from cam import cam, check_cam
from models import CNN

HEAD = "split,index,path,width,height,x0,y0,x1,y1"


def write(folder, *rows):
    (folder / FILE).write_text("\n".join([HEAD, *rows]) + "\n")


def draw(folder, split, names, size=(20, 10)):
    """Black pictures c/<name>.png of a split."""
    where = folder / PICTURES / split / "c"
    where.mkdir(parents=True)
    for name in names:
        Image.new("RGB", size).save(where / f"{name}.png")
    return where


def test_boxes_are_shares_of_the_picture_grouped_by_image(tmp_path):
    draw(tmp_path, "val", "abcd")
    write(
        tmp_path,
        "val,3,c/d.png,200,100,50,10,100,60",
        "val,3,c/d.png,200,100,0,0,200,100",
        "train,3,c/a.png,10,10,0,0,5,5",
    )
    boxes = load_boxes(tmp_path, "val")
    assert boxes.keys() == {3}
    assert torch.equal(boxes[3], torch.tensor([[0.25, 0.1, 0.5, 0.6], [0, 0, 1, 1]]))
    assert load_boxes(tmp_path / "nowhere", "val") == {}


def test_boxes_of_which_none_is_of_a_picture_that_is_there_are_said_to_be_none(tmp_path, capsys):
    draw(tmp_path, "val", "ab")
    write(tmp_path, "val,3,d/a.png,10,10,0,0,5,5", "val,3,c/b.png,10,10,5,5,0,0")
    assert load_boxes(tmp_path, "val") == {}
    assert "none of its 2 rows of val has a box of a picture in" in capsys.readouterr().err


def test_boxes_stay_with_their_pictures_when_another_is_taken_away(tmp_path):
    folder = draw(tmp_path, "val", "abcd")
    write(tmp_path, *(f"val,{k},c/{name}.png,10,10,0,0,{k},5" for k, name in ((1, "b"), (3, "d"))))
    (folder / "a.png").unlink()
    boxes = load_boxes(tmp_path, "val")
    assert {place: round(float(found[0, 2]), 3) for place, found in boxes.items()} == {
        0: 0.1,
        2: 0.3,
    }
    (folder / "b.png").unlink()
    assert load_boxes(tmp_path, "val").keys() == {1}


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (60, 60)])  # the last is squashed
def test_boxes_follow_a_crop_and_a_border_of_the_picture_as_it_lies_there(tmp_path, size):
    rows = ("val,0,c/a.png,200,100,50,10,150,60", "val,1,c/b.png,200,100,0,0,20,10")
    write(tmp_path, *rows)
    picture = Image.new("L", size)
    width, height = size
    picture.paste(255, (width // 4, height // 10, 3 * width // 4, 3 * height // 5))
    file = draw(tmp_path, "val", "ab", size) / "a.png"
    picture.save(file)
    for resize in ("squash", "crop", "pad"):
        boxes = load_boxes(tmp_path, "val", resize)
        seen = read_image(file, {"image_size": 40, "resize": resize})[0] > 127
        assert torch.equal(torch.from_numpy(seen), box_mask(boxes[0], 40, 40)), resize
        assert (1 in boxes) == (resize != "crop" or size == (60, 60))  # else the crop leaves it out


def test_a_damaged_file_is_named(tmp_path):
    draw(tmp_path, "val", "a")
    write(tmp_path, "val,0,c/a.png,200,many,50,10,100,60")
    with pytest.raises(ValueError, match=FILE):
        load_boxes(tmp_path, "val")


def test_a_mask_is_the_union_of_its_boxes():
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 0.5, 1.0]])
    expected = torch.zeros(8, 4, dtype=torch.bool)
    expected[:4, :2] = True
    expected[2:, 1:2] = True
    assert torch.equal(box_mask(boxes, 8, 4), expected)


def test_energy_inside_is_the_area_for_an_even_map_and_ignores_evidence_against():
    mask = box_mask(torch.tensor([[0.0, 0.0, 0.5, 0.5]]), 8, 8)[None]
    even = torch.ones(1, 8, 8)
    assert energy_inside(even, mask).item() == pytest.approx(0.25)
    corner = torch.where(mask, 2.0, -5.0)
    assert energy_inside(corner, mask).item() == 1
    assert energy_inside(-even, mask).isnan().all()


@pytest.mark.real_data
@pytest.mark.skipif(not (DATA / FILE).is_file(), reason="the boxes are not there")
def test_500_images_are_boxed_and_the_six_of_the_reference_among_them():
    val, train = load_boxes(DATA, "val"), load_boxes(DATA, "train")
    assert (len(val), len(train)) == (134, 366)
    assert {1936, 1526, 1527, 3535, 3536, 3537} <= val.keys()
    assert box_mask(val[3536], 128, 128).float().mean().item() == pytest.approx(0.026, abs=0.002)


def test_boxed_training_images_can_be_held_out(tmp_path, monkeypatch):
    draw(tmp_path, "train", range(10, 50))
    rows = (f"train,{place},c/{place + 10}.png,10,10,0,0,5,5" for place in range(0, 40, 4))
    write(tmp_path, *rows)
    images = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(-1, 3, 8, 8)
    split = images, torch.arange(40) % 2
    loaded = {"train": split, "test": split}, ["a", "b"], [0.5] * 3, [0.2] * 3
    monkeypatch.setitem(dataset.LOADERS, "imagenette", lambda config: loaded)
    monkeypatch.setitem(rules.DATASETS, "imagenette", ((3, 8, 8), 2))
    changes = {"dataset": "imagenette", "data_dir": str(tmp_path)}
    for hold_out, left in ((False, 40), (True, 30)):
        changes |= {"hold_out_boxed": hold_out}
        train_set, val_set, _ = dataset.load_datasets(exercise_1_3.config | changes)
        seen = torch.cat([train_set.images, val_set.images])[:, 0, 0, 0].tolist()
        assert len(seen) == left
        assert len(val_set) == 4
        assert hold_out != any(index % 4 == 0 for index in seen)


@pytest.mark.parametrize(
    ("resize", "on_bad_image", "area"),
    [("squash", "error", 0.25), ("crop", "error", 0.5), ("squash", "skip", None)],
)
def test_a_map_has_the_box_of_its_picture_as_cropped_unless_skipped_ones_may_have_shifted_it(
    tmp_path, resize, on_bad_image, area
):
    write(tmp_path, "val,1,c/b.png,20,10,5,0,10,10")
    draw(tmp_path, "val", "ab")
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    test_set = dataset.ImageDataset(
        images, torch.arange(2), ["a", "b"], [0.5] * 3, [0.2] * 3, "imagenette"
    )
    config = exercise_2_3.config | {"data_dir": str(tmp_path), "on_bad_image": on_bad_image}
    config |= {"run_dir": str(tmp_path / "run"), "resize": resize, "seed": 0}
    rows = cam(CNN([4], image_size=8, num_classes=2), test_set, config)
    assert [row["box_area"] for row in rows] == [None, area]


def test_a_damaged_file_of_boxes_ends_a_run_before_its_training(tmp_path):
    draw(tmp_path, "val", "ab")
    write(tmp_path, "val,1,c/b.png,20,ten,5,0,10,10")
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    about = ["a", "b"], [0.5] * 3, [0.2] * 3, "imagenette"
    test_set = dataset.ImageDataset(images, torch.arange(2), *about)
    config = exercise_2_3.config | {"data_dir": str(tmp_path), "on_bad_image": "error", "seed": 0}
    with pytest.raises(ValueError, match=FILE):
        check_cam(test_set, config | {"resize": "squash"})  # which comes before it
