"""Where class stores are built from: the classes of a data set and how to read the images of each."""

import dataclasses
import functools
import hashlib
import importlib.resources
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maml_jax.data.account import Account
from maml_jax.errors import DataError

SPLITS = ("train", "val", "test")


class MissingFiles(DataError):
    """None of a data set's raw files are where they were looked for, or too few."""


@dataclasses.dataclass(frozen=True)
class ClassImages:
    """The images of one class, not read yet.

    Attributes:
      name: name of the class, unique in its `Source`.
      count: number of images that `load` gives.
      load: reads them: uint8 `[count, height, width, channels]`.
      origin: the file or folder they come from, for messages; '' if they come from none.
    """

    name: str
    count: int
    load: Callable[[], np.ndarray]
    origin: str = ""

    def __str__(self) -> str:
        return f"class '{self.name}'" + (f" from {self.origin}" if self.origin else "")

    def read(self, image_shape: tuple[int, int, int]) -> np.ndarray:
        """Loads the images and checks them: contiguous uint8 `[count, *image_shape]`.

        Raises:
          DataError: if `load` gives anything else.
        """
        images = self.load()
        expected = (self.count, *image_shape)
        if images.dtype != np.uint8 or images.shape != expected:
            raise DataError(f"{self} holds {images.dtype} {list(images.shape)}, expected uint8 {list(expected)}")
        return np.ascontiguousarray(images)


class LazySplits(Mapping[str, Sequence[ClassImages]]):
    """Splits whose classes are only listed when asked for, so that finding a store that is already built costs nothing.

    Args:
      names: the splits there are, some of `SPLITS`, or what finds them out.
      classes_of: lists the classes of a split; called at each access.
    """

    def __init__(
        self, names: Iterable[str] | Callable[[], Iterable[str]], classes_of: Callable[[str], Sequence[ClassImages]]
    ):
        self._find_names = names if callable(names) else lambda: names
        self._classes_of = classes_of

    @functools.cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(self._find_names())

    def __getitem__(self, split: str) -> Sequence[ClassImages]:
        if split not in self._names:
            raise KeyError(split)
        return self._classes_of(split)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set as it comes: classes of images by split, and what identifies their pixels.

    Attributes:
      name: name of the data set and its variant, such as 'omniglot-vinyals-28'.
      fingerprint: all that the pixels depend on, as JSON: settings, the builder's version, the files' sizes and times.
      image_shape: height, width and channels of every image; 0 channels are found out as a store is built.
      splits: classes by split, in the order in which a store keeps them. A split may be lacking.
      account: what became of all that was found; complete once the images were read.
      find_channels: finds out the channels, where those are 0.
      shared: whether splits share classes, and differ in their images.
    """

    name: str
    fingerprint: Mapping[str, Any]
    image_shape: tuple[int, int, int]
    splits: Mapping[str, Sequence[ClassImages]]
    account: Account = dataclasses.field(default_factory=Account)
    find_channels: Callable[[], int] | None = None
    shared: bool = False

    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        height, width, channels = self.image_shape
        return height, width, channels or self.find_channels()

    def digest(self) -> str:
        """12 hexadecimal digits that change with the name, the fingerprint or the image shape."""
        identity = [self.name, dict(self.fingerprint), list(self.image_shape)]
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def checked_splits(self) -> Iterator[tuple[str, Sequence[ClassImages]]]:
        """Yields each split's name and classes, one split at a time.

        Raises:
          DataError: if a split has no classes, a class no images, or a class name comes twice, in whichever splits.
          ValueError: if there are no splits, or others than `SPLITS`.
        """
        if not self.splits or not set(self.splits) <= set(SPLITS):
            raise ValueError(f"splits of {self.name} are {sorted(self.splits)}; expected some of {list(SPLITS)}")
        split_of: dict[str, str] = {}
        for split in self.splits:
            classes = self.splits[split]
            if not classes:
                raise DataError(f"split '{split}' of {self.name} has no classes")
            names: set[str] = set()
            for c in classes:
                if c.count < 1:
                    raise DataError(f"{c} has no images")
                if split_of.get(c.name, split) != split and not self.shared:
                    raise DataError(f"{c} is in split '{split_of[c.name]}' and again in split '{split}'")
                if c.name in names:
                    raise DataError(f"{c} is in split '{split}' and again in split '{split}'")
                names.add(c.name)
                split_of[c.name] = split
            yield split, classes


def stamp(file: Path) -> dict[str, Any]:
    """A file's name, size and time of change: what stands for its content in a fingerprint.

    Not its folder, so that a data set may be moved (not copied anew) without its store being built again.
    """
    status = file.stat()
    return {"file": file.name, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def read_list(name: str) -> list[list[str]]:
    """The words of each line of a list kept here, `splits/<name>.txt`, but for comments."""
    text = importlib.resources.files("maml_jax.data").joinpath(f"splits/{name}.txt").read_text(encoding="utf-8")
    return [line.split() for line in text.splitlines() if not line.startswith("#")]


def published_split(name: str) -> dict[str, list[str]]:
    """The class names of each split of a list kept here, of lines of a split and names of classes of it."""
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split, *classes in read_list(name):
        names[split] += classes
    return names
