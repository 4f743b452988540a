"""Data sets that come as one file of images and labels per split: pickles and NumPy archives."""

import contextlib
import functools
import math
import re
import struct
import tempfile
import tokenize
import weakref
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from maml_jax.data import images, pixels, safe_pickle
from maml_jax.data.account import Account
from maml_jax.data.source import SPLITS, ClassImages
from maml_jax.errors import DataError

NUMBERED = "pairs of splits whose classes have only numbers for names, so that nothing tells whether they share some"
_LABEL_KEYS = ("labels", "label_specific")  # of tiered-ImageNet
_WORDNET = re.compile(r"n\d{8}")
_CHUNK = 1 << 24  # bytes
_NPZ_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,  # an unknown compression
    RuntimeError,  # encrypted
    tokenize.TokenError,  # NumPy reads the header as Python
)


class Labelled(NamedTuple):
    """The images of a split.

    Attributes:
      take: gives those at some places: uint8 `[places, height, width, 3]`, RGB.
      labels: one integer per image.
      names: names of the labels, as far as the files tell.
    """

    take: Callable[[np.ndarray], np.ndarray]
    labels: np.ndarray
    names: Mapping[int, str]


class ArraySplits:
    """Lists the classes of splits, of which it keeps one in memory: mini-ImageNet's largest has 813 MB of images.

    Args:
      read: reads a split.
      origins: the file that each split is read from, for messages.
      image_size: side of the images in pixels, to which others are resized.
      account: told of splits that may share classes, for all that their numbers tell.
    """

    def __init__(self, read: Callable[[str], Labelled], origins: Mapping[str, Path], image_size: int, account: Account):
        self._read_split = read
        self._origins = origins
        self._image_size = image_size
        self._account = account
        self._numbers: dict[str, set[int]] = {}
        self._held: tuple[str, Labelled] | None = None

    def classes_of(self, split: str) -> list[ClassImages]:
        """Lists the classes of a split, by label."""
        _, labels, names = self._read(split)
        origin = str(self._origins[split])
        # Without names, the split is part of them because some files number the classes of every split from 0.
        named = set(labels.tolist()) <= names.keys()
        if not named:
            self._note(split, set(labels.tolist()))
        counted = zip(*(x.tolist() for x in np.unique(labels, return_counts=True)), strict=True)
        return [
            ClassImages(
                names[label] if named else f"{split}/{label}",
                count,
                functools.partial(self._load, split, label),
                origin,
            )
            for label, count in counted
        ]

    def _note(self, split: str, numbers: set[int]) -> None:
        """Notes splits that count their classes from the same number: whether they share some, nothing tells."""
        others = [other for other, known in self._numbers.items() if other != split and known & numbers]
        if split not in self._numbers:
            self._account.notes.add(NUMBERED, [f"{other} and {split}" for other in others])
        self._numbers[split] = numbers

    def _load(self, split: str, label: int) -> np.ndarray:
        take, labels, _ = self._read(split)
        return images.resize_all(take(np.flatnonzero(labels == label)), self._image_size)

    def _read(self, split: str) -> Labelled:
        if self._held is None or self._held[0] != split:
            self._held = None  # freed before the next is read, not after
            self._held = (split, self._read_split(split))
        return self._held[1]


def find(root: Path, names: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """The first file that is there of each split's possible `names`; splits without one are left out."""
    found = {}
    for split in SPLITS:
        for name in names[split]:
            if (root / name).is_file():
                found.setdefault(split, root / name)
    return found


def read_pickle(file: Path, native: int = 0) -> Labelled:
    """Reads a pickled dict of `data`, uint8 `[images, height, width, 3]`, and `labels`, one integer per image.

    Args:
      file: the pickle.
      native: if not 0, the height and width that the images must have.

    Raises:
      DataError: if it holds anything else, which is not executed.
    """
    content = require(safe_pickle.load(file), ["data", "labels"], file)
    data = as_array(content["data"], file, "data")
    _check_images(data.dtype, data.shape, f"{file}: 'data'", native)
    labels = _check_labels(content["labels"], len(data), file, "labels")
    named = content.get("catname2label")
    pairs = named.items() if isinstance(named, dict) else ()
    names = {label: name for name, label in pairs if isinstance(name, str) and isinstance(label, int | np.integer)}
    return Labelled(data.__getitem__, labels, names)


def read_npz(file: Path, labels_file: Path) -> Labelled:
    """Reads `images` of a NumPy archive, uint8 `[images, height, width, 3]`, **BGR**, with a pickled dict of labels.

    The images stay on disk: in the archive itself, or in a temporary file if that is compressed.

    Raises:
      DataError: if the files are damaged, hold anything else, or differ in number.
    """
    array = _open_npz(file, "images")
    _check_images(array.dtype, array.shape, f"{file}: 'images'")
    labels, names = _read_labels(labels_file, array.shape[0], file)
    return Labelled(lambda places: array[places][..., ::-1], labels, names)


def read_encoded(file: Path, labels_file: Path) -> Labelled:
    """Reads a pickled list of images, each a PNG file as an array of bytes, with a pickled dict of labels.

    OpenCV wrote the files from BGR arrays and swapped the channels on the way, so that what any other program reads of
    them is RGB.

    Raises:
      DataError: if the files are damaged, hold anything else, differ in number, or the images in size.
    """
    encoded = safe_pickle.load(file)
    if not isinstance(encoded, list | tuple | np.ndarray) or not all(
        isinstance(x, np.ndarray | bytes) for x in encoded
    ):
        raise DataError(f"{file} holds a {type(encoded).__name__}, expected a list of PNG files as arrays")
    labels, names = _read_labels(labels_file, len(encoded), file)

    def decode(place: int) -> np.ndarray:
        return np.asarray(pixels.decode(bytes(encoded[place]), "RGB", f"{place} of {file}"))

    def take(places: np.ndarray) -> np.ndarray:
        decoded = [decode(place) for place in places]
        for place, image in zip(places, decoded, strict=True):
            if image.shape != shape:
                raise DataError(
                    f"the image {place} of {file} is {image.shape[1]} x {image.shape[0]} pixels, but the first is "
                    f"{shape[1]} x {shape[0]}"
                )
        return np.stack(decoded)

    shape = decode(0).shape if len(encoded) else (0, 0, 3)
    return Labelled(take, labels, names)


def _read_labels(file: Path, count: int, images_file: Path) -> tuple[np.ndarray, dict[int, str]]:
    """tiered-ImageNet's labels, under either of the keys in use, and their names where given."""
    content = safe_pickle.load(file)
    found = [key for key in _LABEL_KEYS if isinstance(content, dict) and {key, key.encode()} & content.keys()]
    key = found[0] if found else _LABEL_KEYS[0]
    content = require(content, [key], file)
    labels = _check_labels(content[key], count, file, key, f" in {images_file}")
    names = content.get(f"{key}_str", [])
    names = np.ravel(names).tolist() if isinstance(names, np.ndarray) else names
    # WordNet's numbers are unique; its words are not: two of ImageNet's classes are called 'crane'.
    known = isinstance(names, list) and all(isinstance(name, str) and _WORDNET.fullmatch(name) for name in names)
    return labels, dict(enumerate(names)) if known else {}


def require(content: Any, keys: Sequence[str], origin: object) -> dict[str, Any]:
    """An unpickled dict with text for keys, where Python 2 or 3 may have left bytes.

    Raises:
      DataError: if it is none, or lacks one of `keys`.
    """
    expected = " and ".join(map(repr, keys))
    if not isinstance(content, dict):
        raise DataError(f"{origin} holds a {type(content).__name__}, expected a dict with {expected}")
    content = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}
    if not set(keys) <= content.keys():
        raise DataError(f"{origin} has the keys {', '.join(map(repr, content))}, expected {expected}")
    return content


def _check_images(dtype: np.dtype, shape: tuple[int, ...], what: str, native: int = 0) -> None:
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or not shape[1] * shape[2]:
        raise DataError(f"{what} is {dtype} {list(shape)}, expected uint8 [images, height, width, 3]")
    if native and shape[1:3] != (native, native):
        raise DataError(f"{what} is of images of {shape[2]} x {shape[1]} pixels, expected {native} x {native}")


def as_array(value: Any, origin: object, key: str) -> np.ndarray:
    """An unpickled array, or list of numbers or of arrays, as an array.

    Raises:
      DataError: if the elements differ in shape, or are lists, which a small pickle could hold without number.
    """
    if isinstance(value, list | tuple) and any(isinstance(element, list | tuple | dict) for element in value):
        raise DataError(f"{origin}: '{key}' is a list of lists, expected an array")
    try:
        return np.asarray(value)
    except ValueError as error:
        raise DataError(f"{origin}: the elements of '{key}' differ in shape{_odd_one_out(value)}") from error


def _odd_one_out(value: Any) -> str:
    """Names the first element whose shape differs from the first one's, if they have shapes."""
    shapes = [getattr(element, "shape", None) for element in value]
    odd = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
    return "" if odd is None else f": the first is {list(shapes[0])}, number {odd} is {list(shapes[odd])}"


def _check_labels(value: Any, count: int, file: Path, key: str, where: str = "") -> np.ndarray:
    labels = as_array(value, file, key)
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        found = f"{labels.dtype} {list(labels.shape)}"
        raise DataError(f"{file}: '{key}' is {found}, expected one integer for each of {count} images{where}")
    return labels


class _Rows:
    """The rows of an uncompressed `.npy` of `size` bytes that begins at `start` of an open file.

    Read rather than mapped, so that the pages do not count as this process's memory.
    """

    def __init__(self, file: BinaryIO, start: int, size: int):
        self._file = file
        weakref.finalize(self, file.close)
        file.seek(start)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        self.shape, fortran, self.dtype = read_header[np.lib.format.read_magic(file)](file)
        if self.dtype.hasobject or fortran:
            raise ValueError("an array of objects, or one in Fortran's order")
        self._start = file.tell()
        content = start + size - self._start
        if min(self.shape, default=0) < 0 or math.prod(self.shape) * self.dtype.itemsize != content:
            raise ValueError(f"an array of shape {list(self.shape)} in {content} bytes")

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """The rows at ascending `places`."""
        rows = np.empty((len(places), *self.shape[1:]), self.dtype)
        runs = np.split(np.arange(len(places)), np.flatnonzero(np.diff(places) != 1) + 1)
        for run in runs:
            self._file.seek(self._start + int(places[run[0]]) * rows[0].nbytes)
            self._file.readinto(rows[run[0] : run[-1] + 1].data.cast("B"))
        return rows


def _open_npz(file: Path, key: str) -> _Rows:
    """Opens one array of a NumPy archive, after a check of its checksum."""
    try:
        with zipfile.ZipFile(file) as archive:
            if f"{key}.npy" not in archive.namelist():
                raise DataError(f"{file} has the keys {', '.join(archive.namelist())}, expected '{key}'")
            info = archive.getinfo(f"{key}.npy")
            stored = info.compress_type == zipfile.ZIP_STORED
            with contextlib.ExitStack() as stack:
                raw = stack.enter_context(file.open("rb") if stored else tempfile.TemporaryFile())  # noqa: SIM115
                with archive.open(info) as content:
                    while chunk := content.read(_CHUNK):  # raises at the end if the checksum is wrong
                        if not stored:
                            raw.write(chunk)
                start = 0
                if stored:
                    raw.seek(info.header_offset + 26)  # the lengths of two fields, after which the content begins
                    start = info.header_offset + 30 + sum(struct.unpack("<HH", raw.read(4)))
                rows = _Rows(raw, start, info.file_size)
                stack.pop_all()  # it closes the file itself
                return rows
    except DataError:
        raise
    except _NPZ_DAMAGE as error:
        raise DataError(f"cannot read {file}: {error}; download it again") from error
