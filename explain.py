"""Exercise 2.3 without its training: the maps of a network that is there already."""

import sys
from pathlib import Path

from cam import cam, check_cam, check_maps
from checkpoint import data_dir_of, find_checkpoint, load_trained
from config import EXPLAINED, defaults
from dataset import data_sha256, load_as_trained
from devices import choose_device
from evaluate import evaluate
from experiment import summarise
from plots import draw_confusion
from tracking import check_same_data, known_sha256, open_run, write_manifest


def explain(config):
    """The results of config["checkpoint"], judged and drawn on the data it was trained for."""
    model, config, (train_set, val_set, test_set), epoch = load_explained(config)
    check_cam(test_set, config)
    device = next(model.parameters()).device
    sha256 = data_sha256(train_set)
    open_run(config, lambda folder: write_manifest(folder, config, sha256, device))
    val, test = evaluate(model, val_set), evaluate(model, test_set)
    draw_confusion(test["confusion"], test_set.classes, config["run_dir"])
    cam(model, test_set, config)
    results = summarise(model, [val["accuracy"]], [val["loss"]], test)
    results["val"]["best_epoch"] = epoch
    return results | {"config": config, "epochs": epoch}


def load_explained(config):
    """(network on its device, config, data sets, epoch) of config["checkpoint"]: all is that of its
    training, but for what is EXPLAINED by the config: where its data lie, what is drawn and where.

    Raises ValueError where the network has no maps, or the data have other classes.
    """
    path = find_checkpoint(config["checkpoint"])
    model, state = load_trained(path)
    check_maps(model, path, state["data"]["shape"])
    trained = defaults | state["config"] | {"data_dir": data_dir_of(state, path)}
    named, own = config["data_dir"] != defaults["data_dir"], trained["dataset"] == "image_folder"
    elsewhere = named or not (own or Path(trained["data_dir"]).is_dir())  # or downloaded anew
    if elsewhere:
        trained["data_dir"] = config["data_dir"]
    config = trained | {k: config[k] for k in EXPLAINED - {"data_dir"} if k in config}
    model.to(choose_device(config["device"]))
    sets = load_as_trained(config, state["data"], path)
    if own and not elsewhere:
        check_same_data(state, path, sets[0], "name what to explain by --data_dir")
    elif not own and known_sha256(state, path) not in (None, data_sha256(sets[0])):
        print(
            f"warning: the training images in {config['data_dir']} are not those that {path} "
            f"learnt from: it may have learnt some that are validation images here",
            file=sys.stderr,
        )
    return model, config, sets, state["epoch"]
