"""How long the weights and the gradients of every layer are, without touching either."""

import math

import torch
from torch.nn import functional as F

from models import evaluating

IMAGES = 64  # that the gradient is taken of


class Norms:
    """norms(epoch) -> {"weight_norm/<layer>": L2 norm, "gradient_norm/<layer>": ...}.

    The gradient is that of the mean loss of some training images, the same ones always, in eval
    mode: a pass of its own, since a compiled step keeps its gradients to itself. It is taken every
    few epochs, so that it costs at most one of a hundred `steps`. Weights, statistics and random
    state stay as they are, to the bit.
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
        parameters = [p for own in self.layers.values() for p in own]
        found = self._lengths("weight_norm", [p.detach() for p in parameters])
        if (epoch - 1) % self.every == 0:
            found |= self._lengths("gradient_norm", self._gradients(parameters))
        return found

    def _gradients(self, parameters):
        with evaluating(self.model):
            loss = F.cross_entropy(self.model(self.images).float(), self.labels)
        return torch.autograd.grad(loss, parameters)  # .grad is left to the optimizer

    def _lengths(self, name, tensors):
        squares = torch.stack(torch._foreach_norm(tensors)).cpu().square().tolist()
        found = {}
        for layer, own in self.layers.items():
            mine, squares = squares[: len(own)], squares[len(own) :]
            found[f"{name}/{layer}"] = math.sqrt(math.fsum(mine))
        return found
