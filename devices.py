"""Where and how it computes: the device, its memory, precision and threads."""

import contextlib
import ctypes
import platform
from collections.abc import Iterator

import torch

from checks import check_device
from distributed import own_device
from models import convolves, count_parameters

LARGE = 1_000_000  # parameters: an MLP of 1.3 million takes less than half as long in bfloat16
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


def uses_bfloat16(config, device):
    """Whether a training computes in bfloat16: with "auto" on GPUs that have instructions for it,
    NVIDIA's from Ampere on, since older ones emulate it, slower than float32."""
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return {"auto": native, "bfloat16": True, "float32": False}[config["precision"]]


def advice_on_precision(model, config, device):
    """A line for who trains on a CPU in the slower precision, "" for others. A CPU without
    instructions for bfloat16 takes many times as long in it as in float32; with them
    convolutions take less, and MLPs of LARGE matrices."""
    if device.type != "cpu":
        return ""
    known = torch.cpu.get_capabilities()
    native = any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # bf16: ARM
    if uses_bfloat16(config, device) and not native:
        return "warning: no instructions for bfloat16 here, --precision float32 is faster"
    gains = convolves(model) or count_parameters(model) > LARGE
    if config["precision"] == "auto" and native and gains:
        return "this processor has instructions for bfloat16: --precision bfloat16 may be faster"
    return ""


@contextlib.contextmanager
def threads_restored() -> Iterator[None]:
    """Whatever number of threads is set inside, the one before comes back."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
