"""Files that a reader sees whole or not at all."""

import contextlib
import json
import os
from pathlib import Path


def write_json(path, content):
    """Write `content`, tensors as lists, so that a reader never sees half a file."""
    text = json.dumps(content, indent=2, default=lambda value: value.tolist())
    write_whole(path, text + "\n")


def write_whole(path, text):
    """Write `text` so that `path` holds either its old content or all of the new one."""
    unfinished = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or a power cut may leave a name with nothing behind it
        unfinished.replace(path)
    except OSError:
        with contextlib.suppress(OSError):  # what is half written takes the room that is missing
            unfinished.unlink(missing_ok=True)
        raise
