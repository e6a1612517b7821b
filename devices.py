"""Where it computes: CUDA when available, then Apple's GPU, then the CPU, and in what memory."""

import contextlib
import ctypes
import platform
from collections.abc import Iterator

import torch

from checks import check_device
from distributed import own_device

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
keeps = False  # whether glibc keeps what is freed now


def choose_device(name):
    """CUDA when available, then MPS, then CPU, unless `name` says which; of several GPUs each
    process has its own. Raises ValueError for one that is not here."""
    check_device(name)
    if name == "auto":
        fallback = "mps" if torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else fallback
    device = own_device(torch.device(name))
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # or CUDA graphs are captured on the first one
    return device


def keep_on(device, dataset):
    """The data set on `device`, where it takes at most half of the memory that is free there."""
    if device.type == "cuda" and dataset.images.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
        return dataset
    return dataset.to(device)


@contextlib.contextmanager
def convolutions_timed() -> Iterator[None]:
    """Inside, cuDNN times its algorithms on the first batch of a shape and keeps the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside, glibc keeps the memory that is freed, for what is allocated next.

    The maps of a CNN are as large as what glibc gives back to the system at once, whose pages then
    come back zeroed, one by one, at every layer of every step: a fifth of the time of training,
    half of that of evaluation. Inside another one it changes nothing.
    """
    global keeps
    if keeps or platform.libc_ver()[0] != "glibc":
        yield
        return
    keeps = True
    c_library = ctypes.CDLL(None)
    c_library.mallopt(M_MMAP_MAX, 0)
    c_library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:  # what glibc starts with
        keeps = False
        c_library.mallopt(M_MMAP_MAX, 65536)
        c_library.mallopt(M_TRIM_THRESHOLD, 2**17)
        c_library.malloc_trim(0)
