"""Class stores: the images of a data set as uint8 arrays sorted by class, built once and then memory-mapped.

A store is a folder of one `.npy` file per split and a `store.json`, which `build` makes from a `Source` and
`open_store` maps. The folder's name carries a hash of everything the pixels depend on, so that a store never goes
stale: other settings or other raw files make another folder.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import rich.progress

from maml_jax.data.source import ClassImages, Source
from maml_jax.errors import DataError

FORMAT = 1
MANIFEST = "store.json"
_SECONDS_BETWEEN_LINES = 5.0


@dataclasses.dataclass(frozen=True, eq=False)
class ClassStore:
    """The images of one split, sorted by class.

    Attributes:
      images: uint8 `[images, height, width, channels]`, read-only and memory-mapped.
      offsets: int64 `[classes + 1]`; the images of class `c` are `images[offsets[c]:offsets[c + 1]]`.
      class_names: Name of each class.
      split: 'train', 'val' or 'test'.
    """

    images: np.ndarray
    offsets: np.ndarray
    class_names: tuple[str, ...]
    split: str

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def counts(self) -> np.ndarray:
        """Images per class, int64 `[classes]`."""
        return np.diff(self.offsets)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self.images.shape[1:]

    @property
    def nbytes(self) -> int:
        """Bytes that all images take."""
        return self.images.nbytes

    def class_images(self, c: int) -> np.ndarray:
        """Returns the images of class `c`, a view: uint8 `[counts[c], height, width, channels]`.

        Raises:
          IndexError: If `c` is not in `[0, num_classes)`; negative numbers do not count from the end.
        """
        if not 0 <= c < self.num_classes:
            raise IndexError(f"class {c} of a store of {self.num_classes} classes")
        return self.images[self.offsets[c] : self.offsets[c + 1]]


def build(source: Source, cache_dir: str | os.PathLike[str], progress: bool = True) -> Path:
    """Builds the store of `source` under `cache_dir`, or finds it there.

    The store appears all at once: it is written to a hidden folder beside its place, then renamed. If another process
    was faster, that one's store is used. A build that fails or is interrupted leaves nothing behind. Memory holds one
    class at a time.

    Args:
      source: What to build.
      cache_dir: Folder of stores; made if there is none.
      progress: Whether to tell on standard error how far it is.

    Returns:
      The store's folder, `<cache_dir>/<name>-<hash>`.

    Raises:
      DataError: If the source's images are missing, damaged or not what the source says, if the store is there but
        damaged, or if `cache_dir` cannot be written.
    """
    cache_dir = Path(cache_dir)
    folder = cache_dir / f"{source.name}-{source.digest()}"
    if os.path.exists(folder):
        _check_files(folder)
        return folder
    new_folders = [parent for parent in (cache_dir, *cache_dir.parents) if not os.path.exists(parent)]
    # Not tempfile.mkdtemp, whose folders only their owner can read: several users may share a cache.
    staging = cache_dir / f".{folder.name}.{secrets.token_hex(4)}.tmp"
    try:
        staging.mkdir(parents=True)
        _write_store(source, staging, progress)
        _publish(staging, folder)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty: somebody else has begun to use it
            for new in new_folders:
                new.rmdir()
        if isinstance(error, OSError):
            way_out = "choose another folder with --config.data.cache_dir=FOLDER"
            raise DataError(f"cannot write the store {folder}: {error}; {way_out}") from error
        raise
    return folder


def open_store(path: str | os.PathLike[str], split: str) -> ClassStore:
    """Maps one split of the store at `path`. Its sizes are checked, not its every byte: that is `verify`.

    Raises:
      DataError: If the store has no such split, or is damaged.
    """
    path = Path(path)
    entries = _read_manifest(path)["splits"]
    if split not in entries:
        raise DataError(f"the store {path} has no split '{split}'; it has {', '.join(entries)}")
    entry, file = entries[split], path / f"{split}.npy"
    _check_size(file, entry)
    try:
        images = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise _damaged(path, f"{file.name} is not a NumPy file") from error
    offsets = np.concatenate([[0], np.cumsum(entry["counts"], dtype=np.int64)])
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != offsets[-1]:
        raise _damaged(path, f"{file.name} holds {images.dtype} {list(images.shape)}, not {offsets[-1]} images")
    return ClassStore(images, offsets, tuple(entry["classes"]), split)


def split_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Returns the splits of the store at `path`.

    Raises:
      DataError: If it is damaged.
    """
    return tuple(_read_manifest(Path(path))["splits"])


def verify(path: str | os.PathLike[str]) -> None:
    """Reads the whole store at `path` and compares every split with its checksum.

    Raises:
      DataError: If anything differs.
    """
    path = Path(path)
    for split, entry in _read_manifest(path)["splits"].items():
        open_store(path, split)
        with (path / f"{split}.npy").open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != entry["sha256"]:
            raise _damaged(path, f"{split}.npy differs from its checksum")


def _write_store(source: Source, folder: Path, progress: bool) -> None:
    """Writes all splits and, last, the manifest."""
    entries = {}
    for split, classes in source.checked_splits():
        tracked = _track(classes, f"building {source.name}: {split}", progress)
        with contextlib.closing(tracked):
            digest = _write_images(tracked, sum(c.count for c in classes), source.image_shape, folder / f"{split}.npy")
        entries[split] = {
            "classes": [c.name for c in classes],
            "counts": [c.count for c in classes],
            "bytes": (folder / f"{split}.npy").stat().st_size,
            "sha256": digest,
        }
    manifest = {
        "format": FORMAT,
        "name": source.name,
        "image_shape": list(source.image_shape),
        "fingerprint": dict(source.fingerprint),
        "splits": entries,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _write_images(classes: Iterator[ClassImages], count: int, shape: tuple[int, int, int], file: Path) -> str:
    """Writes the images of all classes as one `.npy` file and returns its SHA-256.

    Front to back rather than through a memory map: on a full disk a write raises, where a map kills the process.
    """
    digest = hashlib.sha256()
    with file.open("w+b") as out:
        np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)})
        out.seek(0)
        digest.update(out.read())
        for c in classes:
            images = c.read(shape)
            digest.update(images.data)
            out.write(images.data)
    return digest.hexdigest()


def _publish(staging: Path, folder: Path) -> None:
    """Renames the finished `staging` to `folder`, unless another builder has put its store there meanwhile."""
    try:
        os.rename(staging, folder)
    except OSError:
        if not folder.exists():
            raise
        _check_files(folder)
        shutil.rmtree(staging)


def _check_files(folder: Path) -> None:
    """Raises DataError unless `folder` holds every file that its manifest names, in full length."""
    for split, entry in _read_manifest(folder)["splits"].items():
        _check_size(folder / f"{split}.npy", entry)


def _check_size(file: Path, entry: Mapping[str, Any]) -> None:
    size = file.stat().st_size if file.is_file() else 0
    if size != entry["bytes"]:
        raise _damaged(file.parent, f"{file.name} has {size} bytes instead of {entry['bytes']}")


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the content of `store.json`, checked to have what this module reads of it."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        readable = manifest["format"] == FORMAT and all(
            len(entry["classes"]) == len(entry["counts"]) and entry.keys() >= {"bytes", "sha256"}
            for entry in manifest["splits"].values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"cannot read {MANIFEST}: {error!r}") from error
    if not readable:
        raise _damaged(folder, f"{MANIFEST} is not of format {FORMAT}")
    return manifest


def _damaged(folder: Path, what: str) -> DataError:
    return DataError(f"the store {folder} is damaged ({what}); delete {folder} and run again")


def _track(classes: Sequence[ClassImages], label: str, show: bool) -> Iterator[ClassImages]:
    """Yields the classes and tells how far it is: a bar if standard error is a terminal, else a line now and then."""
    if show and sys.stderr.isatty():
        console = rich.console.Console(stderr=True)
        yield from rich.progress.track(classes, description=label, console=console, transient=True)
        return
    spoke = time.monotonic()
    for done, c in enumerate(classes):
        if show and time.monotonic() - spoke > _SECONDS_BETWEEN_LINES:
            print(f"{label}, {done} of {len(classes)} classes", file=sys.stderr, flush=True)
            spoke = time.monotonic()
        yield c
