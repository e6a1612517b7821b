"""A trained network whose answers another one learns instead of the labels.

Knowledge distillation (Hinton, Vinyals and Dean 2015) at temperature 1, on images that are deformed
alike for both (Beyer et al. 2022).
"""

from pathlib import Path

import torch

from checkpoint import find_checkpoint, load_trained


def load_teacher(config, train_set, device):
    """teach(images) -> probabilities (n, K), of the network in config["teacher"]; None for "none".

    Of a folder of several seeds it is the one with this seed. Raises FileNotFoundError where there
    is none, and ValueError where it was not trained on the images of `train_set`, and on these
    alone: it may know those that are held out.
    """
    if config["teacher"] == "none":
        return None
    folder = Path(config["teacher"])
    of_seed = folder / f"seed_{config['seed']}"
    path = find_checkpoint(of_seed if of_seed.is_dir() else folder)
    model, state = load_trained(path)
    if state["data"] != train_set.about():
        raise ValueError(
            f"--teacher {path} was trained on other images than this network would be: train both "
            f"on the same data, with one --seed, --val_fraction and --deskew"
        )
    model.to(device, memory_format=torch.channels_last)

    @torch.no_grad()
    def teach(images):
        return model(images).float().softmax(1)

    return teach
