"""The networks: MLP, SkipMLP, CNN and ResNet-18. Plain arguments in, logits out.

Axis letters: N images, C channels, H x W pixels, K classes, h x w the cells of the last map.
"""

import contextlib
import copy
import inspect
import math
import pickle
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from checks import first_line, fit_model, is_of_memory, memory_bytes
from config import defaults
from rules import check_model, shown


class MLP(nn.Module):
    """Linear layers with ReLU between them: images (N, ...) -> logits (N, K).

    `layer_sizes` runs from the number of input values to K, so [784, 64, 64, 10] has three layers.
    """

    def __init__(self, layer_sizes: Sequence[int]):
        super().__init__()
        layers = []
        for in_features, out_features in pairwise(layer_sizes):
            layers += [nn.Linear(in_features, out_features), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])  # no ReLU after the logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images.flatten(1))


class SkipBlock(nn.Module):
    """A residual block x + f(x): (N, in_features) -> (N, out_features). He et al. 2016.

    f is Linear-ReLU-(Dropout)-Linear. Where the sizes differ, a Linear bridge takes x across.
    """

    def __init__(self, in_features: int, out_features: int, dropout: float = 0.0):
        super().__init__()
        self.block = nn.Sequential(
            nn.Linear(in_features, out_features),
            nn.ReLU(),
            *([nn.Dropout(dropout)] if dropout else []),
            nn.Linear(out_features, out_features),
        )
        same = in_features == out_features
        self.shortcut = nn.Identity() if same else nn.Linear(in_features, out_features)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.shortcut(features) + self.block(features)


class SkipMLP(nn.Module):
    """MLP of residual blocks: images (N, ...) -> logits (N, K).

    The first and the last layer are Linear, every layer between them is a SkipBlock, whose shortcut
    carries the gradient past it, so that depth stops hurting. No ReLU stands outside the blocks:
    with each f at zero the network is linear. Raises ValueError without a hidden size.
    """

    def __init__(self, layer_sizes: Sequence[int], dropout: float = 0.0):
        super().__init__()
        first, *hidden, last = layer_sizes
        if not hidden:
            raise ValueError(f"SkipMLP needs at least one hidden size, got {list(layer_sizes)}")
        self.first = nn.Linear(first, hidden[0])
        self.blocks = nn.Sequential(*(SkipBlock(a, b, dropout) for a, b in pairwise(hidden)))
        self.last = nn.Linear(hidden[-1], last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.blocks(self.first(images.flatten(1))))


class ConvLayer(nn.Module):
    """Conv-BatchNorm-ReLU-Dropout2d-MaxPool: (N, C, H, W) -> (N, C', H', W').

    With `residual`, the input is added before the ReLU, through a 1x1 convolution where the shapes
    differ (He et al. 2016).
    """

    def __init__(
        self, in_channels, channels, kernel_size, stride, padding, dropout, pool, residual=False
    ):
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, channels, kernel_size, stride, padding, bias=False
        )  # the BatchNorm that follows has its own bias
        self.norm = nn.BatchNorm2d(channels)
        self.shortcut = None
        if residual and 2 * padding != kernel_size - 1:
            raise ValueError(
                f"a residual layer needs padding (kernel_size - 1) / 2, so that both paths end in "
                f"the same size; got kernel_size {kernel_size} and padding {padding}"
            )
        if residual:
            same = in_channels == channels and stride == 1
            self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, channels, 1)
        self.dropout = nn.Dropout2d(dropout) if dropout else nn.Identity()
        self.pool = nn.MaxPool2d(pool) if pool > 1 else nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.norm(self.conv(images))
        if self.shortcut is not None:
            rows, columns = self.conv.stride
            # thinned here: with a stride of its own, the gradient of a 1x1 convolution of few
            # channels is written beyond its memory on CPUs (uxlfoundation/oneDNN#6035)
            features = features + self.shortcut(images[..., ::rows, ::columns])
        # Pooling commutes with ReLU and with a factor per channel, so it may come first: the maps
        # that ReLU and dropout write are then four times smaller.
        return self.dropout(torch.relu(self.pool(features)))


class CNN(nn.Module):
    """Fully convolutional network: images (N, C, H, W) -> logits (N, K).

    `layers` has one entry a layer: an int (its channels), or a dict with "channels" that overrides
    kernel_size, stride, padding, dropout or pool (2 by default, 1 for none) for that layer alone. A
    layer pools only while its map keeps `min_map` cells a side, which `image_size`, pixels a side,
    decides. With `residual` every layer has a skip (He et al. 2016). With `whiten` a layer of 2x2
    kernels comes before them, without one, which `whiten` sets and training leaves alone. The head
    is global average pooling and one Linear, so that every CNN can be explained by class activation
    maps (Zhou et al. 2016): `features` is what enters the average, (N, C', h, w), and `classifier`
    weighs it.

    Raises ValueError for an unknown key of a layer, where a layer would leave no cell, and where a
    residual layer's padding is not (kernel_size - 1) / 2.
    """

    def __init__(
        self,
        layers: Sequence[int | dict],
        image_size: int = 32,
        in_channels: int = 3,
        num_classes: int = 10,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 1,
        dropout: float = 0.0,
        residual: bool = False,
        whiten: bool = False,
        min_map: int = 1,
    ):
        super().__init__()
        self.whitens = whiten
        if whiten:
            patches = {"channels": 8 * in_channels, "kernel_size": 2, "padding": 0, "pool": 1}
            layers = [patches | {"stride": 1, "dropout": 0.0}, *layers]
        usual = {
            "kernel_size": kernel_size,
            "stride": stride,
            "padding": padding,
            "dropout": dropout,
            "pool": 2,
        }
        blocks, side = [], image_size
        for number, layer in enumerate(layers, start=0 if whiten else 1):
            settings = usual | (layer if isinstance(layer, dict) else {"channels": layer})
            if unknown := settings.keys() - usual.keys() - {"channels"}:
                raise ValueError(f"layer {number} of the CNN: unknown {sorted(unknown)}")
            side = (side + 2 * settings["padding"] - settings["kernel_size"]) // settings["stride"]
            side += 1
            if side < 1:
                raise ValueError(
                    f"layer {number} of the CNN leaves no cell of a {image_size}x{image_size} "
                    f"image: use fewer layers, smaller strides or larger images"
                )
            if settings["pool"] > 1 and side // settings["pool"] >= min_map:
                side //= settings["pool"]
            else:
                settings["pool"] = 1
            blocks.append(ConvLayer(in_channels, residual=residual and number > 0, **settings))
            in_channels = settings["channels"]
        blocks[0].conv.weight.requires_grad_(not whiten)
        self.layers = nn.Sequential(*blocks)
        self.classifier = nn.Linear(in_channels, num_classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(images).mean((2, 3)))


class ResNet18(nn.Module):
    """torchvision's ResNet-18 (He et al. 2016): images (N, C, H, W), C 1 or 3 -> logits (N, K).

    With `pretrained`, all but the classifier comes from ImageNet; torchvision downloads it. Raises
    FileNotFoundError where that fails.
    """

    def __init__(self, num_classes=10, pretrained=False):
        super().__init__()
        import torchvision

        network = torchvision.models.resnet18()
        if pretrained:
            network.load_state_dict(download(torchvision.models.ResNet18_Weights.DEFAULT))
        *layers, _, _ = network.children()  # without the average pooling and the Linear
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(network.fc.in_features, num_classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images.expand(-1, 3, -1, -1))  # grey: three equal channels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(images).mean((2, 3)))


def download(weights):
    """The state_dict that torchvision publishes as `weights`, from its cache where it is there."""
    folder, name = Path(torch.hub.get_dir()) / "checkpoints", weights.url.rpartition("/")[2]
    try:
        return weights.get_state_dict()
    except OSError as error:
        raise FileNotFoundError(
            f"{name} is not in {folder} and could not be downloaded "
            f"({type(error).__name__}; is there a network?): put it there, or set "
            f"model.pretrained to False"
        ) from None
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{folder / name} is damaged ({first_line(error)}): delete it, it is then "
            f"downloaded anew"
        ) from None


MODELS = {"mlp": MLP, "skip_mlp": SkipMLP, "cnn": CNN, "resnet18": ResNet18}


def build_model(config: dict, known: tuple | None = None) -> nn.Module:
    """The network of config["model"], its weights drawn from config["seed"].

    Sizes that the data set fixes are filled in where they are missing, from `known`, ((C, H, W), K)
    of a data set that need not be there, or from the config. The global random state is left as it
    was. Raises ValueError for a setting of the model that is missing, unknown or out of its range,
    and where the weights do not fit in the memory.
    """
    config = defaults | config
    check_model(config["model"])
    model = fit_model(config, known)
    network = MODELS[model.pop("kind")]
    if "layer_sizes" in inspect.signature(network).parameters:
        model["layer_sizes"] = model.pop("layers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        sizes = {key: value for key, value in model.items() if key != "pretrained"}
        try:
            needed = 16 * count_before(network, sizes)  # with gradients and Adam's means
            if needed > memory_bytes():
                raise MemoryError(f"{needed / 2**30:.0f} GiB")
            return network(**model)
        except (RuntimeError, MemoryError, OverflowError) as error:
            if not is_of_memory(error):
                raise
            what, way_out = f"model.kind {config['model']['kind']}", "choose a smaller one"
            if "layers" in config["model"]:
                layers = shown(config["model"]["layers"])
                what, way_out = f"model.layers {layers}", "lower --model.layers"
            raise ValueError(
                f"{what}: a network of this size does not fit in the memory ({first_line(error)}): "
                f"{way_out}"
            ) from None


def count_before(network, sizes):
    """The parameters that a network will have, before they are made: systems promise memory that
    they do not have. 0 where it cannot be made without them."""
    try:
        with torch.device("meta"):
            return count_parameters(network(**sizes))
    except RuntimeError as error:
        if is_of_memory(error):
            raise
        return 0


@torch.no_grad()
def whiten(model, images):
    """Set the first kernels of a CNN with `whiten` from normalised training images (N, C, H, W).

    They turn the 4 C values of a 2x2 patch into as many uncorrelated ones of deviation 1, each with
    its negative, since ReLU keeps one side: the eigenvectors of the patches' covariance over the
    roots of its eigenvalues (Page 2019; Jordan 2024). Noise that hardly varies is not blown up.
    """
    patches = images.unfold(2, 2, 1).unfold(3, 2, 1)  # (N, C, H-1, W-1, 2, 2)
    patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    variances, vectors = torch.linalg.eigh(torch.cov(patches.flatten(1).T))
    kernels = (vectors / (variances + 5e-4).sqrt()).T.view(-1, *patches.shape[1:])
    model.layers[0].conv.weight.copy_(torch.cat([kernels, -kernels]))


def fold_norms(model):
    """A copy in eval mode with every BatchNorm of a ConvLayer folded into its convolution.

    The same function within rounding, without the pass over the maps that a BatchNorm takes.
    """
    folded = copy.deepcopy(model).eval()
    for layer in folded.modules():
        if isinstance(layer, ConvLayer):
            layer.conv = fuse_conv_bn_eval(layer.conv, layer.norm)
            layer.norm = nn.Identity()
    return folded


@contextlib.contextmanager
def evaluating(model):
    """Inside, the model is in eval mode; after, each of its modules is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def map_cells(model, shape):
    """Cells of the class activation map of an image (C, H, W): of an MLP none, and a map of a
    single one does not say where."""
    if not hasattr(model, "features"):
        return 0
    with torch.no_grad(), evaluating(model):
        image = torch.zeros((1, *shape), device=next(model.parameters()).device)
        return math.prod(model.features(image).shape[2:])


def takes(model, shape):
    """Whether images of (C, H, W) pass through the network."""
    trial = copy.deepcopy(model).to("meta").eval()
    try:
        trial(torch.empty((1, *shape), device="meta"))
    except RuntimeError:
        return False
    return True


def convolves(model):
    """Whether it has convolutions: maps are large, and lie channels last in the memory."""
    return any(isinstance(module, nn.Conv2d) for module in model.modules())


def count_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())
