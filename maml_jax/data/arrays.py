"""Data sets that come as one file of images and labels per split: pickles and NumPy archives."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from maml_jax.data import images
from maml_jax.data.account import Account
from maml_jax.data.source import SPLITS, ClassImages
from maml_jax.errors import DataError

NUMBERED = "pairs of splits whose classes have only numbers for names, so that nothing tells whether they share some"
_LABEL_KEYS = ("labels", "label_specific")  # of tiered-ImageNet
_WORDNET = re.compile(r"n\d{8}")
_CHUNK = 1 << 24  # bytes


class Labelled(NamedTuple):
    """The images of a split.

    Attributes:
      take: gives those at some places: uint8 `[places, height, width, 3]`, RGB.
      labels: one integer per image.
      names: names of the labels, as far as the files tell.
      left_out: images that are not used, by reason.
      notes: what else is to be known, by reason.
    """

    take: Callable[[np.ndarray], np.ndarray]
    labels: np.ndarray
    names: Mapping[int, str]
    left_out: Mapping[str, Sequence[str]] = MappingProxyType({})
    notes: Mapping[str, Sequence[str]] = MappingProxyType({})


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
        found = self._read(split)
        labels, names = found.labels, found.names
        origin = str(self._origins[split])
        # Without names, the split is part of them because some files number the classes of every split from 0.
        named = set(labels.tolist()) <= names.keys()
        self._tell(split, found, set() if named else set(labels.tolist()))
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

    def _tell(self, split: str, found: Labelled, numbers: set[int]) -> None:
        """Tells the account once of a split, and of others that count their classes from the same number."""
        if split in self._numbers:
            return
        others = [f"{other} and {split}" for other, known in self._numbers.items() if known & numbers]
        self._numbers[split] = numbers
        self._account.notes.add(NUMBERED, others)
        for tally, by_reason in ((self._account.left_out, found.left_out), (self._account.notes, found.notes)):
            for reason, names in by_reason.items():
                tally.add(reason, names)

    def _load(self, split: str, label: int) -> np.ndarray:
        found = self._read(split)
        return images.resize_all(found.take(np.flatnonzero(found.labels == label)), self._image_size)

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


def check_images(dtype: np.dtype, shape: tuple[int, ...], what: str, native: int = 0) -> None:
    """Refuses what is not uint8 `[images, height, width, 3]`, or of another size than `native` if that is not 0.

    Raises:
      DataError: if it is not.
    """
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


def check_labels(value: Any, count: int, file: Path, key: str, where: str = "") -> np.ndarray:
    """The labels of `count` images.

    Raises:
      DataError: if they are not one integer each.
    """
    labels = as_array(value, file, key)
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        found = f"{labels.dtype} {list(labels.shape)}"
        raise DataError(f"{file}: '{key}' is {found}, expected one integer for each of {count} images{where}")
    return labels
