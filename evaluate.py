"""Loss, accuracy and confusion matrix of a network on a data set."""

import torch
from torch.nn import functional as F

from distributed import rank, summed, world


@torch.no_grad()
def evaluate(model, dataset, batch_size=1024):
    """{"loss": mean cross-entropy per image, "accuracy": share in [0, 1], "confusion": (K, K)}.

    Rows of the confusion matrix (int64, on the CPU) are true classes, columns predicted ones. Runs
    in eval mode on the model's device, and leaves the model in the mode it found. Of several
    processes, which all have to call it, each takes a share, and every image counts once.
    """
    device = next(model.parameters()).device
    num_classes = len(dataset.classes)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    confusion = torch.zeros(num_classes**2, dtype=torch.int64, device=device)
    training = model.training
    model.eval()
    first, last = (len(dataset) * end // world() for end in (rank(), rank() + 1))
    for start in range(first, last, batch_size):
        rows = slice(start, min(start + batch_size, last))
        images, labels = dataset.images[rows].to(device), dataset.labels[rows].to(device)
        logits = model(dataset.normalise(images)).float()
        loss += F.cross_entropy(logits, labels, reduction="sum")
        pairs = labels * num_classes + logits.argmax(1)
        confusion += torch.bincount(pairs, minlength=num_classes**2)
    model.train(training)
    summed(loss, confusion)
    confusion = confusion.view(num_classes, num_classes).cpu()
    return {
        "loss": loss.item() / len(dataset),
        "accuracy": confusion.trace().item() / len(dataset),
        "confusion": confusion,
    }
