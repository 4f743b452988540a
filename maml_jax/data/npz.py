"""tiered-ImageNet's files: NumPy archives or lists of PNG files, each beside a pickle of labels."""

import contextlib
import math
import re
import struct
import tempfile
import weakref
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from maml_jax.bounded import NPZ_DAMAGE, unpack
from maml_jax.data import pixels, safe_pickle
from maml_jax.data.arrays import Labelled, check_images, check_labels, require
from maml_jax.errors import DataError

_LABEL_KEYS = ("labels", "label_specific")
_WORDNET = re.compile(r"n\d{8}")


def read_npz(file: Path, labels_file: Path) -> Labelled:
    """Reads `images` of a NumPy archive, uint8 `[images, height, width, 3]`, **BGR**, with a pickled dict of labels.

    The images stay on disk: in the archive itself, or in a temporary file if that is compressed.

    Raises:
      DataError: if the files are damaged, hold anything else, or differ in number.
    """
    array = _open_npz(file, "images")
    check_images(array.dtype, array.shape, f"{file}: 'images'")
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
    labels = check_labels(content[key], count, file, key, f" in {images_file}")
    names = content.get(f"{key}_str", [])
    names = np.ravel(names).tolist() if isinstance(names, np.ndarray) else names
    # WordNet's numbers are unique; its words are not: two of ImageNet's classes are called 'crane'.
    known = isinstance(names, list) and all(isinstance(name, str) and _WORDNET.fullmatch(name) for name in names)
    return labels, dict(enumerate(names)) if known else {}


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
                with archive.open(info) as content:  # raises at the end if the checksum is wrong
                    unpack(content, None if stored else raw, f"{file}: '{key}'", info.compress_size)
                start = 0
                if stored:
                    raw.seek(info.header_offset + 26)  # the lengths of two fields, after which the content begins
                    start = info.header_offset + 30 + sum(struct.unpack("<HH", raw.read(4)))
                rows = _Rows(raw, start, info.file_size)
                stack.pop_all()  # it closes the file itself
                return rows
    except DataError:
        raise
    except NPZ_DAMAGE as error:
        raise DataError(f"cannot read {file}: {error}; download it again") from error
