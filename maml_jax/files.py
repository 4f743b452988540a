"""The files of a work directory, written so that a crash leaves no half of one."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from maml_jax.errors import DiskError


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Calls `write` with a temporary file, then renames it to `path`.

    Raises:
      DiskError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                write(file)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it, unless it is there.

    Raises:
      DiskError: it cannot be made, or is a file.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Gives what the operating system refuses the name of the file.

    Raises:
      DiskError: within the context, an `OSError` came.
    """
    try:
        yield
    except DiskError:
        raise
    except OSError as error:
        raise cannot_write(path, error.strerror or str(error)) from error


def cannot_write(path: Path, reason: str) -> DiskError:
    """The error that a file cannot be written."""
    return DiskError(f"cannot write {path}: {reason}; what stood there before is whole: mend that and run again")


def to_json(value: Any, indent: int | None = 2) -> str:
    """JSON and a line's end, in which NaN and infinities, which JSON has not, are null; None for `indent`: one line."""

    def plain(value):
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return [plain(part) for part in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(value), indent=indent, allow_nan=False) + "\n"
