"""Files below a folder or inside an archive, listed and read alike.

Nothing is ever unpacked under its own name, so an archive made to write outside its folder cannot.
"""

import bz2
import contextlib
import functools
import gzip
import hashlib
import lzma
import os
import tarfile
import tempfile
import threading
import weakref
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from maml_jax.bounded import check_whole, read_bytes, unpack
from maml_jax.data.source import stamp
from maml_jax.errors import DataError

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff"),
)
LIST_SUFFIXES = (".csv", ".tsv", ".txt", ".lst", ".list", ".json")
HIDDEN, UNKNOWN = "hidden files and folders", "files of a kind that is not read"
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_DECOMPRESS = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_DAMAGE = (
    OSError,
    EOFError,
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,  # what zipfile raises for a compression that it does not know
)


class Tree(Protocol):
    """A folder or an archive.

    Attributes:
      path: where it is.
    """

    path: Path

    @property
    def members(self) -> list[str]:
        """Sorted paths below the root, '/' between their parts: images, lists, and folders, which end in '/'."""
        ...

    @property
    def left_out(self) -> Mapping[str, Sequence[str]]:
        """By reason, the paths of what is not among the members: hidden files, those of other kinds, and the like."""
        ...

    def stamp(self) -> dict[str, Any]:
        """What stands for the content in a fingerprint."""
        ...

    def read(self, member: str) -> bytes:
        """A file's content.

        Raises:
          DataError: if it cannot be read.
        """
        ...


def is_archive(path: Path) -> bool:
    """Says whether a file is an archive, by its name."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES) and path.is_file()


def open_tree(path: Path) -> Tree:
    """Opens a folder, or an archive: zip, or tar, also compressed by gzip, bzip2 or xz.

    Raises:
      DataError: if there is no such folder or archive.
    """
    if path.is_dir():
        return Folder(path)
    if is_archive(path):
        return Zip(path) if path.suffix.lower() == ".zip" else Tar(path)
    raise DataError(f"{path.absolute()} is neither a folder nor an archive ({', '.join(ARCHIVE_SUFFIXES)})")


def is_image(member: str) -> bool:
    """Says whether a member is an image, by its name."""
    return member.lower().endswith(IMAGE_SUFFIXES)


def _why_not(member: str) -> str:
    """Why a path is left out; '' if it is not."""
    parts = member.rstrip("/").split("/")
    if ".." in parts:
        return "paths that lead outside"
    if any(part.startswith((".", "__MACOSX")) for part in parts):
        return HIDDEN
    return "" if member.lower().endswith(("/", *LIST_SUFFIXES)) or is_image(member) else UNKNOWN


def _sifted(names: Iterable[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The paths of an archive: the name there of each member, and what is left out by reason.

    Archives may be packed with './' or '/' at the front, or by Windows.
    """
    kept: dict[str, str] = {}
    left_out: dict[str, list[str]] = defaultdict(list)
    for name in names:
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        member = "/".join(parts) + "/" * name.endswith(("/", "\\"))
        if parts and (reason := _why_not(member)):
            left_out[reason].append(member)
        elif parts and not member.endswith("/") and member in kept:
            left_out["files whose path comes twice in the archive"].append(member)
        elif parts:
            kept[member] = name
    return dict(sorted(kept.items())), dict(left_out)


class Folder:
    """A folder; symbolic links are followed."""

    def __init__(self, path: Path):
        self.path = path

    @functools.cached_property
    def _found(self) -> tuple[dict[str, os.stat_result | None], dict[str, list[str]]]:
        """Each member's status, None for folders, and what is left out by reason."""
        left_out: dict[str, list[str]] = defaultdict(list)
        try:
            return dict(sorted(self._walk("", (os.path.realpath(self.path),), left_out))), dict(left_out)
        except OSError as error:
            raise DataError(f"cannot list {self.path}: {error}") from error

    def _walk(
        self, below: str, above: tuple[str, ...], left_out: dict[str, list[str]]
    ) -> Iterator[tuple[str, os.stat_result | None]]:
        with os.scandir(self.path / below) as entries:
            for entry in entries:
                member = below + entry.name + ("/" if entry.is_dir() else "")
                reason = _why_not(member)
                place = os.path.realpath(entry.path) if entry.is_dir() and entry.is_symlink() else entry.path
                if place in above:
                    reason = "links to a folder above"
                elif not os.path.exists(entry.path):
                    reason = "links to nothing"
                if reason:
                    left_out[reason].append(member)
                elif entry.is_dir():
                    yield member, None
                    yield from self._walk(member, (*above, place), left_out)
                else:
                    yield member, entry.stat()

    @property
    def _status(self) -> dict[str, os.stat_result | None]:
        return self._found[0]

    @property
    def members(self) -> list[str]:
        """See `Tree`."""
        return list(self._status)

    @property
    def left_out(self) -> Mapping[str, Sequence[str]]:
        """See `Tree`."""
        return self._found[1]

    def stamp(self) -> dict[str, Any]:
        """One stamp for all files, which changes if one is added, removed or changed."""
        digest = hashlib.sha256()
        files = {member: status for member, status in self._status.items() if status}
        for member, status in files.items():
            digest.update(f"{member}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return {"folder": self.path.name, "files": len(files), "stamps_sha256": digest.hexdigest()}

    def read(self, member: str) -> bytes:
        """See `Tree`."""
        try:
            return read_bytes(self.path / member)
        except OSError as error:
            raise DataError(f"cannot read {self.path / member}: {error}") from error


class Zip:
    """A zip archive."""

    def __init__(self, path: Path):
        self.path = path

    @functools.cached_property
    def _zip(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except _DAMAGE as error:
            raise _damaged(str(self.path), error) from error

    @functools.cached_property
    def members(self) -> list[str]:
        """See `Tree`."""
        return list(self._sifted[0])

    @property
    def left_out(self) -> Mapping[str, Sequence[str]]:
        """See `Tree`."""
        return self._sifted[1]

    @functools.cached_property
    def _sifted(self) -> tuple[dict[str, str], dict[str, list[str]]]:
        return _sifted(self._zip.namelist())

    def stamp(self) -> dict[str, Any]:
        """The archive's name, size and time of change."""
        return stamp(self.path)

    def read(self, member: str) -> bytes:
        """See `Tree`."""
        try:
            info = self._zip.getinfo(self._sifted[0].get(member, member))
            check_whole(f"{member} in {self.path}", info.file_size)
            return self._zip.read(info)
        except (*_DAMAGE, KeyError, RuntimeError) as error:  # RuntimeError: encrypted
            raise _damaged(f"{member} in {self.path}", error) from error


class Tar:
    """A tar archive. A compressed one is decompressed into a temporary file, since reading goes back and forth."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()

    @functools.cached_property
    def _infos(self) -> tuple[tarfile.TarFile, dict[str, tarfile.TarInfo]]:
        try:
            with contextlib.ExitStack() as stack:  # which closes the file if anything is wrong
                if decompress := _DECOMPRESS.get(self.path.suffix.lower()):
                    file = stack.enter_context(tempfile.TemporaryFile())
                    with decompress(self.path) as compressed:
                        unpack(compressed, file, str(self.path), self.path.stat().st_size)
                else:
                    file = stack.enter_context(self.path.open("rb"))
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - tarfile.BLOCKSIZE))
                if file.read().strip(b"\0"):  # tarfile takes an archive that breaks off at a header for a whole one
                    raise EOFError("truncated: the end-of-archive mark is missing")
                file.seek(0)
                archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
                infos = {info.name + "/" * info.isdir(): info for info in archive if info.isfile() or info.isdir()}
                file.seek(archive.offset)
                if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # and a damaged header for the end
                    raise tarfile.ReadError(f"damaged at byte {archive.offset}")
                weakref.finalize(self, stack.pop_all().close)
                return archive, infos
        except _DAMAGE as error:
            raise _damaged(str(self.path), error) from error

    @functools.cached_property
    def members(self) -> list[str]:
        """See `Tree`."""
        return list(self._sifted[0])

    @property
    def left_out(self) -> Mapping[str, Sequence[str]]:
        """See `Tree`."""
        return self._sifted[1]

    @functools.cached_property
    def _sifted(self) -> tuple[dict[str, str], dict[str, list[str]]]:
        return _sifted(self._infos[1])

    def stamp(self) -> dict[str, Any]:
        """The archive's name, size and time of change."""
        return stamp(self.path)

    def read(self, member: str) -> bytes:
        """See `Tree`."""
        archive, infos = self._infos
        try:
            info = infos[self._sifted[0].get(member, member)]
            check_whole(f"{member} in {self.path}", info.size)
            with self._lock:
                return archive.extractfile(info).read()
        except (*_DAMAGE, KeyError) as error:
            raise _damaged(f"{member} in {self.path}", error) from error


def _damaged(what: str, error: Exception) -> DataError:
    return DataError(f"cannot read {what}: {error or type(error).__name__}; download it again")
