"""A folder that one process at a time may write to."""

import contextlib
import datetime
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from maml_jax.errors import ConfigError
from maml_jax.files import writing
from maml_jax.progress import say

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FILE = ".lock"


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Keeps other processes that ask the same out of an existing folder.

    The operating system gives the lock up when the process ends, however it does: what a killed one leaves in the
    folder's file `.lock` says who it was, and keeps nobody out. Where a file system has no locks, that is said, and
    nobody is kept out.

    Raises:
      ConfigError: another process is at work in the folder; names its host and number.
      DiskError: the folder cannot be written to.
    """
    with writing(folder / FILE):
        opened = (folder / FILE).open("ab+", buffering=0)
    with opened as file:
        if _taken(file):
            raise ConfigError(
                f"{_holder(file)} is at work in {folder}; wait until it has ended, or give another --workdir"
            )
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        with writing(folder / FILE):
            file.truncate(0)
            file.write(json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": since}).encode())
        yield


def _taken(file) -> bool:
    """Whether another process has the file; else this one has it from now on."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        say(f"note: {file.name} cannot be locked ({error.strerror}): see to it that one run at a time uses the folder")
    return False


def _holder(file) -> str:
    file.seek(0)
    try:
        known = json.loads(file.read())
        return f"process {known['process']} on {known['host']}, since {known['since']},"
    except (ValueError, KeyError, TypeError):  # it has only just begun
        return "another process"
