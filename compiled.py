"""The training step as one call instead of some hundred.

On a CPU forward pass, backward pass and Adam are traced into one graph, compiled ahead of time to
C++, once, and kept on disk. On a GPU the plain step is captured as a CUDA graph. Both update the
parameters and the state of the optimizer in place: checkpoints are the same, and a plain step may
follow at any time.
"""

import contextlib
import copy
import hashlib
import json
import logging
import math
import os
import shutil
import sys
from operator import attrgetter
from pathlib import Path

import torch

from checks import first_line
from distributed import world
from loss import mean_losses

CACHE = Path("runs") / ".compiled"
# steps from which on it pays: compiling takes 15 s once, capturing a graph less than one
WORTH_IT = {"cpu": 30_000, "cuda": 500}


def choose_compiled(config, model, device, steps):
    """Whether config["compile"] asks for the one call; "auto" where it pays and exists.

    A function of the run and the machine alone, so that the same command gives the same numbers.
    """
    worth_it = WORTH_IT.get(device.type, math.inf)
    if config["compile"] == "off" or (config["compile"] == "auto" and steps < worth_it):
        return False
    cpu = device.type == "cpu"
    reasons = {
        f"{world()} processes train together": world() > 1,
        f"a step cannot be compiled for {device.type}": device.type not in WORTH_IT,
        f"the optimizer is {config['optimizer']}": cpu
        and config["optimizer"] not in ("adam", "adamw"),
        "the network keeps statistics or convolves": cpu and any(True for _ in model.buffers()),
        "a teacher answers": cpu and config["teacher"] != "none",
        "the precision is not float32": cpu and config["precision"] == "bfloat16",
        "there is no C++ compiler": cpu and not any(map(shutil.which, ("g++", "clang++", "cl"))),
    }
    why_not = [reason for reason, holds in reasons.items() if holds]
    aloud = config["compile"] == "on" or world() > 1
    if why_not and (aloud or "compiler" in why_not[0]):
        print(f"the plain step is taken: {why_not[0]}", file=sys.stderr)
    return not why_not


def make_step(plain, model, optimizer, images, labels, steps, config):
    """The step `plain`, or the same one as one call, for batches like this one: images
    (n, C, H, W) and labels (n,), of a stack of S networks (S, n, ...) and (S, n).

    `steps` are those of the whole run. config["compile"] then says which it is: "on" or "off".
    """
    device = next(model.parameters()).device
    compiles = choose_compiled(config, model, device, steps)
    config["compile"] = "off"
    if compiles and labels.shape[-1] == config["batch_size"]:
        model.train()
        try:
            if device.type == "cuda":
                step = GraphedStep(plain, model, optimizer, images.to(device), labels.to(device))
            else:
                step = CompiledStep(plain, model, optimizer, images, labels, config)
            config["compile"] = "on"
            return step
        except Exception as error:  # whatever a compiler may do, the plain step still runs
            reason = first_line(error)
            print(f"the plain step is taken, compiling failed: {reason}", file=sys.stderr)
    return plain


class GraphedStep:
    """step(images, labels) -> (loss, number of correct predictions): `plain` as one CUDA graph.

    A ragged last batch goes through `plain` itself.
    """

    def __init__(self, plain, model, optimizer, images, labels):
        self.plain, self.group = plain, optimizer.param_groups[0]
        self.images, self.labels = images.clone(), labels.clone()
        self.lr = torch.tensor(self.group["lr"], device=images.device)
        self.graph = torch.cuda.CUDAGraph()
        with unchanged(model, optimizer):
            self.group["lr"] = self.lr  # the graph reads it anew at every replay
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):  # libraries choose and allocate what they need
                    plain(self.images, self.labels)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(self.graph):
                self.outputs = plain(self.images, self.labels)

    def __call__(self, images, labels):
        if labels.shape != self.labels.shape:
            return self.plain(images, labels)
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.lr.fill_(self.group["lr"])
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)  # the next replay writes them again


@contextlib.contextmanager
def unchanged(model, optimizer):
    """Steps taken inside leave weights, statistics, optimizer and learning rate as they were.

    In place: whoever holds the tensors keeps them. State that the optimizer makes inside stays, at
    zero, as its first step finds it.
    """
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = copy.deepcopy({id(p): state for p, state in optimizer.state.items()})
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        yield
    finally:
        for name, tensor in model.state_dict().items():
            tensor.copy_(weights[name])
        for parameter, state in optimizer.state.items():
            before = states.get(id(parameter), {})
            for key, tensor in state.items():
                if tensor is not None:  # SGD without momentum keeps none
                    tensor.copy_(before[key]) if key in before else tensor.zero_()
        for group, lr in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = lr
        optimizer.zero_grad()


class CompiledStep:
    """step(images, labels) -> (loss, number of correct predictions) for whole batches.

    A ragged last batch goes through `plain`.
    """

    def __init__(self, plain, model, optimizer, images, labels, config):
        self.plain, self.group = plain, optimizer.param_groups[0]
        self.batch_size = labels.shape[-1]
        self.scalars = torch.ones(3)
        states = prepare_state(optimizer)
        self.count = states[-1][0]
        self.tensors = [t for columns in states for t in columns] + [self.scalars]
        self.run = load_or_compile(model, self.group, states, self.scalars, images, labels, config)

    def __call__(self, images, labels):
        if labels.shape[-1] != self.batch_size:
            return self.plain(images, labels)
        lr, (beta1, beta2), count = self.group["lr"], self.group["betas"], self.count.item() + 1
        # computed here, since the compiled loops would raise to the power for every weight
        self.scalars.copy_(torch.tensor([lr, 1 - beta1**count, 1 - beta2**count]))
        return self.run([*self.tensors, images, labels])


def prepare_state(optimizer):
    """(parameters, averages, squared averages, steps), the state that Adam's first step makes."""
    parameters = optimizer.param_groups[0]["params"]
    for parameter in parameters:
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
    states = [optimizer.state[parameter] for parameter in parameters]
    columns = [[state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step")]
    return [parameter.detach() for parameter in parameters], *columns


def traceable_step(model, group, config):
    """The step as a function of tensors alone."""
    names = [name for name, _ in model.named_parameters()]

    def loss_of(parameters, images, labels):
        named = dict(zip(names, parameters, strict=True))
        logits = torch.func.functional_call(model, named, (images,))
        losses = mean_losses(logits, labels, config["label_smoothing"])
        return losses.sum(), (losses, logits)

    def step(parameters, averages, squares, steps, scalars, images, labels):
        slopes = torch.func.grad_and_value(loss_of, has_aux=True)
        gradients, (_, (losses, logits)) = slopes(parameters, images, labels)
        good = losses.isfinite().all()
        lr, *corrections = scalars
        scalars = torch.where(good, lr, 0.0), *corrections  # a step of 0 where it is not finite
        gradients = [torch.where(good, gradient, 0.0) for gradient in gradients]
        for parameter, gradient, average, square, count in zip(
            parameters, gradients, averages, squares, steps, strict=True
        ):
            count.add_(1)
            adam_update(parameter, gradient, average, square, scalars, group, config["optimizer"])
        return losses, (logits.argmax(-1) == labels).sum(-1)

    return step


def adam_update(parameter, gradient, average, square, scalars, group, kind):
    """Adam (Kingma and Ba 2015, algorithm 1) or AdamW, in place.

    `scalars` are the learning rate and the two bias corrections, 1 - beta1^t and 1 - beta2^t.
    """
    lr, correction1, correction2 = scalars
    beta1, beta2 = group["betas"]
    if kind == "adamw":
        parameter.mul_(1 - lr * group["weight_decay"])
    elif group["weight_decay"]:
        gradient = gradient + group["weight_decay"] * parameter
    average.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    scale = (square / correction2).sqrt() + group["eps"]
    parameter.sub_(lr / correction1 * average / scale)


def load_or_compile(model, group, states, scalars, images, labels, config):
    """The compiled step, as a function of a list of tensors, from the cache where it is there."""
    arguments = (*states, scalars, images, labels)
    graph = trace(traceable_step(model, group, config), arguments)
    path = CACHE / f"step-{cache_key(graph, arguments)}.pt2"
    if path.is_file():
        with contextlib.suppress(RuntimeError):  # one that is damaged is compiled anew
            return load(path)
    print("compiling the training step, once: about 15 s", file=sys.stderr, flush=True)
    compile_ahead(graph, arguments, path)
    return load(path)


def trace(step, arguments):
    """Every operation of `step` as a graph, wherever it is written; leaves the arguments alone."""
    from torch.fx.experimental.proxy_tensor import make_fx

    copies = torch.utils._pytree.tree_map(torch.clone, arguments)  # tracing runs the step once
    with torch.random.fork_rng(devices=[]):
        graph = make_fx(step)(*copies)
    turn_gradients(graph)
    return graph


def load(path):
    return torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, -1).boxed_run


def cache_key(graph, arguments):
    """What the compiled code depends on: operations, their constants, shapes, versions, processor.

    The source of the step is not asked: a loss or a network may be changed in any file.
    """
    parts = [graph.code, [list(t.shape) for t in torch.utils._pytree.tree_leaves(arguments)]]
    parts += [torch.__version__, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()]
    parts += [dict(torch.cpu.get_capabilities())]  # the compiler takes all instructions there are
    nodes = graph.graph.find_nodes(op="get_attr")
    constants = b"".join(attrgetter(node.target)(graph).numpy().tobytes() for node in nodes)
    return hashlib.sha256(json.dumps(parts).encode() + constants).hexdigest()[:16]


def compile_ahead(graph, arguments, path):
    """Compile the traced step and move the finished package to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("torch.utils.cpp_extension").setLevel("ERROR")  # it misses CUDA aloud
    unfinished = path.with_name(f"{os.getpid()}-{path.name}")
    settings = {"fallback_random": True}  # dropout draws what the plain step would
    with torch.random.fork_rng(devices=[]):
        program = torch.export.export(graph, arguments)
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(unfinished), inductor_configs=settings
        )
    unfinished.replace(path)


def turn_gradients(graph):
    """The gradients of stacked weights as G' X, not (X' G)': Adam then reads them row by row."""
    aten = torch.ops.aten
    for node in graph.graph.find_nodes(op="call_function", target=aten.transpose.int):
        product = node.args[0]
        if product.target is aten.view.default and same_shape(product, product.args[0]):
            product = product.args[0]
        if product.target is aten.bmm.default:
            with graph.graph.inserting_before(node):
                left, right = (
                    graph.graph.call_function(aten.transpose.int, (factor, 1, 2))
                    for factor in reversed(product.args)
                )
                turned = graph.graph.call_function(aten.bmm.default, (left, right))
            node.replace_all_uses_with(turned)  # the old product has no user left and is dropped
    graph.recompile()


def same_shape(first, second):
    return first.meta["tensor_meta"].shape == second.meta["tensor_meta"].shape
