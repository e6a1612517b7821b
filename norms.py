"""How long the weights and the gradients of every layer are, without touching either."""

import math

import torch
from torch.nn.utils import get_total_norm

from loss import mean_losses
from models import evaluating

IMAGES = 64  # that the gradient is taken of


class Norms:
    """norms(epoch) -> {"weight_norm/<layer>": L2 norm, "gradient_norm/<layer>": ...}.

    The gradient is that of the mean cross-entropy of some training images and their labels, the
    same ones always, in eval mode, whatever the run's own loss adds: a pass of its own, since a
    compiled step keeps its gradients to itself. It is taken every few epochs, so that it costs at
    most one of a hundred `steps`. Weights, statistics and random state stay as they are, to the
    bit.
    """

    def __init__(self, model, train_set, steps):
        device = next(model.parameters()).device
        self.images, self.labels = (t.to(device) for t in train_set.sample(IMAGES))
        self.every = math.ceil(100 / steps)
        self.model = model
        self.layers = {
            name: own
            for name, module in model.named_modules()
            if (own := [p for p in module.parameters(recurse=False) if p.requires_grad])
        }

    def __call__(self, epoch):
        found = self._lengths("weight_norm", self.layers.values())
        if (epoch - 1) % self.every == 0:
            found |= self._lengths("gradient_norm", self._gradients())
        return found

    def _gradients(self):
        with evaluating(self.model):
            loss = mean_losses(self.model(self.images).float(), self.labels)
        parameters = [p for own in self.layers.values() for p in own]
        gradients = iter(torch.autograd.grad(loss, parameters))  # .grad is left to the optimizer
        return [[next(gradients) for _ in own] for own in self.layers.values()]

    def _lengths(self, name, tensors):
        norms = torch.stack([get_total_norm(own) for own in tensors]).tolist()
        return {f"{name}/{layer}": norm for layer, norm in zip(self.layers, norms, strict=True)}
