"""Boxes: where they lie, and the share of a map that they hold."""

import pytest
import torch
from conftest import DATA

from boxes import FILE, box_mask, energy_inside, load_boxes

HEAD = "split,index,path,width,height,x0,y0,x1,y1"


def write(folder, *rows):
    (folder / FILE).write_text("\n".join([HEAD, *rows]) + "\n")


def test_boxes_are_shares_of_the_picture_grouped_by_image(tmp_path):
    write(
        tmp_path,
        "val,3,a,200,100,50,10,100,60",
        "val,3,a,200,100,0,0,200,100",
        "train,3,b,10,10,0,0,5,5",
    )
    boxes = load_boxes(tmp_path, "val")
    assert boxes.keys() == {3}
    assert torch.equal(boxes[3], torch.tensor([[0.25, 0.1, 0.5, 0.6], [0, 0, 1, 1]]))
    assert load_boxes(tmp_path / "nowhere", "val") == {}


def test_a_damaged_file_is_named(tmp_path):
    write(tmp_path, "val,3,a,200,many,50,10,100,60")
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
