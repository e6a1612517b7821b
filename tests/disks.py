"""Disks that can be full: a small file system of its own, and one whose files are patched."""

import errno
import os
import pathlib
import subprocess

import pytest


class Tmpfs:
    """A file system of 1 MiB."""

    def __init__(self, folder):
        self.folder, self.filler = folder, folder / "filler"
        mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", folder)

    def fill(self):
        with self.filler.open("ab", buffering=0) as file:
            for size in (4096, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    assert error.errno == errno.ENOSPC

    def free(self):
        self.filler.unlink()


class Patched:
    """Files that take half of what is written to them while the disk is full."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.full, opened = folder, False, pathlib.Path.open

        def open_file(path, mode="r", *arguments, **options):
            file = opened(path, mode, *arguments, **options)
            return Writer(file, self) if "w" in mode and folder in path.parents else file

        monkeypatch.setattr(pathlib.Path, "open", open_file)

    def fill(self):
        self.full = True

    def free(self):
        self.full = False


class Writer:
    def __init__(self, file, disk):
        self.file, self.disk = file, disk

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, content):
        if not self.disk.full:
            return self.file.write(content)
        self.file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def mount(*arguments):
    if os.geteuid() != 0 or subprocess.run(["mount", *arguments], capture_output=True).returncode:
        pytest.skip("this needs the right to mount")
