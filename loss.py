"""The loss: of every training step, of validation and test, and of the gradients that are logged.

Axis letters: n images of a batch, K classes, S networks of a stack.
"""

from functools import partial

import torch
from torch.func import vmap
from torch.nn import functional as F


def mean_losses(
    logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Mean cross-entropy of a batch, logits (n, K), in nats an image; of a stack of batches
    (S, n, K) one a network, (S,). The targets are labels (n,) or (S, n), or probabilities of the
    shape of the logits."""
    loss = partial(F.cross_entropy, label_smoothing=label_smoothing)
    return vmap(loss)(logits, targets) if logits.ndim == 3 else loss(logits, targets)
