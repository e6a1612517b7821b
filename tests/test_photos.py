"""Maps of one's own pictures, whatever they are."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cam
import exercise_1_3
from cache import read_image
from checkpoint import load_model, save_checkpoint
from dataset import deskew
from models import build_model

CLASSES = ["cat", "dog", "<b>bird</b>"]


@pytest.fixture
def checkpoint(tmp_path):
    """A function: the best.pt of an untrained CNN for colour or grey images of 16 pixels."""

    def write(channels=3):
        sizes = {"image_size": 16, "in_channels": channels, "num_classes": 3}
        config = exercise_1_3.config | {"model": {"kind": "cnn", "layers": [4, 6]} | sizes}
        model = build_model(config)
        about = {"classes": CLASSES, "mean": [0.5] * channels, "std": [0.2] * channels}
        about["shape"] = [channels, 16, 16]
        state = {"epoch": 1, "model": model.state_dict(), "config": config, "data": about}
        save_checkpoint(tmp_path / "best.pt", state)
        return str(tmp_path / "best.pt")

    return write


def write_photos(folder):
    """A picture of every kind, red on the left and blue on the right, 40 x 30 pixels."""
    folder.mkdir()
    image = Image.new("RGB", (40, 30), (220, 20, 20))
    image.paste((20, 20, 220), (20, 0, 40, 30))
    image.save(folder / "a.png")
    image.convert("L").save(folder / "grey.png")
    image.convert("RGBA").save(folder / "rgba.webp", lossless=True)
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=100)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown clockwise by 90 degrees
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=exif, quality=100)
    (folder / "broken.jpg").write_bytes(b"not a picture")
    (folder / "notes.txt").write_text("no picture either")
    return folder


def explain(checkpoint, *photos, **options):
    cam.main(cam.Flags(tuple(map(str, photos)), checkpoint, **options))


def test_photos_of_every_kind_are_drawn_and_a_broken_one_is_named(tmp_path, checkpoint, capsys):
    folder = write_photos(tmp_path / "photos")
    explain(checkpoint(), folder, out=str(tmp_path / "out"))
    assert "left out" in (said := capsys.readouterr()).err
    assert "broken.jpg" in said.err
    rows = json.loads((tmp_path / "out" / "manifest.json").read_text())["images"]
    names = [row["path"] for row in rows]
    stems = ("a", "cmyk", "grey", "rgba", "turned")
    assert names == [f"{n:04}_{stem}.png" for n, stem in enumerate(stems)]
    assert all((tmp_path / "out" / row["path"]).is_file() for row in rows)
    assert all(row["true"] is None and row["predicted"] in CLASSES for row in rows)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "0004_turned, image 4, predicted" in page
    assert "<b>bird</b>" not in page


def test_maps_know_their_pictures_and_are_none_when_their_folder_is_looked_at_again(
    tmp_path, checkpoint
):
    folder, known = write_photos(tmp_path / "photos"), checkpoint()
    (folder / ".thumbnails").mkdir()
    for hidden in ("._a.png", ".thumbnails/a.png"):  # macOS and Linux leave such
        (folder / hidden).write_bytes((folder / "rgba.webp").read_bytes())
    for _ in range(2):
        explain(known, folder, out=str(folder / "maps"))
    manifest = json.loads((folder / "maps" / "manifest.json").read_text())
    assert manifest["checkpoint"] == known
    names = [Path(source).name for source in manifest["sources"]]
    assert names == ["a.png", "cmyk.jpg", "grey.png", "rgba.webp", "turned.jpg"]


def test_sixteen_bits_are_read_in_either_order_of_bytes_and_floats_refused(tmp_path):
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    config = {"image_size": 8, "resize": "squash"}
    for order in ("<u2", ">u2"):
        Image.fromarray(values.astype(order)).save(tmp_path / "grey.tif")
        assert (read_image(tmp_path / "grey.tif", config)[0] == values >> 8).all()
    Image.fromarray(values.astype(np.float32) / 65535).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"float\.tif .*save it with 8 or 16 bits"):
        read_image(tmp_path / "float.tif", config)


def test_the_network_sees_the_same_picture_whatever_its_format(tmp_path, checkpoint):
    folder = write_photos(tmp_path / "photos")
    _, config = load_model(checkpoint())
    about = {"classes": CLASSES, "mean": [0.5] * 3, "std": [0.2] * 3, "shape": [3, 16, 16]}
    photos, files = cam.read_photos([folder], config, about)
    named = dict(zip((f.name for f in files), photos.images.int(), strict=True))
    for name in ("rgba.webp", "cmyk.jpg", "turned.jpg"):
        assert (named[name] - named["a.png"]).abs().float().mean() < 6
    assert named["a.png"][0, :, :7].min() > 180  # red on the left


def test_photos_are_normalised_as_the_network_was_trained_and_cameras_names_are_found(tmp_path):
    Image.new("RGB", (16, 16), (255, 0, 51)).save(tmp_path / "DSC1.JPG", quality=100)
    about = {"classes": CLASSES, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.4, 0.2]}
    about["shape"] = [3, 16, 16]
    photos, files = cam.read_photos([tmp_path], {"resize": "squash"}, about)
    assert [file.name for file in files] == ["DSC1.JPG"]
    seen = photos.normalise(photos.images).mean((0, 2, 3)).tolist()
    assert seen == pytest.approx([1.8, -0.5, -0.5], abs=0.05)


def test_a_network_for_grey_images_gets_grey_ones(tmp_path, checkpoint):
    folder = write_photos(tmp_path / "photos")
    explain(checkpoint(channels=1), folder / "a.png", out=str(tmp_path / "out"))
    assert np.load(tmp_path / "out" / "maps.npy").shape == (1, 4, 4)
    about = {"classes": CLASSES, "mean": [0.5], "std": [0.2], "shape": [1, 16, 16]}
    photos, _ = cam.read_photos([folder / "a.png"], {"resize": "squash"}, about)
    assert (photos.images.int() - 87).abs().max() <= 1  # the mean of red's channels, and of blue's


def test_a_network_of_upright_images_gets_upright_ones(tmp_path, checkpoint):
    slash = np.eye(16, dtype=np.uint8)[4:, :12] * 255
    Image.fromarray(slash).resize((16, 16)).save(tmp_path / "slash.png")
    _, config = load_model(checkpoint(channels=1))
    about = {"classes": CLASSES, "mean": [0.5], "std": [0.2], "shape": [1, 16, 16]}
    leaning, _ = cam.read_photos([tmp_path / "slash.png"], config, about)
    upright, _ = cam.read_photos([tmp_path / "slash.png"], config | {"deskew": True}, about)
    assert not torch.equal(upright.images, leaning.images)
    assert torch.equal(upright.images, deskew(leaning.images))


def test_a_link_to_itself_is_named_and_left_out(tmp_path, checkpoint, capsys):
    folder = write_photos(tmp_path / "photos")
    (folder / "loop.png").symlink_to("loop.png")
    explain(checkpoint(), folder, out=str(folder / "out"))
    assert "loop.png" in capsys.readouterr().err
    assert len(np.load(folder / "out" / "maps.npy")) == 5


def test_a_folder_that_cannot_be_written_is_named_with_the_flag(tmp_path, checkpoint, capsys):
    photos = write_photos(tmp_path / "photos")
    with pytest.raises(SystemExit):
        explain(checkpoint(), photos / "a.png", out=str(photos / "a.png" / "maps"))
    assert "a.png/maps cannot be written" in (said := capsys.readouterr().err)
    assert "--out" in said


def test_a_contrast_of_photos_is_drawn(tmp_path, checkpoint):
    folder = write_photos(tmp_path / "photos")
    explain(checkpoint(), folder / "a.png", out=str(tmp_path / "out"), contrast="dog,cat")
    (row,) = json.loads((tmp_path / "out" / "manifest.json").read_text())["images"]
    assert (row["shown"], row["contrast"]) == ("dog", "cat")


def test_where_no_picture_can_be_read_nothing_is_written(tmp_path, checkpoint, capsys):
    folder = write_photos(tmp_path / "photos")
    for wrong in (folder / "broken.jpg", folder / "nowhere.png"):
        with pytest.raises(SystemExit, match="2"):
            explain(checkpoint(), wrong, out=str(tmp_path / "out"))
        assert f"no picture that can be read in {wrong}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_folder_stands_for_its_best_weights_and_no_picture_is_said(
    tmp_path, checkpoint, capsys
):
    Path("run/checkpoints").mkdir(parents=True)
    Path(checkpoint()).rename("run/checkpoints/best.pt")
    explain("run", write_photos(tmp_path / "photos") / "a.png", out="out")
    assert Path("out/index.html").is_file()
    with pytest.raises(SystemExit, match="2"):
        explain("run")
    assert "error: name pictures, or folders of them, after the flags" in capsys.readouterr().err


def test_weights_that_are_not_there_are_named_with_their_place(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    config = exercise_1_3.config | {"model": {"kind": "resnet18", "pretrained": True}}
    with pytest.raises(FileNotFoundError, match=r"resnet18-\w+\.pth is not in .*pretrained"):
        build_model(config)


def test_pretrained_weights_are_taken_from_the_cache_all_but_the_classifier(monkeypatch, tmp_path):
    import torchvision

    published = torchvision.models.resnet18()
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    monkeypatch.setattr(type(weights), "get_state_dict", lambda self: published.state_dict())
    config = exercise_1_3.config | {"model": {"kind": "resnet18", "pretrained": True}}
    model = build_model(config)
    assert torch.equal(model.layers[0].weight, published.conv1.weight)
    assert model.classifier.weight.shape == (10, 512)
    published.fc = model.classifier
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.eval()(images), published.eval()(images))


def test_the_answer_for_every_photo_is_printed(tmp_path, checkpoint, capsys):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    explain(checkpoint(), tmp_path / "a.png", out=str(tmp_path / "maps"))
    said = capsys.readouterr().out
    (row,) = json.loads((tmp_path / "maps" / "manifest.json").read_text())["images"]
    assert f"a.png: {row['predicted']} {row['confidence']:.2f}\n" in said
    assert said.rstrip().endswith("index.html")


def test_maps_are_not_laid_among_the_files_of_a_run(tmp_path, checkpoint, capsys):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text("{}")
    with pytest.raises(SystemExit):
        explain(checkpoint(), tmp_path / "a.png", out=str(tmp_path / "run"))
    assert "has a manifest.json that is not of maps: name a new folder" in capsys.readouterr().err
    assert (tmp_path / "run" / "manifest.json").read_text() == "{}"
    with pytest.raises(SystemExit):  # among the pictures themselves
        explain(checkpoint(), tmp_path / "a.png", out=str(tmp_path))
    assert "that is not of maps" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        explain(checkpoint(), tmp_path / "a.png", out="")
    assert "--out is empty" in capsys.readouterr().err
    assert not (tmp_path / "maps.npy").exists() and not Path("maps.npy").exists()
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "0000_a.png").touch()  # of a call that was stopped while it drew
    for _ in range(2):  # over maps it draws again
        explain(checkpoint(), tmp_path / "a.png", out=str(tmp_path / "maps"))


def test_of_sixteen_bits_the_grey_that_is_transparent_is_black(tmp_path):
    ramp = Image.fromarray((np.arange(256, dtype=np.uint16) * 257).reshape(16, 16))
    ramp.save(tmp_path / "plain.png")
    ramp.save(tmp_path / "transparent.png", transparency=200 * 257)
    config = {"image_size": 16, "resize": "squash"}
    plain, other = (read_image(tmp_path / f"{n}.png", config) for n in ("plain", "transparent"))
    assert plain.mean() == pytest.approx(127.5)
    assert np.array_equal(other, np.where(plain == 200, 0, plain))
