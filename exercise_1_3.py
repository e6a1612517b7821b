"""Exercise 1.1: how good is a small MLP on MNIST?

python exercise_1_1.py                      # 50 epochs
python exercise_1_1.py --dataset digits     # no download
python exercise_1_1.py --seeds 0 1 2 3 4    # mean and standard deviation
"""

from config import defaults, parse_config
from dataset import load_datasets
from evaluate import evaluate
from experiment import experiment, summarise
from models import build_model
from plots import draw_confusion, draw_curves
from training import train

config = defaults | {
    # data
    "dataset": "cifar10",  # or "digits", which needs no download
    # model
    "model": {
        "kind": "cnn",
        # one entry a layer: its channels, or {"channels": 64, "kernel_size": 5, "pool": 1}
        "layers": [64, 128, 256, 128, 64],
        "kernel_size": 3,
        "stride": 1,
        "padding": 1,
        "dropout": 0.3,
        "residual": False,
    },
    # optimisation
    "optimizer": "adam",
    "lr": 1e-3,
    "batch_size": 64,
    "epochs": 75,
}
presets = {}


@experiment
def main(config):
    train_set, val_set, test_set = load_datasets(config)
    model = build_model(config)
    val_accuracies, val_losses = train(model, train_set, val_set, config)
    test = evaluate(model, test_set)  # once, with the weights of the best epoch
    draw_curves(config["run_dir"])
    draw_confusion(test["confusion"], test_set.classes, config["run_dir"])
    return summarise(model, val_accuracies, val_losses, test)


if __name__ == "__main__":
    main(parse_config(config, presets))
