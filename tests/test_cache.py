"""Pictures from files: what comes out is what PIL decodes, whatever happens to the cache."""

import json
import os
import pickle
import signal
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA
from PIL import Image, ImageOps

import cache
import exercise_1_1
import exercise_1_3
import images
from config import complete_config
from dataset import data_sha256, load_datasets


def folder_config(folder, **changes):
    settings = {"dataset": "image_folder", "data_dir": str(folder), "image_size": 12}
    return exercise_1_1.config | settings | changes


def test_images_of(folder, **changes):
    return load_datasets(folder_config(folder, **changes))[2].images


test_images_of.__test__ = False


def decoded_by_pil(folder):
    pixels = [np.asarray(Image.open(path)) for path in sorted(folder.glob("test/*/*.png"))]
    return torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2)


def test_the_cache_holds_what_pil_decodes_and_is_built_once(picture_folder, monkeypatch):
    folder = picture_folder()
    _, _, test_set = load_datasets(folder_config(folder))
    assert torch.equal(test_set.images, decoded_by_pil(folder))
    assert test_set.classes == ["cat", "dog"]
    monkeypatch.setattr(cache, "read_image", None)  # decoding again would fail
    load_datasets(folder_config(folder))


def test_the_cache_is_rebuilt_when_a_picture_changes(picture_folder):
    folder = picture_folder()
    load_datasets(folder_config(folder))
    Image.new("RGB", (12, 12), (1, 2, 3)).save(folder / "test" / "cat" / "0.png")
    assert test_images_of(folder)[0, :, 5, 5].tolist() == [1, 2, 3]


def test_mean_and_std_of_a_folder_are_those_of_its_training_pixels(picture_folder):
    folder = picture_folder()
    train, val, _ = load_datasets(folder_config(folder))
    pixels = torch.cat([train.images, val.images]).double() / 255
    assert train.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert train.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())


def test_a_picture_that_changed_is_decoded_anew_and_the_cache_before_is_gone(picture_folder):
    folder = picture_folder()
    load_datasets(folder_config(folder))
    before = set(folder.glob(".cache/*"))
    path = folder / "test" / "cat" / "1.png"
    content = path.read_bytes()
    other = bytearray((folder / "test" / "cat" / "2.png").read_bytes())
    path.write_bytes(other + bytes(max(0, len(content) - len(other))))  # junk at its end is allowed
    assert path.stat().st_size >= len(content)
    os.utime(path, ns=(1, 1))
    expected = decoded_by_pil(folder)
    assert torch.equal(test_images_of(folder), expected)
    files = set(folder.glob(".cache/*"))
    assert {file.suffix for file in before - files} == {".bin", ".json"}
    assert len(before - files) == 2  # of the test set alone
    load_datasets(folder_config(folder, resize="crop"))  # another kind, which replaces nothing
    assert files < set(folder.glob(".cache/*"))


def test_a_picture_of_another_time_is_another_picture(picture_folder):
    folder = picture_folder()
    paths = sorted(folder.glob("test/*/*.png"))
    before = cache.fingerprint(paths)
    status = paths[3].stat()
    os.utime(paths[3], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert cache.fingerprint(paths) != before


def test_pictures_that_are_cropped_are_not_those_that_were_squashed(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(5):
                picture = Image.fromarray(np.arange(0, 240, 5, dtype=np.uint8).reshape(2, 24))
                picture.save(tmp_path / split / name / f"{number}.png")
    found = [
        load_datasets(folder_config(tmp_path, resize=resize, image_size=4))[2].images
        for resize in ("squash", "crop", "squash")
    ]
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


def start(forks, function, folder):
    """function(folder) in a process of its own, which prints what it returns."""
    script = folder.with_suffix(".py")
    call = f"{function.__name__}(Path({str(folder)!r}))"
    script.write_text(f"from pathlib import Path\nimport test_cache\nprint(test_cache.{call})")
    return forks.start(script)


def decode_slowly(folder):
    """Decode with a block a picture, in half a second."""
    read, count = cache.read_image, []

    def read_slowly(path, config):
        count.append(path)
        time.sleep(0.05)
        return read(path, config)

    cache.read_image, cache.DECODED_BYTES, cache.os.cpu_count = read_slowly, 1, lambda: 1
    load_datasets(folder_config(folder))


def test_a_decoding_that_was_killed_goes_on_where_it_was(picture_folder, monkeypatch, forks):
    folder = picture_folder()
    child = start(forks, decode_slowly, folder)
    while len(progress := list(folder.glob(".cache/*train*.progress.json"))) < 1:
        time.sleep(0.01)
    while json.loads(progress[0].read_text())["next"] < 4:
        time.sleep(0.01)
    child.kill(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    decoded, read = [], cache.read_image
    monkeypatch.setattr(
        cache, "read_image", lambda path, config: decoded.append(path) or read(path, config)
    )
    assert torch.equal(test_images_of(folder), decoded_by_pil(folder))
    assert len(decoded) <= 10 - 4 + 10  # those of train that were left, and test
    assert not list(folder.glob(".cache/*partial*"))


def load_and_sum(folder):
    return int(test_images_of(folder).sum())


def test_two_processes_that_build_the_cache_at_once_both_get_the_pictures(picture_folder, forks):
    folder = picture_folder()
    children = [start(forks, load_and_sum, folder) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0], [child.err for child in children]
    expected = int(decoded_by_pil(folder).sum())
    assert [int(child.out.split()[-1]) for child in children] == [expected, expected]


def swap_train_and_test(files):
    train, test = sorted(files, reverse=True)
    content = train.read_bytes()
    train.write_bytes(test.read_bytes())
    test.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda files: files[0].write_bytes(files[0].read_bytes()[:-1]),
        lambda files: files[0].write_bytes(b""),
        lambda files: [f.with_suffix(".json").write_text('{"mean": [') for f in files],
        lambda files: [f.with_suffix(".json").write_text("[]") for f in files],
        swap_train_and_test,  # a cache of other pictures, of the same size
    ],
    ids=["truncated", "empty", "half its notes", "other notes", "another source"],
)
def test_a_cache_that_is_not_the_one_written_is_rebuilt(picture_folder, damage):
    folder = picture_folder()
    load_datasets(folder_config(folder))
    damage(list(folder.glob(".cache/*.bin")))
    assert torch.equal(test_images_of(folder), decoded_by_pil(folder))


def huge_png():
    """A PNG of a few bytes that says it is 60,000 pixels a side."""

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


def truncated_png(folder):
    return (folder / "test" / "cat" / "1.png").read_bytes()[:-40]


BAD_PICTURES = {
    "truncated": truncated_png,
    "zero bytes": lambda folder: b"",
    "decompression bomb": lambda folder: huge_png(),
    "no picture": lambda folder: b"<html>404 Not Found</html>",
}


@pytest.mark.parametrize("content", BAD_PICTURES.values(), ids=BAD_PICTURES)
def test_a_bad_picture_is_refused_by_name_or_skipped_and_counted(picture_folder, content, capsys):
    folder = picture_folder()
    bad = folder / "test" / "cat" / "2.png"
    expected = decoded_by_pil(folder)
    bad.write_bytes(content(folder))
    with pytest.raises(ValueError, match=r"cat/2\.png"):
        load_datasets(folder_config(folder))
    for _ in range(2):  # decoded, then from the cache
        _, _, test_set = load_datasets(folder_config(folder, on_bad_image="skip"))
        said = capsys.readouterr().err
        assert "skipped 1 of 10 test pictures" in said
        assert str(bad) in said
        assert torch.equal(test_set.images, torch.cat([expected[:2], expected[3:]]))
        assert test_set.labels.tolist() == [0] * 4 + [1] * 5
    with pytest.raises(ValueError, match=r"cat/2\.png"):  # the cache does not hide it
        load_datasets(folder_config(folder))


def test_a_class_whose_pictures_are_all_bad_is_an_error_even_when_they_are_skipped(picture_folder):
    folder = picture_folder()
    for path in folder.glob("train/dog/*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="no picture of dog in train"):
        load_datasets(folder_config(folder, on_bad_image="skip"))


def test_where_no_picture_can_be_read_nothing_stays_behind(picture_folder):
    folder = picture_folder()
    for path in folder.glob("train/*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="no picture can be read; the first: "):
        load_datasets(folder_config(folder, on_bad_image="skip"))
    assert not list(folder.glob(".cache/*train*"))


def test_a_link_that_leads_out_of_the_folder_is_refused_and_one_inside_is_followed(
    picture_folder, tmp_path
):
    folder = picture_folder()
    outside = tmp_path / "secret.png"
    Image.new("RGB", (12, 12)).save(outside)
    inside = folder / "test" / "cat" / "5.png"
    inside.symlink_to(folder / "test" / "cat" / "1.png")
    assert len(test_images_of(folder)) == 11
    inside.unlink()
    inside.symlink_to(outside)
    with pytest.raises(ValueError, match=r"5\.png is a link to .*secret\.png"):
        load_datasets(folder_config(folder))
    inside.unlink()
    (folder / "test" / "bird").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="bird is a link"):
        load_datasets(folder_config(folder))


def test_a_link_to_itself_is_refused_by_name_or_skipped(picture_folder):
    folder = picture_folder()
    loop = folder / "test" / "cat" / "9.png"
    loop.symlink_to("9.png")
    with pytest.raises(ValueError, match=r"cat/9\.png"):
        load_datasets(folder_config(folder))
    assert len(load_datasets(folder_config(folder, on_bad_image="skip"))[2]) == 10
    loop.unlink()
    (folder / "test" / "loop").symlink_to("loop")
    with pytest.raises(OSError, match=r"Too many levels of symbolic links.*loop"):
        load_datasets(folder_config(folder, on_bad_image="skip"))


def test_one_class_is_refused(picture_folder):
    folder = picture_folder()
    for split in ("train", "test"):
        for path in (folder / split / "dog").iterdir():
            path.unlink()
        (folder / split / "dog").rmdir()
    with pytest.raises(ValueError, match="one class folder, cat"):
        load_datasets(folder_config(folder))


def test_a_disk_too_small_for_the_cache_is_named_before_anything_is_decoded(picture_folder):
    folder = picture_folder()
    with pytest.raises(ValueError, match=r"image_size 200000 .* MiB are free.*--image_size"):
        load_datasets(folder_config(folder, image_size=200_000))
    assert not list(folder.glob(".cache/*partial*"))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_read_without_a_cache(picture_folder):
    folder = picture_folder()
    folder.chmod(0o500)
    assert torch.equal(test_images_of(folder), decoded_by_pil(folder))


def test_without_a_cache_the_pictures_are_the_same(picture_folder, monkeypatch):
    folder = picture_folder()
    monkeypatch.setattr(cache.os, "access", lambda path, mode: False)
    assert torch.equal(test_images_of(folder), decoded_by_pil(folder))
    assert not (folder / ".cache").exists()


def idx(values, *sizes):
    head = bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4) for size in sizes)
    return head + bytes(values)


def test_an_idx_file_of_another_data_set_is_not_taken_for_mnist(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in images.MNIST_SHA256:
        content = idx([7] * 784, 1, 28, 28) if "images" in name else idx([7], 1)
        (raw / name).write_bytes(content)
    with pytest.raises(ValueError, match="is not MNIST's file of that name"):
        load_datasets(exercise_1_1.config | {"data_dir": str(tmp_path)})


@pytest.mark.real_data
def test_one_flipped_bit_of_mnist_is_noticed(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in images.MNIST_SHA256:
        (raw / name).symlink_to(DATA / "MNIST" / "raw" / name)
    content = bytearray((raw / "t10k-labels-idx1-ubyte").read_bytes())
    content[5000] ^= 1
    (raw / "t10k-labels-idx1-ubyte").unlink()
    (raw / "t10k-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte"):
        load_datasets(exercise_1_1.config | {"data_dir": str(tmp_path)})


def test_a_damaged_cifar10_archive_is_named(tmp_path):
    archive = tmp_path / "cifar-10-batches-py"
    archive.mkdir()
    (archive / "data_batch_1").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"cifar-10-batches-py is damaged"):
        load_datasets(exercise_1_1.config | {"dataset": "cifar10", "data_dir": str(tmp_path)})


def test_the_archive_of_cifar10_and_its_pictures_in_folders_are_the_same_data(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    draw = np.random.default_rng(0)
    classes = [f"class {letter}" for letter in "abcdefghij"]
    batches = tmp_path / "archive" / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for batch in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        pixels = draw.integers(0, 256, (20, 3, 32, 32), np.uint8)
        labels = draw.permutation(np.arange(20) % 10)
        names = [f"{draw.integers(10**9)}_s_{k:06}.png" for k in range(20)]
        content = {"data": pixels.reshape(20, -1), "labels": labels.tolist(), "filenames": names}
        (batches / batch).write_bytes(pickle.dumps(content))
        split = "test" if batch == "test_batch" else "train"
        for picture, label, name in zip(pixels, labels, names, strict=True):
            place = tmp_path / "folders" / "cifar10" / split / classes[label] / name
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.transpose(1, 2, 0)).save(place)
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}))
    config = complete_config(exercise_1_3.config | {"run_dir": "unused"})
    archived, apart = (
        load_datasets(config | {"data_dir": str(tmp_path / name)})
        for name in ("archive", "folders")
    )
    for ours, theirs in zip(archived, apart, strict=True):
        assert torch.equal(ours.images, theirs.images) and torch.equal(ours.labels, theirs.labels)
        assert (ours.classes, ours.mean, ours.std) == (theirs.classes, theirs.mean, theirs.std)
    assert data_sha256(archived[0]) == data_sha256(apart[0])


def test_file_names_of_every_kind_are_read(picture_folder):
    folder = picture_folder()
    source = Path(folder / "test" / "cat" / "1.png")
    for name in ("ü 😀.png", 'quote".png', "<b>.png", "x" * 250 + ".png", "UPPER.PNG"):
        (folder / "test" / "cat" / name).write_bytes(source.read_bytes())
    assert len(test_images_of(folder)) == 15


def test_whatever_a_decoder_raises_is_a_picture_that_cannot_be_read(picture_folder, monkeypatch):
    folder = picture_folder()
    bad, transpose = folder / "train" / "dog" / "1.png", cache.ImageOps.exif_transpose

    def damaged_exif(image):
        if Path(image.filename) == bad:
            raise struct.error("unpack requires a buffer of 4 bytes")
        return transpose(image)

    monkeypatch.setattr(cache.ImageOps, "exif_transpose", damaged_exif)
    with pytest.raises(ValueError, match=r"dog/1\.png is not a picture .*buffer of 4 bytes"):
        load_datasets(folder_config(folder))
    assert len(load_datasets(folder_config(folder, on_bad_image="skip"))[1]) == 1


def test_a_link_to_nothing_is_a_picture_that_cannot_be_read(picture_folder):
    folder = picture_folder()
    (folder / "train" / "cat" / "nothing.png").symlink_to("gone.png")
    with pytest.raises(ValueError, match=r"nothing\.png is not a picture"):
        load_datasets(folder_config(folder))
    assert len(load_datasets(folder_config(folder, on_bad_image="skip"))[2]) == 10


def test_a_decoding_goes_on_where_the_disk_has_room_for_the_rest_alone(picture_folder, monkeypatch):
    folder = picture_folder()
    read, paths = cache.read_image, sorted(folder.glob("train/*/*.png"))

    def stopped(path, config):
        if paths.index(path) >= 6:
            raise KeyboardInterrupt
        return read(path, config)

    monkeypatch.setattr(cache, "DECODED_BYTES", 1)  # blocks of two pictures
    monkeypatch.setattr(cache.os, "cpu_count", lambda: 2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cache, "read_image", stopped)
        load_datasets(folder_config(folder))
    usage = cache.shutil.disk_usage(folder)
    few = 4 * 3 * 12**2  # bytes of the four that are left
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage._replace(free=few))
    images, *_ = cache.read_cached(paths, "train", folder_config(folder))
    assert len(images) == 10


@pytest.mark.parametrize("size", [(200, 1), (1, 200), (40, 30), (31, 47), (24, 24), (7, 5)])
def test_a_border_leaves_the_whole_picture_however_long_it_is(tmp_path, size):
    picture = Image.new("RGB", size, (200, 0, 0))
    picture.save(tmp_path / "a.png")
    seen = cache.read_image(tmp_path / "a.png", {"image_size": 24, "resize": "pad"})
    assert seen[0].max() == 200
    if max(size) < 200:
        theirs = ImageOps.pad(picture, (24, 24), Image.Resampling.BILINEAR)
        assert np.array_equal(seen, np.asarray(theirs).transpose(2, 0, 1))


def test_mean_and_std_are_computed_where_they_cannot_be_kept(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    (tmp_path / ".cache").write_text("a file in the place of the folder")
    config = {"data_dir": str(tmp_path), "dataset": "mnist"}
    assert cache.remembered_statistics([], images, config) == cache.channel_statistics(images)
