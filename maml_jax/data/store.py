"""Class stores: the images of a data set as uint8 arrays sorted by class, built once and then memory-mapped.

A store is a folder of one `.npy` file per split and a `store.json`, which `build` makes from a `Source` and
`open_store` maps. The folder's name carries a hash of everything the pixels depend on, so that a store never goes
stale: other settings or other raw files make another folder.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maml_jax.data import staging
from maml_jax.data.source import ClassImages, Source
from maml_jax.errors import DataError
from maml_jax.progress import track

FORMAT = 1
MANIFEST = "store.json"
_CHUNK = 1 << 22  # bytes read at once


@dataclasses.dataclass(frozen=True, eq=False)
class ClassStore:
    """The images of one split, sorted by class.

    Attributes:
      images: uint8 `[images, height, width, channels]`, read-only and memory-mapped.
      offsets: int64 `[classes + 1]`; the images of class `c` are `images[offsets[c]:offsets[c + 1]]`.
      class_names: name of each class.
      split: 'train', 'val' or 'test'.
      sha256: of the file of images; '' if they are in none.
    """

    images: np.ndarray
    offsets: np.ndarray
    class_names: tuple[str, ...]
    split: str
    sha256: str = ""

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
        """The images of class `c`, a view: uint8 `[counts[c], height, width, channels]`.

        Raises:
          IndexError: if `c` is not in `[0, num_classes)`; negative numbers do not count from the end.
        """
        if not 0 <= c < self.num_classes:
            raise IndexError(f"class {c} of a store of {self.num_classes} classes")
        return self.images[self.offsets[c] : self.offsets[c + 1]]


def build(source: Source, cache_dir: str | os.PathLike[str], progress: bool = True) -> Path:
    """Builds the store of `source` under `cache_dir`, or finds it there.

    The store appears all at once: it is written to a hidden folder beside its place, then renamed. If another process
    was faster, that one's store is used. A build that fails or is interrupted leaves nothing behind, and what a killed
    one leaves goes with the next. Memory holds one class at a time.

    Args:
      source: what to build.
      cache_dir: folder of stores; made if there is none.
      progress: whether to tell on standard error how far it is.

    Returns:
      The store's folder, `<cache_dir>/<name>-<hash>`.

    Raises:
      DataError: if the source's images are missing, damaged or not what the source says, if the store is there but
        damaged, or if `cache_dir` cannot be written.
    """
    folder = folder_of(source, cache_dir)
    staging.sweep(folder)
    if os.path.exists(folder):
        _check_files(folder)
        return folder
    try:
        with staging.beside(folder) as unfinished:
            _write_store(source, unfinished, progress)
            _publish(unfinished, folder)
    except OSError as error:
        raise DataError(f"cannot write the store {folder}: {error}", {"data.cache_dir": "FOLDER"}) from error
    return folder


def folder_of(source: Source, cache_dir: str | os.PathLike[str]) -> Path:
    """The folder that the store of `source` has or would have."""
    return Path(cache_dir) / f"{source.name}-{source.digest()}"


def open_store(path: str | os.PathLike[str], split: str) -> ClassStore:
    """Maps one split of the store at `path`. Its sizes are checked, not its every byte: that is `verify`.

    Raises:
      DataError: if the store has no such split, or is damaged.
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
    return ClassStore(images, offsets, tuple(entry["classes"]), split, entry["sha256"])


def split_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The splits of the store at `path`.

    Raises:
      DataError: if it is damaged.
    """
    return tuple(_read_manifest(Path(path))["splits"])


def account(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the store at `path` keeps of its source's `Account`; nothing if it was built before stores did.

    Raises:
      DataError: if it is damaged.
    """
    kept = _read_manifest(Path(path)).get("account", {})
    return kept if isinstance(kept, dict) else {}


class Moments(NamedTuple):
    """Mean and standard deviation of the pixels per channel, float64 `[channels]`, in units of [0, 255]."""

    mean: np.ndarray
    std: np.ndarray


def verify(path: str | os.PathLike[str], progress: bool = False) -> dict[str, Moments]:
    """Reads the whole store at `path`, compares every split with its checksum, and takes its moments on the way.

    Args:
      path: the store's folder.
      progress: whether to tell on standard error how far it is.

    Returns:
      The moments by split.

    Raises:
      DataError: if anything differs.
    """
    path = Path(path)
    moments = {}
    for split, entry in _read_manifest(path)["splits"].items():
        shape = open_store(path, split).images.shape
        digest, moments[split] = _read_images(path / f"{split}.npy", shape, f"verifying {path.name}: {split}", progress)
        if digest != entry["sha256"]:
            raise _damaged(path, f"{split}.npy differs from its checksum")
    return moments


def _read_images(file: Path, shape: tuple[int, ...], label: str, progress: bool) -> tuple[str, Moments]:
    """The SHA-256 of a split's file and the moments of its images.

    Read in pieces rather than through a memory map, whose pages would count as this process's memory.
    """
    count, size, channels = shape[0], math.prod(shape[1:]), shape[-1]
    at_once = min(max(1, _CHUNK // size), 1 << 16)  # so that sums of squares stay within 32 bits
    total, squares = np.zeros(size, np.uint64), np.zeros(size, np.uint64)
    with file.open("rb") as content:
        digest = hashlib.sha256(content.read(file.stat().st_size - count * size))
        for _ in track(range(0, count, at_once), label, "pieces", progress):
            piece = content.read(at_once * size)
            digest.update(piece)
            pixels = np.frombuffer(piece, np.uint8).reshape(-1, size)
            total += pixels.sum(0, dtype=np.uint32)
            squares += np.square(pixels, dtype=np.uint16).sum(0, dtype=np.uint32)
    pixels_per_channel = count * size / channels
    mean, mean_square = (x.reshape(-1, channels).sum(0) / pixels_per_channel for x in (total, squares))
    return digest.hexdigest(), Moments(mean, np.sqrt(np.maximum(mean_square - mean**2, 0)))


def _write_store(source: Source, folder: Path, progress: bool) -> None:
    """Writes all splits and, last, the manifest."""
    entries, shape = {}, source.shape()
    for split, classes in source.checked_splits():
        tracked = track(classes, f"building {source.name}: {split}", "classes", progress)
        with contextlib.closing(tracked):
            digest = _write_images(tracked, sum(c.count for c in classes), shape, folder / f"{split}.npy")
        entries[split] = {
            "classes": [c.name for c in classes],
            "counts": [c.count for c in classes],
            "bytes": (folder / f"{split}.npy").stat().st_size,
            "sha256": digest,
        }
    manifest = {
        "format": FORMAT,
        "name": source.name,
        "image_shape": list(shape),
        "fingerprint": dict(source.fingerprint),
        "splits": entries,
        "account": source.account.to_json(),
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


def _publish(unfinished: Path, folder: Path) -> None:
    """Renames the finished `unfinished` to `folder`, unless another builder has put its store there meanwhile."""
    try:
        os.rename(unfinished, folder)
    except OSError:
        if not folder.exists():
            raise
        _check_files(folder)
        shutil.rmtree(unfinished)


def _check_files(folder: Path) -> None:
    """Raises DataError unless `folder` holds every file that its manifest names, in full length."""
    for split, entry in _read_manifest(folder)["splits"].items():
        _check_size(folder / f"{split}.npy", entry)


def _check_size(file: Path, entry: Mapping[str, Any]) -> None:
    size = file.stat().st_size if file.is_file() else 0
    if size != entry["bytes"]:
        raise _damaged(file.parent, f"{file.name} has {size} bytes instead of {entry['bytes']}")


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The content of `store.json`, checked to have what this module reads of it."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        readable = (
            manifest["format"] == FORMAT
            and len(manifest["splits"]) > 0
            and all(
                len(entry["classes"]) == len(entry["counts"]) and entry.keys() >= {"bytes", "sha256"}
                for entry in manifest["splits"].values()
            )
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"cannot read {MANIFEST}: {error!r}") from error
    if not readable:
        raise _damaged(folder, f"{MANIFEST} is not of format {FORMAT}")
    return manifest


def _damaged(folder: Path, what: str) -> DataError:
    return DataError(f"the store {folder} is damaged ({what}); delete {folder} and run again")
