"""Who is studied: a network as it sees pixels, and images whose objects are boxed."""

from dataclasses import dataclass

import torch

from boxes import box_mask
from dataset import ImageDataset
from studies import measures
from upsampling import cell_centres, upsample


@dataclass
class Boxed:
    """Images whose objects are boxed: pixels (N, C, H, W) in [0, 255], masks (N, H, W), labels."""

    indices: list
    pixels: torch.Tensor
    masks: torch.Tensor
    labels: torch.Tensor
    boxes: list

    def __getitem__(self, rows):
        chosen = [self.indices[i] for i in rows], self.pixels[rows], self.masks[rows]
        return Boxed(*chosen, self.labels[rows], [self.boxes[i] for i in rows])


@dataclass
class Subject:
    """The network under study and how it sees pixels."""

    model: torch.nn.Module
    dataset: ImageDataset

    def predict(self, pixels):
        return measures.predict(self.model, self.dataset.normalise(pixels))

    def explain(self, pixels, classes=None):
        return measures.explain(self.model, self.dataset.normalise(pixels), classes)

    def smooth(self, maps):
        """Maps (N, h, w) of the size of the images, (N, H, W)."""
        size = self.dataset.images.shape[-2:]
        return upsample(maps, *size, cell_centres(self.model, maps.shape[1:], size))


def load_boxed(dataset, boxes):
    indices = sorted(boxes)
    size = dataset.images.shape[-2:]
    masks = torch.stack([box_mask(boxes[i], *size) for i in indices])
    pixels = dataset.images[indices].float()
    return Boxed(indices, pixels, masks, dataset.labels[indices], [boxes[i] for i in indices])


def by_class(values, labels, classes, summary):
    """{"all": ..., class: ...}: the summary of the values of all images and of those of a class."""
    found = {"all": summary(values)}
    for label, name in enumerate(classes):
        found[name] = summary([v for v, one in zip(values, labels, strict=True) if one == label])
    return found
