"""TensorBoard's event files, written at once and always whole.

torch's SummaryWriter hands what it is given to a thread, which dies with a traceback where the disk
is full and leaves half a record, behind which TensorBoard reads nothing.
"""

import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


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
