"""Downloads of raw files, checked against a checksum that is known beforehand."""

import contextlib
import dataclasses
import hashlib
import http.client
import os
import secrets
import urllib.request
from pathlib import Path

from maml_jax.errors import DataError
from maml_jax.progress import track

_CHUNK = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte


@dataclasses.dataclass(frozen=True)
class Download:
    """A file to be had.

    Attributes:
      file: Its name.
      url: Where from.
      size: Its bytes.
      sha256: Its SHA-256, hexadecimal.
    """

    file: str
    url: str
    size: int
    sha256: str


def fetch(download: Download, folder: Path, progress: bool = True) -> Path:
    """Downloads a file into a folder, unless it is there. It appears all at once, and only if its checksum is right.

    Args:
      download: Which.
      folder: Where to; made if there is none.
      progress: Whether to tell on standard error how far it is.

    Returns:
      The file.

    Raises:
      DataError: If it cannot be had or written, or is not the one expected.
    """
    file = folder / download.file
    if file.is_file():
        return file
    partial = folder / f".{download.file}.{secrets.token_hex(4)}.part"
    new_folders = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with urllib.request.urlopen(download.url, timeout=_TIMEOUT) as response, partial.open("wb") as out:
            chunks = range(-(-download.size // _CHUNK))
            for _ in track(chunks, f"downloading {download.file}", "MiB", progress):
                chunk = response.read(_CHUNK)
                digest.update(chunk)
                out.write(chunk)
            surplus = response.read(1)
        if surplus or digest.hexdigest() != download.sha256:
            raise DataError(f"{download.url} is not the file expected: its SHA-256 should be {download.sha256}")
        os.replace(partial, file)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            for new in new_folders:
                new.rmdir()
        if isinstance(error, OSError | http.client.HTTPException):
            raise DataError(f"cannot download {download.url}: {error}") from error
        raise
    return file
