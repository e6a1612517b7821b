"""The study of trust as a whole, on pictures of a few pixels."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_measures import BOX

from dataset import ImageDataset
from models import CNN
from studies import objects, trust
from studies.objects import SIX
from studies.trust_table import answers, table_of

CLASSES = ["tench", "English springer", "cassette player", "chain saw", "church", "French horn"]
CLASSES += ["garbage truck", "gas pump", "golf ball", "parachute"]
SIDE = 16


def noise_images(count):
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % 10
    labels[list(SIX)] = torch.tensor([5, 4, 4, 9, 9, 9])
    return ImageDataset(pixels, labels, CLASSES, [0.5] * 3, [0.25] * 3)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """What the command writes for a CNN of random weights that has half of the parachutes right."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = CNN([4, {"channels": 6, "pool": 1}], image_size=SIDE, num_classes=10).eval()
    test_set = noise_images(max(SIX) + 1)
    with torch.no_grad():  # as many parachutes as others, so that a little noise may decide
        logits = network(test_set.normalise(test_set.images))
        network.classifier.bias[9] += (logits[:, :9].amax(1) - logits[:, 9]).median()
    boxes = dict.fromkeys((*SIX, *range(40)), BOX)
    config = {"dataset": "imagenette", "hold_out_boxed": True}
    parts = {
        "find_checkpoint": lambda name: name,
        "load_trained": lambda path: (network, {"config": config, "epoch": 3}),
        "load_boxes": lambda *_: dict(boxes),
        "load_splits": lambda config: [test_set, test_set],
    }
    for name, part in parts.items():
        monkeypatch.setattr(trust, name, part)
    monkeypatch.setattr(objects, "NOISES", 8)
    trust.main(trust.Flags("run", out=str(tmp_path)))
    return tmp_path


@pytest.mark.slow
@pytest.mark.figures
def test_the_study_writes_its_numbers_tables_and_figures(study):
    found = json.loads((study / "trust.json").read_text())
    assert (found["checkpoint"], found["epoch"]) == ("run", 3)
    assert (study / "trust.txt").read_text() == table_of(found) + "\n"
    assert all(isinstance(answer, str) for answer in answers(found).values())
    parachutes = found["parachutes"]["pictures"]
    counted = [row["noise"] for row in parachutes if row["counts"]]
    kept = found["unseen"]["kept"]["object removed, noise"]["parachute"]
    assert kept["count"] == len(counted) > 2  # one set of draws for the share and its pictures
    assert 0 < kept["mean"] < 1
    assert kept["mean"] == pytest.approx(np.mean(counted))
    shares = found["parachutes"]["noise"].values()
    assert sum(share["count"] for share in shares) == len(counted)
    for name in ("outside", "kept", "emptied", "colours", "curves", "mosaics", "six"):
        picture = np.asarray(Image.open(study / f"{name}.png").convert("L"))
        assert picture.std() > 5, name  # not blank
    for folder in ("maps", "church-against-parachute"):
        assert len(list((study / folder).glob("*-*.png"))) == len(SIX)
