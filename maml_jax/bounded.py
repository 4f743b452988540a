"""Files of others, read in bounded memory: none is larger than it may be, or unpacks to far more than it is."""

import os
import tempfile
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from maml_jax.errors import DataError

MOST_BYTES = 512 * 2**20
"""Of an image or a list, which is read into memory as a whole."""
UNPACKED, RATIO = 2**30, 100
"""Bytes that any file may unpack to, and how many times its own size: images and weights shrink far less."""
_CHUNK = 1 << 20
NPZ_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    MemoryError,  # a header may claim any shape
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,  # what zipfile raises for a compression that it does not know
    RuntimeError,  # encrypted
    tokenize.TokenError,  # NumPy reads a header as Python
)
"""What a damaged .npz file makes its readers raise; `DataError` is among them, as a ValueError."""


def read_bytes(path: Path) -> bytes:
    """The content of an image or a list.

    Raises:
      DataError: it is larger than `MOST_BYTES`.
      OSError: it cannot be read.
    """
    check_whole(path, path.stat().st_size)
    return path.read_bytes()


def check_whole(what: Path | str, size: int) -> None:
    """Refuses to read so many bytes into memory; `what` names the file.

    Raises:
      DataError: there are more than `MOST_BYTES`.
    """
    if size > MOST_BYTES:
        raise DataError(f"cannot read {what}: it is larger than {MOST_BYTES // 2**20} MiB")


def check_unpacked(what: str, unpacked: int, packed: int) -> None:
    """Refuses what unpacks to more than 1 GiB and a hundred times its size.

    Args:
      what: name of the file, for the message.
      unpacked: bytes that it unpacks to, as far as is known.
      packed: bytes that it has.

    Raises:
      DataError: it does.
    """
    if unpacked > max(UNPACKED, RATIO * packed):
        raise DataError(
            f"{what} unpacks from {packed:,} bytes to {unpacked:,} or more: it is damaged, or made to fill the memory"
        )


def check_zip(path: Path) -> None:
    """As `check_unpacked`, of all that is in a zip file, such as .npz and .pth; a file that is none passes.

    Raises:
      DataError: it unpacks to too much.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            check_unpacked(str(path), sum(info.file_size for info in archive.infolist()), path.stat().st_size)


def unpack(source: BinaryIO, target: BinaryIO | None, what: str, packed: int) -> None:
    """Copies what comes out of a decompressor to a temporary file.

    Args:
      source: of what is unpacked.
      target: the temporary file; None: it is only read, which checks its checksum.
      what: as of `check_unpacked`.
      packed: as of `check_unpacked`.

    Raises:
      DataError: it unpacks to too much, or there is no room for it.
    """
    done = 0
    while chunk := source.read(_CHUNK):
        done += len(chunk)
        check_unpacked(what, done, packed)
        if target:
            try:
                target.write(chunk)
                target.flush()
            except OSError as error:
                refused = f"cannot unpack {what} in {tempfile.gettempdir()}: {error.strerror or error}"
                raise DataError(f"{refused}; set TMPDIR to a folder with room, or unpack it yourself") from error


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All arrays of an .npz file by name, without unpickling anything.

    Raises:
      DataError: it cannot be read, holds Python objects, or unpacks to too much.
    """
    try:
        check_zip(Path(path))
        # Opened here, because np.load leaves a damaged archive open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except DataError:
        raise
    except NPZ_DAMAGE as error:
        raise DataError(f"{path}: not a readable .npz file: {error}") from error
