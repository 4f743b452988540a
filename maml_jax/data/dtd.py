"""Describable Textures Dataset (Cimpoi et al. 2014): 47 textures, 120 images of each, in the split of Meta-Dataset."""

import os
from pathlib import Path

from maml_jax.data import folder
from maml_jax.data.dataset import DataSet
from maml_jax.data.download import Download
from maml_jax.data.images import Look
from maml_jax.data.layout import by_last_folder
from maml_jax.data.published import PublishedSplit
from maml_jax.data.source import MissingFiles, Source

VERSION = 1
"""Raise it with any change to the pixels, so that stores are built anew."""
TERMS = (
    "Describable Textures Dataset (https://www.robots.ox.ac.uk/~vgg/data/dtd/), images from the web, whose owners hold "
    "the rights: research only; cite Cimpoi et al., 'Describing Textures in the Wild' (2014), and, for the split, "
    "Triantafillou et al., 'Meta-Dataset' (2020)."
)
SPLIT = PublishedSplit("meta_dataset", "dtd", "that of Meta-Dataset")
ARCHIVE = Download(
    "dtd-r1.0.1.tar.gz",
    "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
    625_239_812,
    "e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
)


def source(root: str | os.PathLike[str], split: str = "", image_size: int = 84, seed: int = 0) -> Source:
    """DTD as a data set: RGB, uint8 `[images, size, size, 3]` per class, classes sorted by name.

    Args:
      root: folder with `dtd-r1.0.1.tar.gz`, or with the class folders `banded`, ... at whatever depth.
      split: 'meta_dataset' (or ''): 33, 7 and 7 classes. Or 'random', or a JSON file; see `PublishedSplit.source`.
      image_size: side of the images in pixels, to which they are resized, bilinearly with antialiasing.
      seed: of a random split.

    Raises:
      ConfigError: if there is no such split.
      MissingFiles: if there are no images. That files are undamaged shows as they are read.
    """
    root = Path(root)
    if not root.exists():
        raise _missing(root)
    tree = folder.open_root(root, ARCHIVE.file)
    fingerprint = {"version": VERSION, "files": [tree.stamp()]}
    return SPLIT.source(
        tree, lambda account: by_last_folder(tree), _missing(root), Look(image_size), split, seed, fingerprint
    )


def _missing(root: Path) -> MissingFiles:
    return MissingFiles(
        f"DTD is not in {root.absolute()}: it needs {ARCHIVE.file}, or the images in class folders such as "
        "images/banded; get it from https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        {"data.dir": "FOLDER"},
    )


DATA_SET = DataSet(
    "dtd",
    lambda data, root: source(root, data.split, data.image_size, data.split_seed),
    TERMS,
    classes={"train": 33, "val": 7, "test": 7},
    downloads=(ARCHIVE,),
)
