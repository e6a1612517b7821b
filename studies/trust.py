"""Does the network cheat? Measured on Imagenette, from a trained checkpoint of exercise 2.3.

    python -m studies.trust --checkpoint runs/exercise_2_3/...

Where do the maps lie and where is the object; what changes when the object, the background or the
sky goes; which colours are enough; does a map depend on what the network has learned. Every number
has a 95 % interval or a control. Writes trust.json, trust.txt and figures into --out. Needs
imagenette_boxes.csv in the data folder.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from boxes import FILE, load_boxes
from cam import activate
from checkpoint import find_checkpoint, load_trained
from config import defaults
from dataset import LOADERS, ImageDataset, make_generator, shrink, split_positions
from exits import exit_cleanly, read_flags
from files import write_json
from gallery import draw_gallery
from studies import edits
from studies.evidence import colours, delete, focus, randomise
from studies.objects import (
    SIX,
    call_with_noise,
    describe_six,
    edit,
    empty_each,
    explain_3536,
    locate,
)
from studies.subject import Subject, load_boxed
from studies.trust_figures import draw_emptied, draw_six, draw_study
from studies.trust_table import table_of
from tracking import describe_process


@dataclass
class Flags:
    checkpoint: str
    """a run folder, or a best.pt, of exercise 2.3 on imagenette"""
    data_dir: str = "data"
    out: str = "results/trust"
    seed: int = 0
    """fixes what is drawn: orders, places, pictures of the mosaics"""


def load_splits(config):
    """The whole training set and the test set, as the network takes them."""
    splits, classes, mean, std = LOADERS["imagenette"](config)
    return [
        ImageDataset(shrink(images, config["image_size"]), labels, classes, mean, std, split)
        for split, (images, labels) in splits.items()
    ]


def trained_on(length, config):
    """Positions in the whole training set of what was not held out for validation."""
    generator = make_generator(config["seed"], "split")
    return split_positions(length, config["val_fraction"], generator)[0].tolist()


def of_class(boxed, label):
    return (boxed.labels == label).nonzero()[:, 0].tolist()


def run_study(subject, train_set, boxes, seed):
    """All parts, as one dict of plain values. `boxes` are those of "val" and "train" by index."""
    test_set = subject.dataset
    generator, noise = make_generator(seed, "trust"), make_generator(seed, "noise")
    unseen = load_boxed(test_set, boxes["val"])
    seen = load_boxed(train_set, boxes["train"])
    study, noisy = {"classes": test_set.classes}, {}
    for name, boxed in (("unseen", unseen), ("seen", seen)):
        noisy[name] = call_with_noise(subject, boxed.pixels, boxed.masks, noise)
        kept, taken, swapped = edit(subject, boxed, noisy[name], generator)
        study[name] = {"images": len(boxed.labels), "where": locate(subject, boxed)}
        study[name] |= {"kept": kept, "taken": taken, "swapped": swapped}
        print(f"maps and edits of {len(boxed.labels)} {name} boxed images", flush=True)
    rows = of_class(unseen, test_set.classes.index("parachute"))
    parachutes = unseen[rows]
    study["parachutes"] = empty_each(subject, parachutes, noisy["unseen"][:, rows])
    study["colours"] = colours(subject, parachutes.pixels, generator)
    study["six"] = describe_six(subject, unseen)
    study["3536"] = explain_3536(subject, unseen)
    print("skies", flush=True)
    study["curves"] = delete(subject, test_set, generator)
    print("deletion and insertion", flush=True)
    study["mosaics"] = focus(subject, test_set, generator)
    study["randomised"] = randomise(subject, test_set, generator)
    return study


def draw_pictures(study, boxed, seed, folder):
    """emptied.png, with the first noise that `run_study` drew of `boxed`, its unseen pictures."""
    noise = edits.fill_with_pixels(boxed.pixels, boxed.masks, make_generator(seed, "noise"))
    rows = of_class(boxed, study["classes"].index("parachute"))
    draw_emptied(boxed[rows], noise[rows], study["parachutes"]["pictures"], folder)


@exit_cleanly
def main(flags):
    start = time.perf_counter()
    checkpoint = find_checkpoint(flags.checkpoint)
    model, state = load_trained(checkpoint)
    config = defaults | state["config"] | {"data_dir": flags.data_dir}
    if config["dataset"] != "imagenette" or not hasattr(model, "features"):
        raise ValueError(
            f"{flags.checkpoint} is of a {config['model']['kind']} on {config['dataset']}; the "
            f"study needs a CNN on imagenette: python exercise_2_3.py --preset best"
        )
    boxes = {s: load_boxes(flags.data_dir, s, config["resize"]) for s in ("val", "train")}
    if not boxes["val"]:
        raise FileNotFoundError(
            f"{FILE} is not in {flags.data_dir}, or has no box of a test image: the study needs "
            f"those of Imagenette's objects, ILSVRC's of its validation images; see FINDINGS.md"
        )
    train_set, test_set = load_splits(config)
    if not config["hold_out_boxed"]:  # else none of them was trained on
        boxes["train"] = {i: boxes["train"][i] for i in trained_on(len(train_set), config)
                          if i in boxes["train"]}  # fmt: skip
    study = run_study(Subject(model, test_set), train_set, boxes, flags.seed)
    about = describe_process(next(model.parameters()).device)
    about |= {"checkpoint": str(checkpoint), "epoch": state["epoch"]}
    about |= {"held_out_boxed": config["hold_out_boxed"], "seconds": time.perf_counter() - start}
    out = Path(flags.out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "trust.json", about | study)
    table = table_of(study)
    (out / "trust.txt").write_text(table + "\n", encoding="utf-8")
    draw_study(study, out)
    draw_pictures(study, load_boxed(test_set, boxes["val"]), flags.seed, out)
    for name, contrast in (("maps", None), ("church-against-parachute", ("church", "parachute"))):
        pair = contrast and tuple(map(test_set.classes.index, contrast))
        activation = activate(model, test_set, list(SIX), contrast=pair)
        paths = [f"{test_set.classes[test_set.labels[i]]}-{i}" for i in SIX]
        draw_gallery(out / name, test_set, SIX, activation, paths, boxes["val"])
        if contrast is None:
            draw_six(test_set, SIX, activation, boxes["val"], out)
    print(table)
    print(f"\n{about['seconds']:.0f} s; trust.json, trust.txt and figures are in {out}")


if __name__ == "__main__":
    main(read_flags(Flags))
