"""What is logged when a run has its results: pictures, its mistakes, the numbers to compare."""

import contextlib
import json
from pathlib import Path

import torch

from cam import activate
from cam_pictures import blend, to_pixels
from dataset import batches
from distributed import alone
from evaluate import predict
from events import EventFile, hparams_end, picture
from plots import draw_grid, draw_samples
from tracking import only_warned
from wandb_sink import WandbSink, last_id

ROWS = 50  # of the table of predictions


def log_results(results, training):
    """Draw what is missing, and hand numbers and pictures to TensorBoard and W&B.

    Nothing is added where the same results were logged before, and nothing of it ends a run.
    `training` is the Training behind the results, an empty one where a checkpoint was explained.
    """
    folder = Path(results["run_dir"])
    if logged_before(folder, results):
        return
    rows, pictures = [], {}
    with only_warned("a picture of the results"):
        if training.model is not None:
            rows = worst_first(training.model, training.val_set)[:ROWS]
            draw_mistakes(training.val_set, rows, folder)
            if not (folder / "plots" / "samples.png").is_file():  # of seeds that were stacked
                with contextlib.redirect_stdout(None):
                    dealt = batches(training.train_set, results["config"], epoch=1)
                    draw_samples(training.train_set, dealt, folder)
        pictures = find_pictures(folder)
        log_to_tensorboard(folder, results, pictures)
    if training.model is not None:
        log_to_wandb(folder, results, training, rows, pictures)


def logged_before(folder, results):
    with contextlib.suppress(OSError, ValueError, AttributeError):  # one that is not ours
        written = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        return written.get("epochs") == results["epochs"]
    return False


@torch.no_grad()
def worst_first(model, dataset):
    """Rows {"index", "true", "predicted", "confidence"}: wrong answers, the surest first, then the
    right ones, the least sure first."""
    answers = predict(model, dataset, 0, len(dataset))
    parts = [logits.softmax(1).max(1) for logits, _ in answers]
    confidence, predicted = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    labels = dataset.labels.cpu()
    sign = torch.where(predicted == labels, 1.0, -1.0)
    order = torch.argsort(sign * confidence, stable=True).tolist()
    columns = (labels, predicted, confidence)
    names = ("true", "predicted", "confidence")
    return [
        {"index": i} | dict(zip(names, (column[i].item() for column in columns), strict=True))
        for i in order
    ]


def draw_mistakes(dataset, rows, folder):
    """plots/mistakes.png: validation images, what they are, and what the network takes them for."""
    wrong = [row for row in rows if row["true"] != row["predicted"]][:32]
    if not wrong:
        (folder / "plots" / "mistakes.png").unlink(missing_ok=True)  # those of fewer epochs
        return
    titles = [
        f"{dataset.classes[row['true']]}\n\N{RIGHTWARDS ARROW} "
        f"{dataset.classes[row['predicted']]}\n{row['confidence']:.2f}"
        for row in wrong
    ]
    images = dataset.images[[row["index"] for row in wrong]].cpu() / 255
    head = "Validation images: true class \N{RIGHTWARDS ARROW} predicted class, and its probability"
    draw_grid(images, titles, folder / "plots" / "mistakes.png", head)


def find_pictures(folder, most=60):
    """{tag: path} of the PNG files of a run: its plots, and the first of its class maps."""
    plots = {f"plots/{path.stem}": path for path in sorted((folder / "plots").glob("*.png"))}
    maps = sorted((folder / "cam").glob("*/*.png"), key=lambda path: int(path.stem.split("_")[1]))
    return plots | {f"cam/{p.parent.name}/{p.stem}": p for p in sorted(maps[:most])}


def final_numbers(results):
    """{tag: value} of the weights that are kept, which stand side by side in every table."""
    numbers = {
        f"best/{split}_{metric}": results[split][metric]
        for split in ("val", "test")
        for metric in ("accuracy", "loss")
    }
    return numbers | {"best_epoch": results["val"]["best_epoch"]}


def log_to_tensorboard(folder, results, pictures):
    if not (folder / "tensorboard").is_dir():
        return
    events, epochs = EventFile(folder / "tensorboard"), results["epochs"]
    try:
        events.add(final_numbers(results), epochs, hparams_end())
        for tag, path in pictures.items():
            events.add({}, epochs, picture(tag, path))
    finally:
        events.close()


def log_to_wandb(folder, results, training, rows, pictures):
    config = results["config"]
    sink = training.wandb
    if sink is None:  # of seeds that were stacked
        begun = last_id(folder)
        training.wandb = sink = WandbSink(folder, config, begun)
        for row in [] if begun else training.history:
            sink.log(row)
    draw_maps = (lambda: overlays(training, rows)) if training.has_map and rows else list
    sink.log_end(final_numbers(results), results, training.val_set, rows, draw_maps, pictures)


def overlays(training, rows):
    """The overlay of the class map of every row, a Pillow image."""
    indices = [row["index"] for row in rows]
    with alone():  # of several processes this one alone logs
        activation = activate(training.model, training.val_set, indices)
    limit = float(activation.maps.abs().max()) or 1.0
    photos = [to_pixels(training.val_set.images[index]) for index in indices]
    photos = [photo.resize((128, 128)) for photo in photos]
    pairs = zip(photos, activation.maps, strict=True)
    return [blend(photo, values, limit, activation.centres) for photo, values in pairs]
