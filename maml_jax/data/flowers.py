"""VGG Flowers, Oxford 102 (Nilsback & Zisserman 2008): 102 flowers, 8,189 images, in the split of Meta-Dataset."""

import os
import re
from collections import defaultdict
from pathlib import Path

from maml_jax.data import folder, matlab
from maml_jax.data.archive import Tree, is_image
from maml_jax.data.dataset import DataSet
from maml_jax.data.download import Download
from maml_jax.data.images import Look
from maml_jax.data.layout import by_last_folder
from maml_jax.data.matlab import MatFiles
from maml_jax.data.published import Classes, PublishedSplit
from maml_jax.data.source import MissingFiles, Source
from maml_jax.errors import DataError

VERSION = 1
"""Raise it with any change to the pixels, so that stores are built anew."""
TERMS = (
    "102 Category Flower Dataset (https://www.robots.ox.ac.uk/~vgg/data/flowers/102/), images from the web, whose "
    "owners hold the rights: research only; cite Nilsback and Zisserman, 'Automated Flower Classification over a Large "
    "Number of Classes' (2008), and, for the split, Triantafillou et al., 'Meta-Dataset' (2020)."
)
_PAGE = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
ARCHIVE = Download(
    "102flowers.tgz",
    f"{_PAGE}102flowers.tgz",
    344_862_509,
    "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
)
LABELS = Download(
    "imagelabels.mat",
    f"{_PAGE}imagelabels.mat",
    502,
    "4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d",
)
_IMAGE = re.compile(r"image_(\d{5})\.jpe?g")
_NUMBERED = re.compile(r"\d{1,3}")


def _number(name: str) -> str:
    return name.zfill(3) if _NUMBERED.fullmatch(name) else ""


SPLIT = PublishedSplit("meta_dataset", "flowers", "that of Meta-Dataset", _number)


def source(root: str | os.PathLike[str], split: str = "", image_size: int = 84, seed: int = 0) -> Source:
    """VGG Flowers as a data set: RGB, uint8 `[images, size, size, 3]` per class, classes '001' to '102'.

    Args:
      root: folder with `imagelabels.mat` and `102flowers.tgz`, or the folder `jpg/` that it unpacks to; or with class
        folders `1`, ..., `102` at whatever depth.
      split: 'meta_dataset' (or ''): 71, 15 and 16 classes. Or 'random', or a JSON file; see `PublishedSplit.source`.
      image_size: side of the images in pixels, to which they are resized, bilinearly with antialiasing.
      seed: of a random split.

    Raises:
      ConfigError: if there is no such split.
      MissingFiles: if there are no images or no labels. That files are undamaged shows as they are read.
    """
    root = Path(root)
    if not root.exists():
        raise _missing(root)
    tree = folder.open_root(root, ARCHIVE.file)
    files = MatFiles(root, tree)
    labelled = files.find(LABELS.file) is not None
    if not labelled and not any(SPLIT.known(by_last_folder(tree)).values()):
        raise _missing(root)
    classes = lambda account: _labelled(tree, files) if labelled else by_last_folder(tree)  # noqa: E731
    fingerprint = {"version": VERSION, "files": [tree.stamp(), *files.stamps()]}
    return SPLIT.source(tree, classes, _missing(root), Look(image_size), split, seed, fingerprint)


def _labelled(tree: Tree, files: MatFiles) -> Classes:
    """The images of each class, by the number of each image and the labels."""
    labels = matlab.integers(files.read(LABELS.file, "labels"), LABELS.file)
    classes: dict[str, list[str]] = defaultdict(list)
    for member in filter(is_image, tree.members):
        if match := _IMAGE.fullmatch(member.rpartition("/")[2].lower()):
            number = int(match[1])
            if not 1 <= number <= len(labels):
                raise DataError(f"{LABELS.file} has labels of {len(labels)} images, and none of {member}")
            classes[f"{labels[number - 1]:03}"].append(member)
    return dict(sorted(classes.items()))


def _missing(root: Path) -> MissingFiles:
    return MissingFiles(
        f"VGG Flowers is not complete in {root.absolute()}: it needs {LABELS.file} with {ARCHIVE.file} or with its "
        f"images, jpg/image_00001.jpg and so on; or class folders 1, ..., 102; get it from {_PAGE}",
        {"data.dir": "FOLDER"},
    )


DATA_SET = DataSet(
    "flowers",
    lambda data, root: source(root, data.split, data.image_size, data.split_seed),
    TERMS,
    classes={"train": 71, "val": 15, "test": 16},
    downloads=(ARCHIVE, LABELS),
)
