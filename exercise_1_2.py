"""Exercise 1.2: what do skip connections add to an MLP?

    python exercise_1_2.py                      # 50 epochs, a minute on 2 cores
    python exercise_1_2.py --dataset digits     # no download, 5 s
    python exercise_1_2.py --dataset cifar10    # where it stalls near 50 %
    python exercise_1_2.py --seeds 0 1 2 3 4    # mean and standard deviation

Five seeds on 2 cores of an AMD EPYC: test accuracy 0.9747 +- 0.0012, loss 0.088 +- 0.002.
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
    "dataset": "mnist",  # "digits" needs no download
    # model
    "model": {
        "kind": "skip_mlp",  # "mlp" without "dropout" is the plain network
        "layers": [784, 128, 64, 64, 10],  # its ends follow the data set
        "dropout": 0.5,  # inside the blocks
    },
    # optimisation
    "optimizer": "adam",
    "lr": 1e-4,  # above 0; "digits" has its own, in presets
    "batch_size": 64,
    "epochs": 50,
}
presets = {
    "digits": {"dataset": "digits", "lr": 1e-3},  # 1,050 steps instead of 42,200
}


@experiment
def main(config):
    train_set, val_set, test_set = load_datasets(config)
    model = build_model(config)
    val_accuracies, val_losses = train(model, train_set, val_set, config)
    test = evaluate(model, test_set)  # once, with the weights that are kept
    draw_curves(config["run_dir"])
    draw_confusion(test["confusion"], test_set.classes, config["run_dir"])
    return summarise(model, val_accuracies, val_losses, test, config["keep"])


if __name__ == "__main__":
    main(parse_config(config, presets))
