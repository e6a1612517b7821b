"""What `train` leaves in memory for the end of a run, where it is part of an experiment."""

import contextlib
from contextvars import ContextVar
from dataclasses import dataclass, field

from models import map_cells


@dataclass
class Training:
    """A finished training: the network with its best weights, its images, a row an epoch, the
    seconds that it took before it was resumed, and the W&B run, still open."""

    exercise: str = ""
    model: object = None
    train_set: object = None
    val_set: object = None
    history: list = field(default_factory=list)
    seconds_before: float = 0.0
    wandb: object = None

    @property
    def has_map(self):
        """Whether maps of the network show where it looks."""
        return self.val_set is not None and map_cells(self.model, self.val_set.images.shape[1:]) > 1

    @property
    def classes(self):
        return self.val_set.classes if self.val_set else []


_current = ContextVar("training", default=None)


@contextlib.contextmanager
def remembered(exercise):
    """Yield a Training that is empty until `train`, called inside, leaves its own there."""
    training = Training(exercise)
    token = _current.set(training)
    try:
        yield training
    finally:
        _current.reset(token)
        if training.wandb:
            training.wandb.close()


def best_of(history):
    """The row of the best epoch: that of the highest validation accuracy, of equal ones that of the
    lowest validation loss."""
    return max(history, key=lambda row: (row["val/accuracy"], -row["val/loss"]))


def kept_of(history, keep):
    """The row of the epoch whose weights are kept, and judged on the test images."""
    return history[-1] if keep == "last" else best_of(history)


def leave_behind(**parts):
    """Set fields of the Training of the experiment around; False without one."""
    training = _current.get()
    for name, part in parts.items() if training else ():
        setattr(training, name, part)
    return training is not None


def running_exercise():
    """The name of the exercise that runs in this process, "" without one."""
    training = _current.get()
    return training.exercise if training else ""


def current_exercise(folder):
    """The exercise that runs, or the one whose name is among the parents of a run folder."""
    names = [parent.name for parent in folder.parents]
    found = [name for name in names if name.startswith("exercise_")]
    return running_exercise() or [*found, folder.parent.name][0]
