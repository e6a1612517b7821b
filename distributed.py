"""Several processes that train as one, started by torchrun; without it nothing here does anything.

Every global batch is cut into one share a process, in order, so that the images, their augmentation
and the mean gradient are those of one process. Of a ragged last batch some shares are an image
longer than others, and each is weighted by its length; where there are fewer images than processes,
the last image stands in, with weight 0, for those that are missing (on GPUs BatchNorm counts it in
the statistics of that batch).
"""

import contextlib
import functools
import itertools
import os
import sys
from datetime import timedelta

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from checks import rank, world

# seconds that rank 0 may take to download, decode or draw; a process that dies is noticed at once
PATIENCE = 4 * 3600
# batches between two questions whether a signal came: on a GPU the steps are queued far ahead
ASK_EVERY = {"cpu": 1, "cuda": 16}


def own_device(device):
    """`device`, or of several GPUs the one of this process; raises ValueError where it has none."""
    if world() == 1 or device.type == "cpu":
        return device
    local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if device.type != "cuda" or local >= count:
        raise ValueError(
            f"{world()} processes need a GPU each, and this machine has {count} that CUDA knows: "
            f"lower --nproc-per-node, or add --device cpu"
        )
    return torch.device("cuda", local)


@contextlib.contextmanager
def joined(device):
    """The processes can talk to each other inside, and all but rank 0 print nothing."""
    if world() == 1 or distributed.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    connect(device)
    with contextlib.ExitStack() as held:
        if rank() > 0:
            nowhere = held.enter_context(open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123
            held.enter_context(contextlib.redirect_stdout(nowhere))
            held.enter_context(contextlib.redirect_stderr(nowhere))
        yield
        wait()
    distributed.destroy_process_group()


def connect(device):
    """Make the group of processes.

    torchrun keeps its store over a restart: the addresses in it are deleted as soon as all are
    connected, or the processes that follow would call those that died.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, number, count = next(distributed.rendezvous("env://"))
    own = distributed.PrefixStore("lab01", store)
    distributed.init_process_group(
        backend, store=own, rank=number, world_size=count, timeout=timedelta(seconds=PATIENCE)
    )
    summed(torch.zeros(1, device=device))
    wait()
    for key in store.list_keys() if number == 0 else ():
        if key.startswith("lab01/"):
            store.delete_key(key)


def wait():
    """Wait until every process is here."""
    if world() > 1 and distributed.is_initialized():
        distributed.all_reduce(torch.zeros(1))


def leave(code):
    """End this process at once: while Python takes itself down, a thread of gloo that still holds a
    tensor would abort it (pytorch#190489)."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def first_only(function):
    """`function` on rank 0; elsewhere None, at once."""

    @functools.wraps(function)
    def call(*arguments, **options):
        return function(*arguments, **options) if rank() == 0 else None

    return call


def from_first(function, *arguments):
    """What `function` returns on rank 0, on every rank."""
    result = [first_only(function)(*arguments)]
    if world() > 1:
        distributed.broadcast_object_list(result, device=torch.device("cpu"))
    return result[0]


def in_turn(function, *arguments):
    """What `function` returns, called by rank 0 first, then by one process of every other machine,
    then by the rest: what it downloads or builds is there for those that follow."""
    turn = 0 if rank() == 0 else 1 if os.environ["LOCAL_RANK"] == "0" else 2
    for now in range(3 if world() > 1 else 1):
        if now == turn:
            result = function(*arguments)
        wait()
    return result


def own_share(length, batch_size):
    """(rows (n,), weights): what this process takes of an epoch of `length` images, as positions in
    its order, and the weight of its share of every global batch, 1 where all are equal."""
    batches = torch.arange(length).split(batch_size)
    shares = [batch.tensor_split(world())[rank()] for batch in batches]
    pairs = list(zip(shares, batches, strict=True))
    weights = [len(share) * world() / len(batch) for share, batch in pairs]
    return torch.cat([share if len(share) else batch[-1:] for share, batch in pairs]), weights


def shared_step(plain_step, model, optimizer, config, length):
    """The step that `plain_step` makes; of several processes each takes it on its share, and loss
    and correct predictions are those of the global batch."""
    if world() == 1:
        return plain_step(model, optimizer, config)
    if next(model.parameters()).is_cuda:  # on a CPU every process keeps its own statistics
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    parallel = DistributedDataParallel(model)
    parallel.broadcast_buffers = False  # set here: the argument's name changed after torch 2.11
    plain = plain_step(parallel, optimizer, config)
    weights = itertools.cycle(own_share(length, config["batch_size"])[1])
    weight = 1.0

    def weigh(module, images, logits):  # DDP then takes the plain mean of the gradients
        logits.register_hook(lambda slopes: slopes * weight)

    def veto(optimizer, arguments, options):  # a loss that is not finite is so for all
        distributed.all_reduce(optimizer.found_inf, distributed.ReduceOp.MAX)

    def step(images, labels):
        nonlocal weight
        weight = next(weights)
        loss, correct = plain(images, labels)
        return summed(torch.stack([loss * weight / world(), correct * (weight > 0)]))[0].unbind()

    parallel.register_forward_hook(weigh)
    optimizer.register_step_pre_hook(veto)
    return step


def summed(*tensors):
    """The tensors, in place, as their sums over all processes."""
    if world() > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)
    return tensors


def shared(function, items):
    """[function(item) for item in items]; of several processes each does its share, all get all."""
    own = [function(item) for item in items[rank() :: world()]]
    if world() == 1:
        return own
    shares = [None] * world()
    distributed.all_gather_object(shares, own)
    return [shares[number % world()][number // world()] for number in range(len(items))]


def own_part(items):
    """What this process writes of `items`, where those of rank 0's machine deal them out."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if world() > 1 else 1
    return items[rank() :: here] if rank() < here else items[:0]


@contextlib.contextmanager
def alone():
    """Inside, this process is one of its own: nothing is shared, and it prints and writes."""
    names = ("WORLD_SIZE", "RANK")
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ |= kept


def average_statistics(model):
    """Make the running statistics of BatchNorm their means over the processes."""
    for buffer in model.buffers() if world() > 1 else ():
        if buffer.is_floating_point():
            summed(buffer)[0].div_(world())


def agreement(device):
    """agree(signum, final) -> the largest that any process gave, the same in all; 0 is none.

    All call it once a batch; it asks the others every few batches, and where it is `final`.
    """
    if world() == 1:
        return lambda signum, final: signum
    calls, every = itertools.count(), ASK_EVERY[device.type]

    def agree(signum, final):
        if next(calls) % every and not final:
            return 0
        flag = torch.tensor(signum)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        return int(flag)

    return agree
