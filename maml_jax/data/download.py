"""Downloads of raw files, checked against a checksum that is known beforehand."""

import contextlib
import dataclasses
import logging
from pathlib import Path

import pooch
import requests

from maml_jax.data import staging
from maml_jax.errors import DataError
from maml_jax.progress import track

_CHUNK = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte
_RETRIES = 2

pooch.get_logger().setLevel(logging.WARNING)  # what it tells, `track` tells


@dataclasses.dataclass(frozen=True)
class Download:
    """A file to be had.

    Attributes:
      file: its name.
      url: where from.
      size: its bytes.
      sha256: its SHA-256, hexadecimal.
    """

    file: str
    url: str
    size: int
    sha256: str


def fetch(download: Download, folder: Path, progress: bool = True) -> Path:
    """Downloads a file into a folder, unless it is there. It appears all at once, and only if its checksum is right.

    Of several processes at once, one downloads and the others wait for it.

    Args:
      download: which.
      folder: where to; made if there is none.
      progress: whether to tell on standard error how far it is.

    Returns:
      The file.

    Raises:
      DataError: if it cannot be had or written, or is not the one expected.
    """
    file = folder / download.file
    if file.is_file():
        return file
    new_folders = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with staging.alone(folder):
            if not file.is_file():
                _download(download, folder, progress)
    except BaseException as error:
        with contextlib.suppress(OSError):
            for new in new_folders:
                new.rmdir()
        if isinstance(error, OSError):  # those of requests are, too
            raise DataError(f"cannot download {download.url}: {error}") from error
        raise
    return file


def _download(download: Download, folder: Path, progress: bool) -> None:
    """Downloads a file into a folder under construction and moves it from there: pooch keeps nothing of a wrong one."""
    file = folder / download.file
    staging.sweep(file)
    with staging.beside(file) as unfinished, contextlib.closing(_Bar(download, progress)) as bar:
        # As it is: requests would decompress what a server sends as encoded, and the checksum be that of another file.
        get = pooch.HTTPDownloader(bar, _CHUNK, timeout=_TIMEOUT, headers={"Accept-Encoding": "identity"})
        registry, urls = {download.file: f"sha256:{download.sha256}"}, {download.file: download.url}
        there = pooch.create(unfinished, "", registry=registry, urls=urls, retry_if_failed=_RETRIES)
        try:
            there.fetch(download.file, downloader=get)
        except requests.RequestException:  # some of these are ValueErrors too
            raise
        except ValueError as error:
            wrong = f"{download.url} is not the file expected: its SHA-256 should be {download.sha256}"
            raise DataError(wrong) from error
        (unfinished / download.file).replace(file)
        unfinished.rmdir()


class _Bar:
    """The progress bar that pooch asks for, shown as all others are."""

    def __init__(self, download: Download, show: bool):
        self._arguments = range(-(-download.size // _CHUNK)), f"downloading {download.file}", "MiB", show
        self._steps, self._total = iter(()), 0

    @property
    def total(self) -> int:
        """Bytes to come."""
        return self._total

    @total.setter
    def total(self, count: int) -> None:
        """Begins anew: pooch says at each attempt how many are to come."""
        self._total = count
        self._steps = track(*self._arguments)

    def update(self, count: int) -> None:
        """Goes on by a chunk."""
        next(self._steps, None)

    def close(self) -> None:
        """Ends the bar; what is said of progress after that is not heard."""
        self._steps = iter(())

    reset = close
