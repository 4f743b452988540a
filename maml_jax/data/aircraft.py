"""FGVC-Aircraft (Maji et al. 2013): 100 variants of aircraft, 10,000 images, in the split of Meta-Dataset."""

import functools
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from maml_jax.data import folder
from maml_jax.data.account import Account
from maml_jax.data.archive import Tree, is_image
from maml_jax.data.dataset import DataSet
from maml_jax.data.images import Box, Look
from maml_jax.data.layout import by_last_folder
from maml_jax.data.published import Classes, PublishedSplit
from maml_jax.data.source import MissingFiles, Source
from maml_jax.errors import DataError

VERSION = 1
"""Raise it with any change to the pixels, so that stores are built anew."""
TERMS = (
    "FGVC-Aircraft (https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/), photographs of airliners.net, whose authors "
    "hold the rights: non-commercial research only; cite Maji et al., 'Fine-Grained Visual Classification of Aircraft' "
    "(2013), and, for the split, Triantafillou et al., 'Meta-Dataset' (2020)."
)
ARCHIVE = "fgvc-aircraft-2013b.tar.gz"
SPLIT = PublishedSplit("meta_dataset", "aircraft", "that of Meta-Dataset")
_LISTS = tuple(f"images_variant_{part}.txt" for part in ("trainval", "train", "val", "test"))
_BOXES = "images_box.txt"


def source(root: str | os.PathLike[str], split: str = "", image_size: int = 84, seed: int = 0) -> Source:
    """FGVC-Aircraft as a data set: RGB, uint8 `[images, size, size, 3]` per class, classes sorted by name.

    Images are cut to the boxes of `images_box.txt`, as by Meta-Dataset: without the line of text below, and with one
    aircraft in each. In class folders they are taken as they are.

    Args:
      root: folder with `fgvc-aircraft-2013b.tar.gz`, or what it unpacks to: `data/` with `images/`, the lists
        `images_variant_{train,val,test}.txt` of lines such as `1025794 707-320`, and `images_box.txt`; or with class
        folders `707-320`, ... at whatever depth, in which letters and digits count.
      split: 'meta_dataset' (or ''): 70, 15 and 15 classes. Or 'random', or a JSON file; see `PublishedSplit.source`.
      image_size: side of the images in pixels, to which they are resized, bilinearly with antialiasing.
      seed: of a random split.

    Raises:
      ConfigError: if there is no such split.
      MissingFiles: if there are no images. That files are undamaged shows as they are read.
    """
    root = Path(root)
    if not root.exists():
        raise _missing(root)
    annotated = _Annotated(folder.open_root(root, ARCHIVE))
    fingerprint = {"version": VERSION, "files": [annotated.tree.stamp()]}
    look = Look(image_size, box=annotated.box)
    return SPLIT.source(annotated.tree, annotated.classes, _missing(root), look, split, seed, fingerprint)


class _Annotated:
    """The images of a tree, with the lists of their variants and boxes; read when they are asked for."""

    def __init__(self, tree: Tree):
        self.tree = tree

    @functools.cached_property
    def _texts(self) -> dict[str, str]:
        """The paths of the lists of variants and boxes, by their names."""
        names = {member.rpartition("/")[2]: member for member in reversed(self.tree.members)}
        return {name: names[name] for name in (*_LISTS, _BOXES) if name in names}

    @functools.cached_property
    def _lists(self) -> list[str]:
        """The paths of the lists of variants."""
        return [self._texts[name] for name in _LISTS if name in self._texts]

    def classes(self, account: Account) -> Classes:
        """The images of each variant; of class folders if there are no lists of variants.

        Raises:
          DataError: if a list is malformed, names what is not there, or an image under two variants, or has no box.
        """
        if not self._lists:
            return by_last_folder(self.tree)
        account.used.update(self._texts.values())
        images = {_stem(member): member for member in self.tree.members if is_image(member)}
        variant_of: dict[str, str] = {}
        for member in self._lists:
            for line, (number, *words) in self._lines(member):
                variant = " ".join(words)
                if not variant or variant_of.setdefault(number, variant) != variant:
                    raise self._malformed(member, line, "an image and its variant, the same wherever it is named")
                if number not in images:
                    raise DataError(f"{member} in {self.tree.path} names the image {number}, which is not there")
                if number not in self._boxes:
                    raise DataError(f"{_BOXES} in {self.tree.path} has no box for the image {number}")
        classes: dict[str, list[str]] = defaultdict(list)
        for number, variant in sorted(variant_of.items()):
            classes[variant].append(images[number])
        return classes

    @functools.cached_property
    def _boxes(self) -> dict[str, Box]:
        if _BOXES not in self._texts:
            raise DataError(f"{self.tree.path} has no {_BOXES}; it comes with {ARCHIVE}", {"data.dir": "FOLDER"})
        boxes = {}
        for line, (number, *corners) in self._lines(self._texts[_BOXES]):
            if len(corners) != 4 or not all(corner.isdecimal() and len(corner) < 7 for corner in corners):
                raise self._malformed(self._texts[_BOXES], line, "an image and four numbers")
            boxes[number] = tuple(map(int, corners))
        return boxes

    def box(self, member: str) -> Box | None:
        """The box of an image; None if there are no lists."""
        return self._boxes[_stem(member)] if self._lists else None

    def _lines(self, member: str) -> Iterator[tuple[int, list[str]]]:
        """The number and the words of each line that is not empty."""
        text = self.tree.read(member).decode("utf-8-sig", errors="replace")
        yield from ((number, words) for number, line in enumerate(text.splitlines(), 1) if (words := line.split()))

    def _malformed(self, member: str, line: int, expected: str) -> DataError:
        return DataError(f"line {line} of {member} in {self.tree.path} must hold {expected}")


def _stem(member: str) -> str:
    return member.rpartition("/")[2].rpartition(".")[0]


def _missing(root: Path) -> MissingFiles:
    return MissingFiles(
        f"FGVC-Aircraft is not in {root.absolute()}: it needs {ARCHIVE} or what it unpacks to, data/images/ with "
        f"{', '.join(_LISTS[1:])} and {_BOXES}; get it from https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        {"data.dir": "FOLDER"},
    )


DATA_SET = DataSet(
    "aircraft",
    lambda data, root: source(root, data.split, data.image_size, data.split_seed),
    TERMS,
    classes={"train": 70, "val": 15, "test": 15},
)
