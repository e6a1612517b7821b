"""Exercise 2.3: what does the CNN look at, and can we trust the picture?

    python exercise_2_3.py                                  # train, then draw the maps
    python exercise_2_3.py --checkpoint runs/...            # draw the maps alone
    python exercise_2_3.py --preset best                    # residual, crops, Muon: 105 min (core)
    python exercise_2_3.py --preset wide                    # twice the channels: 4 min (H100)
    python exercise_2_3.py --dataset digits                 # no download, one minute

Test accuracy on an H100: 0.8203 +- 0.0016 (two seeds), with --preset wide 0.9159 (one); on a core
of an AMD EPYC with --preset best 0.9008 +- 0.0022 (three).
"""

from cam import cam, check_cam
from checks import only_draws
from config import defaults, parse_config
from dataset import load_datasets
from evaluate import evaluate
from experiment import experiment, summarise
from explain import explain
from models import build_model
from plots import draw_confusion, draw_curves
from training import train

config = defaults | {
    # data
    "dataset": "imagenette",  # "digits" needs no download
    "image_size": 128,
    # model
    "model": {
        "kind": "cnn",
        "layers": [32, 64, 128, 256, 256],
        "dropout": 0.0,
        "residual": False,
        "min_map": 8,  # cells a side that the map keeps: a layer pools only while it does
    },
    "checkpoint": "none",  # a run folder or a best.pt: draw its maps, do not train
    # optimisation
    "optimizer": "adam",
    "lr": 1e-3,
    "batch_size": 64,
    "epochs": 40,
    # class activation maps
    "cam": {
        "per_class": 3,  # 0 draws all of them
        "indices": [],  # test images to draw instead
        "contrast": "none",  # "church,parachute": why the one and not the other
        "grid": False,  # show the cells of the map
    },
}
stem = {"kernel_size": 5, "stride": 2, "padding": 2}
best = {
    "model": {
        "layers": [stem | {"channels": 32}, {"channels": 64, "pool": 1}, 64]
        + [*2 * [{"channels": 128, "pool": 1}], *3 * [256]],
        "residual": True,
    },
    "optimizer": "muon",
    "lr": 3e-3,
    "batch_size": 128,
    "schedule": "cosine",
    "epochs": 42,
    "label_smoothing": 0.1,
    "flip": True,
    "crop": 0.25,
    "crop_size": 96,
}
wide_layers = (  # ten, 7.9 million parameters, for a GPU
    [stem | {"channels": 64}, *2 * [{"channels": 128, "pool": 1}], 128]
    + [*2 * [{"channels": 256, "pool": 1}], 256, *3 * [512]]
)
presets = {
    "digits": {"dataset": "digits", "epochs": 10},
    "best": best,
    "wide": best
    | {"model": best["model"] | {"layers": wide_layers}, "epochs": 120, "val_fraction": 0.05},
}


@experiment
def main(config):
    if only_draws(config):
        return explain(config)
    train_set, val_set, test_set = load_datasets(config)
    check_cam(test_set, config)  # an index that is not there ends the run now, not after it
    model = build_model(config)
    val_accuracies, val_losses = train(model, train_set, val_set, config)
    test = evaluate(model, test_set)  # once, with the weights that are kept
    draw_curves(config["run_dir"])
    draw_confusion(test["confusion"], test_set.classes, config["run_dir"])
    cam(model, test_set, config)
    return summarise(model, val_accuracies, val_losses, test, config["keep"])


if __name__ == "__main__":
    main(parse_config(config, presets))
