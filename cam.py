"""Class activation maps (Zhou et al. 2016) of networks whose head is average pooling and a Linear.

Axis letters: N images, C channels, H x W pixels, K classes, h x w the cells of the last map.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.nn import functional as F

from dataset import make_generator
from gallery import write_gallery
from models import fold_norms
from tracking import write_json

COLOURS = "RdBu_r"  # red speaks for the class, blue against it, white is zero


@dataclass(frozen=True)
class ClassActivation:
    """Maps of N images, one class each.

    `maps` (N, h, w) are signed and in logit units: the mean of a map plus the bias of its class is
    the logit of the class. `classes` (N,), `logits` (N, K), `confidence` (N,): the probability of
    the class. `biases` (N,) are those of the classes.
    """

    maps: torch.Tensor
    classes: torch.Tensor
    logits: torch.Tensor
    confidence: torch.Tensor
    biases: torch.Tensor

    def __getitem__(self, index):
        """The activation of one image, or of a slice, N kept as the first axis."""
        rows = slice(index, index + 1) if isinstance(index, int) else index
        return ClassActivation(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def completeness_error(self):
        """(N,) |mean(map) + bias - logit|, as a share of the largest logit of the image."""
        logit = self.logits.gather(1, self.classes[:, None])[:, 0]
        error = (self.maps.mean((1, 2)) + self.biases - logit).abs()
        return error / self.logits.abs().amax(1)


@torch.no_grad()
def generate_class_activation_map(model, images, classes=None):
    """The ClassActivation of normalised images (N, C, H, W), in closed form.

    `classes` is one class for all, a sequence of N, or None for the predicted ones. The map of
    class c is sum_k w_ck A_k over the features A that enter the average pooling. Runs in eval mode
    on the model's device and leaves the model as it was. Raises ValueError for an unknown class
    and for a network without maps.
    """
    if not hasattr(model, "features"):
        raise ValueError(
            f"a {type(model).__name__} has no map to show; class activation needs a CNN"
        )
    weight, bias = model.classifier.weight, model.classifier.bias
    training = model.training
    model.eval()
    features = model.features(images.to(weight.device))
    model.train(training)
    logits = model.classifier(features.mean((2, 3)))
    if classes is None:
        classes = logits.argmax(1)
    classes = torch.as_tensor(classes, device=weight.device).expand(len(images))
    if len(images) and not 0 <= classes.min() <= classes.max() < len(weight):
        raise ValueError(f"classes must be 0 to {len(weight) - 1}, got {classes.tolist()}")
    maps = torch.einsum("nc,nchw->nhw", weight[classes], features)
    confidence = logits.softmax(1).gather(1, classes[:, None])[:, 0]
    return ClassActivation(maps, classes, logits, confidence, bias[classes])


def save_cam_visualization(image, activation, path, class_names=None, true=None, limit=None):
    """Write one PNG: original, map and overlay of one uint8 image (C, H, W).

    `activation` holds that image alone, `true` is its label. Colours are signed and centred at zero
    and end at +-`limit`, in logit units: pass one limit to pictures that are to be compared. The
    alpha of the overlay follows the strength of the map.
    """
    values = activation.maps[0].float().cpu()
    limit = float(values.abs().max()) if limit is None else limit
    limit = limit or 1.0  # an all-zero map is drawn white
    height, width = image.shape[-2:]
    size = (max(height, 128), max(width, 128))
    smooth = F.interpolate(values[None, None], size, mode="bilinear")[0, 0].numpy()
    pixels = image.cpu().numpy().transpose(1, 2, 0)
    pixels = pixels if pixels.shape[2] == 3 else np.repeat(pixels[:, :, :1], 3, axis=2)

    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.7), layout="constrained")
    extent = (0, width, height, 0)
    scale = {"cmap": COLOURS, "vmin": -limit, "vmax": limit, "extent": extent}
    axes[0].imshow(pixels, extent=extent)
    drawn = axes[1].imshow(values, **scale)
    axes[2].imshow(pixels, extent=extent)
    axes[2].imshow(smooth, alpha=np.clip(np.abs(smooth) / limit, 0, 1) * 0.75, **scale)
    titles = ("image", f"map, {values.shape[0]} x {values.shape[1]} cells", "overlay")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    figure.colorbar(drawn, ax=axes, shrink=0.75, label="evidence (logit units)")
    figure.suptitle(describe_prediction(activation, class_names, true), fontsize=11)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def describe_prediction(activation, class_names=None, true=None):
    """Two lines: true and predicted class, confidence and runner-up; what the map adds up to."""
    probabilities = activation.logits[0].softmax(0)
    names = class_names or [f"class {k}" for k in range(len(probabilities))]
    best, second = probabilities.topk(2).indices.tolist()
    shown = int(activation.classes[0])
    logit, bias = float(activation.logits[0, shown]), float(activation.biases[0])
    truth = "" if true is None else f"true: {names[true]}   "
    return (
        f"{truth}predicted: {names[best]} {probabilities[best]:.3f}   "
        f"next: {names[second]} {probabilities[second]:.3f}\n"
        f"map of {names[shown]}: mean {logit - bias:+.2f}, bias {bias:+.2f}, logit {logit:+.2f}"
    )


def cam(model, dataset, config):
    """Draw a few images of every class of `dataset`, or those that config["cam"]["indices"] names.

    Writes run_dir/cam/<class>/sample_<k>_idx_<i>.png, manifest.json and index.html; returns the
    manifest's rows. All pictures of a call share one colour scale.
    """
    folder = Path(config["run_dir"]) / "cam"
    indices = choose_images(dataset, config)
    activation = activate(model, dataset, indices)
    limit = float(activation.maps.abs().max())
    errors = activation.completeness_error()
    rows, drawn_of_class = [], {}
    for position, index in enumerate(indices):
        one, label = activation[position], int(dataset.labels[index])
        number = drawn_of_class[label] = drawn_of_class.get(label, -1) + 1
        name = Path(folder_name(dataset.classes[label])) / f"sample_{number}_idx_{index}.png"
        save_cam_visualization(
            dataset.images[index], one, folder / name, dataset.classes, label, limit
        )
        shown = int(one.classes[0])
        rows.append(
            {
                "index": index,
                "path": name.as_posix(),
                "true": dataset.classes[label],
                "predicted": dataset.classes[int(one.logits[0].argmax())],
                "shown": dataset.classes[shown],
                "confidence": float(one.confidence[0]),
                "probabilities": one.logits[0].softmax(0).tolist(),
                "logit": float(one.logits[0, shown]),
                "completeness_error": float(errors[position]),
                "limit": limit,
            }
        )
    worst = max(row["completeness_error"] for row in rows)
    write_json(folder / "manifest.json", {"worst_completeness_error": worst, "images": rows})
    write_gallery(folder, rows, "Class activation maps", dataset.classes)
    print(f"{len(rows)} maps in {folder}; worst |mean + bias - logit| {worst:.1e} of the logit")
    return rows


def choose_images(dataset, config):
    """Indices: the named ones, or config["cam"]["per_class"] of every class, drawn by the seed."""
    named, per_class = config["cam"]["indices"], config["cam"]["per_class"]
    for index in named:
        if not 0 <= index < len(dataset):
            raise ValueError(
                f"cam.indices: no image {index}; {dataset.name} has test images 0 to "
                f"{len(dataset) - 1}"
            )
    if named:
        return list(named)
    chosen = []
    for label in range(len(dataset.classes)):
        members = torch.where(dataset.labels == label)[0]
        generator = make_generator(config["seed"], "cam", label)
        order = torch.randperm(len(members), generator=generator)
        chosen += members[order[:per_class]].sort()[0].tolist()
    return chosen


def activate(model, dataset, indices, classes=None, batch_size=None):
    """The ClassActivation of `indices` of a data set, computed in batches, on the CPU."""
    model = fold_norms(model)
    on_cpu = next(model.parameters()).device.type == "cpu"
    batch_size = batch_size or (8 if on_cpu else 256)  # 8 stay in a CPU's cache: 1.3 times as fast
    parts = []
    for start in range(0, len(indices), batch_size):
        rows = indices[start : start + batch_size]
        images = dataset.normalise(dataset.images[rows])
        chosen = None if classes is None else classes[start : start + batch_size]
        parts.append(generate_class_activation_map(model, images, chosen))
    names = ClassActivation.__dataclass_fields__
    return ClassActivation(*(torch.cat([getattr(p, n) for p in parts]).cpu() for n in names))


def folder_name(class_name):
    """A class name as one folder: no separators or dots, at most 80 characters."""
    return re.sub(r"[^\w\- ]", "_", class_name).strip()[:80] or "_"
