"""What `train` leaves in memory for the end of a run, where it is part of an experiment."""

import contextlib
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import nn

from dataset import ImageDataset


@dataclass
class Training:
    """A finished training: the network with its best weights, its images, a row an epoch."""

    model: nn.Module | None = None
    train_set: ImageDataset | None = None
    val_set: ImageDataset | None = None
    history: list = field(default_factory=list)

    @property
    def classes(self):
        return self.val_set.classes if self.val_set else []


_current = ContextVar("training", default=None)


@contextlib.contextmanager
def remembered():
    """Yield a Training that is empty until `train`, called inside, leaves its own there."""
    training = Training()
    token = _current.set(training)
    try:
        yield training
    finally:
        _current.reset(token)


def leave_behind(**parts):
    """Set fields of the Training of the experiment around; without one nothing happens."""
    training = _current.get()
    for name, part in parts.items() if training else ():
        setattr(training, name, part)
