"""Class activation maps of Imagenette's 3,925 validation images: pytorch-grad-cam, torchcam, ours.

    python -m benchmarks.cam                   # 2 minutes on 2 cores
    python -m benchmarks.cam --images 256      # a quick look

One map an image, of the predicted class, from the CNN of exercise 2.3 with random weights. Every
contender has a process of its own, which reports its peak memory and the sum over its maps, cut at
zero and divided by their largest cell: that of all should agree.
"""

import json
import resource
import time
from dataclasses import dataclass

import torch

import exercise_2_3
from benchmarks.report import Output, print_table, run_contender, write_results
from cam import activate
from dataset import load_datasets
from exits import read_flags
from models import build_model

CONFIG = exercise_2_3.config
BATCH_SIZE = 64


def in_batches(test_set, count):
    for start in range(0, count, BATCH_SIZE):
        yield test_set.normalise(test_set.images[start : min(start + BATCH_SIZE, count)])


def pytorch_grad_cam(model, test_set, count):
    from pytorch_grad_cam import GradCAM

    class NativeGrid(GradCAM):
        def forward(self, images, targets=None, eigen_smooth=False):
            self.outputs = self.activations_and_grads(images)
            self.model.zero_grad()
            self.outputs.amax(1).sum().backward()
            seen = self.activations_and_grads
            maps = [a.numpy() for a in (seen.activations[0], seen.gradients[0])]
            return self.get_cam_image(images, self.target_layers[0], None, *maps)

    explainer = NativeGrid(model, [model.layers])
    return torch.cat([torch.as_tensor(explainer(x, None)) for x in in_batches(test_set, count)])


def torchcam(model, test_set, count):
    from torchcam.methods import CAM

    maps = []
    with torch.no_grad(), CAM(model, "layers", "classifier", input_shape=(3, 128, 128)) as explain:
        for images in in_batches(test_set, count):
            classes = model(images).argmax(1).tolist()
            maps.append(explain(classes, normalized=False)[0])
    return torch.cat(maps)


def lab(model, test_set, count):
    return activate(model, test_set, range(count)).maps


CONTENDERS = {"pytorch-grad-cam": pytorch_grad_cam, "torchcam": torchcam, "LAB01": lab}


@dataclass
class Flags(Output):
    images: int = 3925
    """so many of the validation images"""
    contender: str = "all"
    """one of them, which then prints its figures as JSON"""


def main(flags):
    if flags.contender != "all":
        test_set = load_datasets(CONFIG)[2]
        model = build_model(CONFIG).eval().to(memory_format=torch.channels_last)
        contend = CONTENDERS[flags.contender]
        contend(model, test_set, BATCH_SIZE)  # warm
        start = time.perf_counter()
        maps = contend(model, test_set, flags.images).float().relu()
        seconds = time.perf_counter() - start
        scaled = maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rate = flags.images / seconds
        figures = {"images_a_second": rate, "peak_MiB": peak, "sum": float(scaled.double().sum())}
        print(json.dumps(figures))
        return
    results = {
        name: run_contender("benchmarks.cam", name, "--images", flags.images) for name in CONTENDERS
    }
    base = results["pytorch-grad-cam"].get("images_a_second", float("nan"))
    rows = []
    for name, result in results.items():
        if "error" in result:
            rows.append((name, result["error"][:40], "", "", ""))
            continue
        rate = result["images_a_second"]
        cells = (f"{rate:.0f}", f"{rate / base:.2f}", f"{result['peak_MiB']:.0f}")
        rows.append((name, *cells, f"{result['sum']:.3f}"))
    header = ("maps at 128 px", "images/s", "times faster", "peak MiB", "sum of scaled maps")
    print_table(f"{flags.images} images", header, rows)
    write_results("cam", {"contenders": results}, flags.folder)


if __name__ == "__main__":
    main(read_flags(Flags))
