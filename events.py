"""TensorBoard's event files, written at once and always whole, and what is in them beside curves.

torch's SummaryWriter hands what it is given to a thread, which dies with a traceback where the disk
is full and leaves half a record, behind which TensorBoard reads nothing.
"""

import json
import os
import socket
import struct
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import custom_scalars, text

from config import flatten, flatten_telling

CHARTS = {
    "loss, training and validation (nats per image)": ["train/loss", "val/loss"],
    "accuracy, training and validation": ["train/accuracy", "val/accuracy"],
    "learning rate": ["train/lr"],
    "images a second": ["train/images_per_second"],
    "L2 norm of the weights of every layer": ["weight_norm/.*"],
    "L2 norm of the gradient of every layer, 64 fixed images": ["gradient_norm/.*"],
}


class EventFile:
    """A new event file in `folder`; TensorBoard drops the steps from `purge_step` on, where one is
    given, of those before it. Raises OSError where it cannot be written."""

    def __init__(self, folder, purge_step=None):
        seconds, fraction = divmod(next_stamp(Path(folder)), 10**9)
        name = f"events.out.tfevents.{seconds:010d}.{fraction:09d}.{socket.gethostname()}"
        self.file = (Path(folder) / f"{name}.{os.getpid()}").open("wb", buffering=0)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def add(self, metrics, step, *values):
        """Scalars {tag: value} and other Summary.Values of one step, all of them or, with OSError,
        none."""
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items()]
        values = [*scalars, *values]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _write(self, event):
        end = self.file.tell()
        try:
            RecordWriter(_Whole(self.file)).write(event.SerializeToString())
        except OSError:
            self.file.seek(end)
            self.file.truncate()
            raise

    def close(self):
        self.file.close()


def next_stamp(folder):
    """Nanoseconds for the name of a new file: now, or where the clock was set back meanwhile, after
    those that are there. Files are read in the order of their names."""
    names = [path.name.split(".") for path in folder.glob("events.out.tfevents.*.*.*")]
    earlier = [10**9 * int(n[3]) + int(n[4]) for n in names if n[3].isdigit() and n[4].isdigit()]
    return max([time.time_ns(), *(stamp + 1 for stamp in earlier)])


def last_step(folder):
    """The largest step that the event files in `folder` have scalars of; 0 where there is none."""
    if not (paths := sorted(Path(folder).glob("events*"))):
        return 0
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader as Read

    events = [event for path in paths for event in Read(str(path)).Load()]
    scalars = [e for e in events if any(v.HasField("simple_value") for v in e.summary.value)]
    return max((event.step for event in scalars), default=0)


class _Whole:
    """A file whose write writes everything; a raw one may stop at the end of the disk."""

    def __init__(self, file):
        self.file = file

    def write(self, content):
        while content:
            content = content[self.file.write(content) :]


def chart_layout():
    """The page "custom scalars": curves that belong together in one chart."""
    charts = {title: ["Multiline", [f"^{tag}$" for tag in tags]] for title, tags in CHARTS.items()}
    return custom_scalars({"training": charts}).value[0]


def config_text(config):
    """The config as a table, a row a key."""
    rows = [f"| {key} | `{json.dumps(value)}` |" for key, value in flatten(config).items()]
    return text("config", "\n".join(["| key | value |", "|---|---|", *rows])).value[0]


def hparams_start(config, name):
    """The row of the run on the page "HPARAMS"; its columns are the keys of the config."""
    flat = flatten_telling(config)
    plain = {
        k: v if isinstance(v, bool | int | float | str) else json.dumps(v) for k, v in flat.items()
    }
    return hparams_pb(plain, trial_id=name).value[0]


def hparams_end():
    """That the run has succeeded, for the page "HPARAMS"."""
    info = SessionEndInfo(status=Status.Value("STATUS_SUCCESS"), end_time_secs=time.time())
    about = metadata.create_summary_metadata(HParamsPluginData(session_end_info=info))
    tag = metadata.SESSION_END_INFO_TAG
    return Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)


def picture(tag, path):
    """The PNG at `path` as it is. Raises OSError where it cannot be read."""
    content = path.read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
    return Summary.Value(tag=tag, image=image)
