"""Where it computes: CUDA when available, then Apple's GPU, then the CPU."""

import torch

from checks import check_device
from distributed import own_device


def choose_device(name):
    """CUDA when available, then MPS, then CPU, unless `name` says which; of several GPUs each
    process has its own. Raises ValueError for one that is not here."""
    check_device(name)
    if name == "auto":
        fallback = "mps" if torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else fallback
    return own_device(torch.device(name))


def keep_on(device, dataset):
    """The data set on `device`, where it takes at most half of the memory that is free there."""
    if device.type == "cuda" and dataset.images.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
        return dataset
    return dataset.to(device)
