"""The networks of the depth study, and the gradient that reaches each of their layers.

Axis letters: N images, D features of one image, K classes, W the width.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

import exercise_1_2
from models import SkipBlock, build_model

MLP_ARMS = {
    "plain": {},
    "plain, He": {"he": True},
    "residual": {"residual": True},
}
ARMS = {  # of every network: arm -> what makes it
    "mlp": MLP_ARMS
    | {f"{arm} + BatchNorm": {**how, "batch_norm": True} for arm, how in MLP_ARMS.items()},
    "cnn": {"plain": {"residual": False}, "residual": {"residual": True}},
    "stall": {"dropout 0.5": {"dropout": 0.5}, "no dropout": {"dropout": 0.0}},
}
LAYERS_OF_EXERCISE_1_2 = 6  # two blocks of two between a first and a last; the bridge aside


class DeepMLP(nn.Module):
    """`depth` Linear layers of one width, ReLU after all but the last: (N, ...) -> logits (N, K).

    With `residual`, pairs of the layers between the first and the last are blocks x + f(x), f being
    Linear-ReLU-Linear; no ReLU follows the sum. An odd depth then has one layer less. So at depth
    2 both kinds are the same network, and with blocks at zero a residual one is its first and last
    layer. With `batch_norm`, a BatchNorm follows every Linear but the last, and the bias of the
    layer is that of its BatchNorm. With `he`, weights have variance 2 / fan_in and biases are
    zero (He et al. 2015), else they are as nn.Linear draws them. Raises ValueError below depth 2.
    """

    def __init__(
        self, features, width, depth, num_classes=10, residual=False, batch_norm=False, he=False
    ):
        super().__init__()
        if depth < 2:
            raise ValueError(f"an MLP of the study has a first and a last layer: depth {depth} < 2")

        def linear(inputs):
            if not batch_norm:
                return [nn.Linear(inputs, width)]
            return [nn.Linear(inputs, width, bias=False), nn.BatchNorm1d(width)]

        layers = [*linear(features), nn.ReLU()]
        for _ in range((depth - 2) // 2 if residual else 0):
            block = SkipBlock(width, width)
            block.block = nn.Sequential(*linear(width), nn.ReLU(), *linear(width))
            layers.append(block)
        for _ in range(0 if residual else depth - 2):
            layers += [*linear(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(width, num_classes)
        if he:
            self.apply(draw_he)

    def forward(self, images):
        return self.last(self.layers(images.flatten(1)))


def draw_he(module):
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def build_network(config, arm):
    """The network of a cell's config (see studies.depth), its weights drawn from config["seed"]."""
    network, how = config["network"], ARMS[config["network"]][arm]
    if network == "stall":
        return build_model(config | {"model": exercise_1_2.config["model"] | how})
    if network == "cnn":
        shrinking, constant = ({"channels": config["width"], "pool": pool} for pool in (2, 1))
        layers = 2 * [shrinking] + (config["depth"] - 2) * [constant]
        return build_model(config | {"model": {"kind": "cnn", "layers": layers} | how})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        return DeepMLP(config["features"], config["width"], config["depth"], **how)


def layer_parameters(model):
    """[(weight, bias), ...] of the layers from input to output, without the bridges of shortcuts.

    The bias of a layer that BatchNorm follows is that of the BatchNorm.
    """
    layers = []
    for name, module in model.named_modules():
        if "shortcut" in name.split("."):
            continue
        if isinstance(module, nn.Linear | nn.Conv2d):
            layers.append((module.weight, module.bias))
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            layers[-1] = (layers[-1][0], module.bias)
    return layers


def gradient_norms(model, images, labels):
    """{"weights", "biases"}: the norm of the loss's gradient in every layer, from input to output.

    Of a batch in training mode without dropout, computed in float64: in float32 the square of 1e-31
    would be zero. The model is left as it was.
    """
    model = copy.deepcopy(model).cpu().double().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.eval()
    parameters = layer_parameters(model)
    flat = [parameter for pair in parameters for parameter in pair]
    loss = F.cross_entropy(model(images.cpu().double()), labels.cpu())
    norms = [gradient.norm().item() for gradient in torch.autograd.grad(loss, flat)]
    return {"weights": norms[::2], "biases": norms[1::2]}
