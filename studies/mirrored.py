"""What does it bring to show a network every test image and its mirror image, too?

    python -m studies.mirrored runs/exercise_1_3/best    # a finished run, or several seeds of one

The weights are those that validation chose; the answer is the mean of the logits of both. Writes
results/<exercise>-<folder>/mirrored.json beside what `studies.report --add` took over: the test
accuracy of every seed both ways. `evaluate.py RUN --mirror` prints the table of one run.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from devices import choose_device
from evaluate import Flags as Judged
from evaluate import Mirrored, evaluate, load_judged
from exits import exit_cleanly, read_flags
from files import write_json
from studies.experiments import RESULTS, find_finished
from tracking import describe_process


@dataclass
class Flags:
    run: tyro.conf.Positional[str]
    """a run folder"""
    out: str = str(RESULTS)


def measure(run, device):
    """{"plain", "mirrored"}: test accuracies, of every seed in the folder `run`."""
    found = {"plain": [], "mirrored": []}
    for folder in find_finished(run)[1]:
        model, test_set = load_judged(Judged(str(folder)))
        model.to(device, memory_format=torch.channels_last)
        for name, network in (("plain", model), ("mirrored", Mirrored(model))):
            found[name].append(evaluate(network, test_set)["accuracy"])
    return found


@exit_cleanly
def main(flags):
    name, _ = find_finished(flags.run)
    if not (Path(flags.out) / name).is_dir():
        raise FileNotFoundError(
            f"no {Path(flags.out) / name}: python -m studies.report --add {flags.run} makes it"
        )
    device = choose_device("auto")
    measured = measure(flags.run, device) | describe_process(device)
    write_json(Path(flags.out) / name / "mirrored.json", measured)
    print(json.dumps({key: measured[key] for key in ("plain", "mirrored")}))


if __name__ == "__main__":
    main(read_flags(Flags))
