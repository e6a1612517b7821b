"""Class activation maps (Zhou et al. 2016) of networks whose head is average pooling and a Linear.

    python cam.py --checkpoint runs/exercise_1_3/... photo.jpg more.png folder

draws maps of your own pictures with a trained network. Axis letters: N images, C channels, H x W
pixels, K classes, h x w the cells of the last map.
"""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path

import torch
import tyro
from torch.nn import functional as F

from boxes import load_boxes
from cache import read_image
from cam_pictures import save_cam_visualization
from checkpoint import find_checkpoint, load_trained
from checks import first_line
from config import defaults
from dataset import ImageDataset, deskew, make_generator, to_grey
from devices import choose_device, freed_memory_kept
from distributed import rank, shared
from exits import exit_cleanly, read_flags
from gallery import draw_gallery, folder_name
from images import SUFFIXES
from models import CNN, ResNet18, evaluating, fold_norms, map_cells
from rules import CAM
from upsampling import cell_centres

__all__ = [
    "ClassActivation",
    "activate",
    "cam",
    "generate_class_activation_map",
    "save_cam_visualization",
]


@dataclass(frozen=True)
class ClassActivation:
    """Maps of N images, one each.

    `maps` (N, h, w) are signed and in logit units: the mean of a map plus its bias (N,) is its
    total (N,). That is the logit of its class, or how far it lies above the logit of the class
    `against` (N,), or above the mean logit of a centred map. `classes` (N,), `logits` (N, K),
    `confidence` (N,): the probability of the class. `centres`: where the rows (h,) and columns (w,)
    of the cells have their centres in the image, as shares of it.
    """

    maps: torch.Tensor
    classes: torch.Tensor
    logits: torch.Tensor
    confidence: torch.Tensor
    biases: torch.Tensor
    totals: torch.Tensor
    against: torch.Tensor | None = None
    centres: tuple[torch.Tensor, torch.Tensor] | None = None

    def __getitem__(self, index):
        """The activation of one image, or of a slice, N kept as the first axis."""
        if isinstance(index, int) and not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")  # also ends a loop over them
        rows = slice(index, index + 1 or None) if isinstance(index, int) else index
        return self.with_columns(lambda column: column[rows])

    def __len__(self):
        return len(self.maps)

    def columns(self):
        """{name: tensor} of what has a row an image."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}

    def with_columns(self, change):
        return replace(self, **{name: change(value) for name, value in self.columns().items()})

    def cpu(self):
        return self.with_columns(torch.Tensor.cpu)

    def completeness_error(self):
        """(N,) |mean(map) + bias - total|, as a share of the largest logit of the image."""
        error = (self.maps.mean((1, 2)) + self.biases - self.totals).abs()
        return error / self.logits.abs().amax(1)


@torch.no_grad()
def generate_class_activation_map(
    model: CNN | ResNet18,
    images: torch.Tensor,
    classes: int | Sequence[int] | torch.Tensor | None = None,
    contrast: tuple[int, int] | None = None,
    centred: bool = False,
) -> ClassActivation:
    """The ClassActivation of normalised images (N, C, H, W), in closed form.

    `classes` is one class for all, a sequence of N, or None for the predicted ones. The map of
    class c is sum_k w_ck A_k over the features A that enter the average pooling. `contrast=(c, d)`
    answers "why c, not d?" by the difference of the two maps. `centred=True` takes away the mean
    map of all classes, which changes no probability. Runs in eval mode on the model's device and
    leaves the model as it was. Raises ValueError for an unknown class, for classes beside a
    contrast, and for a network without maps.
    """
    if not hasattr(model, "features"):
        raise ValueError(
            f"a {type(model).__name__} has no map to show; class activation needs a CNN"
        )
    weight, bias = model.classifier.weight, model.classifier.bias
    with evaluating(model):
        features = model.features(images.to(weight.device))
    logits = model.classifier(features.mean((2, 3)))
    against = None
    if contrast is not None:
        if classes is not None:
            raise ValueError(f"contrast {contrast} names its own class: leave out the classes")
        classes = contrast[0]
        against = one_each(contrast[1], logits)
    shown = logits.argmax(1) if classes is None else one_each(classes, logits)
    mix = F.one_hot(shown, len(weight)).to(weight)  # (N, K): the map is a sum of class maps
    if against is not None:
        mix = mix - F.one_hot(against, len(weight))
    elif centred:
        mix = mix - 1 / len(weight)
    maps = torch.einsum("nc,nchw->nhw", mix @ weight, features)
    centres = cell_centres(model, maps.shape[1:], images.shape[2:])
    confidence = logits.softmax(1).gather(1, shown[:, None])[:, 0]
    totals = (mix * logits).sum(1)
    return ClassActivation(maps, shown, logits, confidence, mix @ bias, totals, against, centres)


def one_each(classes, logits):
    """One class (N,) for every row of logits (N, K); ValueError for one that is not there, and
    where there are not as many as rows."""
    count, num_classes = logits.shape
    classes = torch.as_tensor(classes, device=logits.device)
    if classes.ndim and classes.shape != (count,):
        raise ValueError(
            f"classes must be one, or one of each of {count} images, got {classes.tolist()}"
        )
    classes = classes.expand(count)
    if count and not 0 <= classes.min() <= classes.max() < num_classes:
        raise ValueError(f"classes must be 0 to {num_classes - 1}, got {classes.tolist()}")
    return classes


def activate(model, dataset, indices, batch_size=None, **options):
    """The ClassActivation of `indices` of a data set, computed in batches, on the CPU.

    `options` are those of generate_class_activation_map; they hold for every batch alike, so that
    `classes` is one class for all images, or None. Several processes share the batches.
    """
    model = fold_norms(model).to(memory_format=torch.channels_last)
    on_cpu = next(model.parameters()).device.type == "cpu"
    batch_size = batch_size or (8 if on_cpu else 256)  # 8 stay in a CPU's cache: 1.3 times as fast

    def explain(start):
        images = dataset.normalise(dataset.images[indices[start : start + batch_size]])
        return generate_class_activation_map(model, images, **options).cpu()

    with freed_memory_kept():
        parts = shared(explain, range(0, len(indices), batch_size))
    columns = [part.columns() for part in parts]
    joined = {name: torch.cat([column[name] for column in columns]) for name in columns[0]}
    return replace(parts[0], **joined)


def cam(model: CNN | ResNet18, dataset: ImageDataset, config: dict) -> list[dict]:
    """Draw a few images of every class of `dataset`, or those that config["cam"]["indices"] names.

    Writes run_dir/cam/<class>/sample_<k>_idx_<i>.png, the raw maps as maps.npy (n, h, w), a row a
    picture in manifest.json, and index.html; returns these rows. All pictures of a call share one
    colour scale. Where the boxes of the objects are known, the rows say what share of the positive
    evidence lies outside. config["cam"]["contrast"], "church,parachute" say, shows why the one and
    not the other. Several processes share the work. Raises ValueError where run_dir is not named,
    and for an image, a key or a class of the contrast that is not there.
    """
    if config["run_dir"] == "auto":
        raise ValueError("run_dir is auto, which names a folder in a run only: name one for cam")
    check_cam(dataset, config)
    indices = choose_images(dataset, config)
    contrast = find_contrast(config["cam"]["contrast"], dataset.classes)
    activation = activate(model, dataset, indices, contrast=contrast)
    boxes = find_boxes(dataset, config)
    paths: list[str] = []
    drawn_of_class: dict[int, int] = {}
    for index in indices:
        label = int(dataset.labels[index])
        number = drawn_of_class[label] = drawn_of_class.get(label, -1) + 1
        paths.append(f"{folder_name(dataset.classes[label])}/sample_{number}_idx_{index}")
    folder = Path(config["run_dir"]) / "cam"
    return draw_gallery(folder, dataset, indices, activation, paths, boxes, config["cam"]["grid"])


def find_boxes(dataset, config):
    """The boxes of the test images, by their place, which pictures that are skipped would shift."""
    boxed = dataset.name == "imagenette" and config["on_bad_image"] == "error"
    return load_boxes(config["data_dir"], "val", config["resize"]) if boxed else {}


def check_maps(model, source, shape):
    """Raise ValueError where the network has no maps of images (C, H, W); say so where they have a
    single cell."""
    cells = map_cells(model, shape)
    if not cells:
        raise ValueError(f"--checkpoint {source} is of an MLP, which has no maps")
    if cells == 1 and rank() == 0:
        print(
            f"the maps of {source} have one cell: they cannot show where; a CNN that is trained "
            f'with "min_map": 4 in its model keeps 4 x 4',
            file=sys.stderr,
        )


def find_contrast(names, classes):
    """The two classes that "church,parachute" names, or None for "none"."""
    if names == "none":
        return None
    parts = names.split(",")  # a class may have commas in its name
    splits = (map(",".join, (parts[:k], parts[k:])) for k in range(1, len(parts)))
    pairs = ([name.strip() for name in split] for split in splits)
    pair = next((p for p in pairs if len(set(p)) == 2 and set(p) <= set(classes)), None)
    if not pair:
        raise ValueError(
            f"cam.contrast must be two different classes, like {classes[0]},{classes[1]}, got "
            f"{names!r}; known: {', '.join(classes)}"
        )
    return classes.index(pair[0]), classes.index(pair[1])


def check_cam(dataset, config):
    """Raise ValueError where config["cam"] lacks a key, or names an image or a class that is not
    there, and where the file of the boxes is damaged."""
    config = defaults | config
    if missing := sorted(CAM.keys() - config.get("cam", {}).keys()):
        raise ValueError(
            f'cam.{missing[0]} is missing: the config says what is drawn, by "cam": {{"per_class": '
            f'3, "indices": [], "contrast": "none", "grid": False}}, say'
        )
    find_contrast(config["cam"]["contrast"], dataset.classes)
    find_boxes(dataset, config)
    for index in config["cam"]["indices"]:
        if not 0 <= index < len(dataset):
            raise ValueError(
                f"cam.indices: no image {index}; {dataset.name} has test images 0 to "
                f"{len(dataset) - 1}"
            )


def choose_images(dataset, config):
    """Indices: the named ones, or config["cam"]["per_class"] of every class, drawn by the seed; 0
    takes all."""
    named, per_class = config["cam"]["indices"], config["cam"]["per_class"]
    if named:
        return list(named)
    chosen = []
    for label in range(len(dataset.classes)):
        members = torch.where(dataset.labels == label)[0]
        generator = make_generator(config["seed"], "cam", label)
        order = torch.randperm(len(members), generator=generator)
        chosen += members[order[: per_class or len(members)]].sort()[0].tolist()
    return chosen


def real(path):
    """Where a path leads; unlike Path.resolve it does not raise where links go in a circle."""
    return Path(os.path.realpath(path))


def read_photos(paths, config, data, out=None):
    """(ImageDataset without labels, the paths it holds) of picture files and folders of them.

    `config` and `data` are those of the checkpoint: the size, classes, mean and std that its
    network was trained with. A file that cannot be read is named on stderr and left out. Hidden
    ones in a folder, and maps in `out`, are no pictures to explain. Raises ValueError where none
    can be read.
    """
    files = []
    for path in map(Path, paths):
        found = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in SUFFIXES
            if not any(part[0] == "." for part in file.relative_to(path).parts)
            if out is None or real(out) not in real(file).parents
        )
        files += found if path.is_dir() else [path]
    channels, _, size = data["shape"]
    pixels, kept = [], []
    for file in files:
        try:
            photo = torch.from_numpy(read_image(file, config | {"image_size": size}))
        except ValueError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        photo = to_grey(photo[None])[0] if channels == 1 else photo
        pixels.append(deskew(photo[None])[0] if config.get("deskew") else photo)
        kept.append(file)
    if not kept:
        named = f"no picture that can be read in {', '.join(map(str, paths))}"
        raise ValueError(named if paths else "name pictures, or folders of them, after the flags")
    unlabelled = torch.full((len(kept),), -1)
    columns = {key: data[key] for key in ("classes", "mean", "std")}
    return ImageDataset(torch.stack(pixels), unlabelled, **columns, name="photos"), kept


TOLD = 20  # answers that are printed, too


@dataclass
class Flags:
    photos: tyro.conf.Positional[tuple[str, ...]]
    """pictures, and folders of them"""
    checkpoint: str
    """a run folder, or a best.pt: the network that looks at them"""
    out: str = "auto"
    """the folder to write; else runs/cam/<time>"""
    contrast: str = "none"
    """two classes, "church,parachute": why the one and not the other"""
    device: str = "auto"
    """cuda when available, then mps, then cpu"""
    grid: bool = False
    """show the cells of the map"""


def not_of_maps(folder):
    """Names in a folder that has no maps, nor those that a call drew before it was stopped."""
    if not folder.is_dir() or (folder / "maps.npy").is_file():
        return []
    return sorted(p.name for p in folder.iterdir() if not re.match(r"\d{4}_", p.name))


@exit_cleanly
def main(flags):
    path = find_checkpoint(flags.checkpoint)
    model, state = load_trained(path)
    check_maps(model, path, state["data"]["shape"])
    model.to(choose_device(flags.device))
    out = Path(flags.out).expanduser()
    if flags.out == "auto":
        out = Path("runs") / "cam" / datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    photos, files = read_photos(flags.photos, state["config"], state["data"], out)
    if not flags.out.strip():
        raise ValueError("--out is empty: name a folder, or leave it out")
    if others := not_of_maps(out):
        raise ValueError(f"--out {out} has a {others[0]} that is not of maps: name a new folder")
    contrast = find_contrast(flags.contrast, photos.classes)
    indices = list(range(len(files)))
    activation = activate(model, photos, indices, contrast=contrast)
    paths = [f"{number:04}_{folder_name(file.stem)}" for number, file in enumerate(files)]
    for file, shares in zip(files[:TOLD], activation.logits.softmax(1), strict=False):
        print(f"{file}: {photos.classes[shares.argmax()]} {shares.max():.2f}")
    if len(files) > TOLD:
        print(f"... and {len(files) - TOLD} more")
    try:
        about = {"checkpoint": str(path), "sources": list(map(str, files))}
        draw_gallery(out, photos, indices, activation, paths, grid=flags.grid, about=about)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise ValueError(
            f"{out} cannot be written ({reason}): name another folder by --out"
        ) from None


if __name__ == "__main__":
    main(read_flags(Flags))
