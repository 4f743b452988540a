"""Folders of class folders, and lists of images: any images of one's own as a data set.

Sources of other modules are made of the same parts, for the data sets that come as images.
"""

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maml_jax.data import images
from maml_jax.data.archive import Tree, is_archive, open_tree
from maml_jax.data.dataset import DataSet
from maml_jax.data.layout import class_folders, split_folders
from maml_jax.data.lists import listed
from maml_jax.data.source import ClassImages, LazySplits, Source
from maml_jax.data.split import JsonSplit, Listing, random_split
from maml_jax.errors import ConfigError, DataError

VERSION = 1
"""Raise it with any change to the pixels, so that stores are built anew."""
TERMS = "Images of your own, or of whoever gave them to you."


def source(root: str | os.PathLike[str], image_size: int, split: str = "", seed: int = 0) -> Source:
    """Images of one's own as a data set: RGB, uint8 `[images, size, size, 3]`, classes sorted by name.

    Args:
      root: a folder, or a zip or tar archive, in one of these forms, of which the first found is taken:

        - `train/`, `val/` (or `valid/`, `validation/`) and `test/`, each with a folder per class;
        - lists `train.csv`, ... of lines `path,label`, where further columns and a head line are ignored and paths
          count from `root`, from `images/` or are bare names; or `train.txt`, ... of one class per line; or one
          `splits.json`, an object of the classes of each split. Lists may also lie in `splits/`, `split/` or
          `fs-splits/`, and images in `images/`; a split may be lacking;
        - a folder per class: 64, 16 and 20 % of the classes, drawn by `seed`.

        Images of a class may lie in folders below its own.
      image_size: side of the images in pixels; images of another size are resized, bilinearly with antialiasing, and
        grey ones become colour.
      split: '' for the above, 'random' to draw from all classes whatever form they have, or a JSON file of classes by
        split like `splits.json`.
      seed: of the random split.

    Raises:
      ConfigError: if there is no such split.
      DataError: if the folder has none of the forms, or a list is malformed or names what is not there.
    """
    if split not in ("", "random") and not split.endswith(".json"):
        raise ConfigError(f"data.split is '{split}'; choose random or a .json file, or '' to go by the folder")
    tree = open_root(Path(root))
    chosen = JsonSplit(Path(split)) if split.endswith(".json") else None

    def listing() -> Listing:
        if split == "random":
            return random_split(class_folders(tree, merge_splits=True), seed, tree)
        if chosen:
            return chosen.pick(class_folders(tree, merge_splits=True))
        return split_folders(tree) or listed(tree) or random_split(class_folders(tree), seed, tree)

    files = [tree.stamp(), *([chosen.stamp()] if chosen else [])]
    fingerprint = {"version": VERSION, "split": split, "seed": seed, "files": files}
    return image_source(f"folder-{image_size}", tree, listing, image_size, fingerprint)


def open_root(root: Path, *names: str) -> Tree:
    """Opens an archive, or a folder; of a folder with nothing but an archive in it, the archive.

    Args:
      root: where.
      names: archives that go first where they lie in the folder.

    Raises:
      DataError: if there is nothing.
    """
    if root.is_dir():
        for name in names:
            if (root / name).is_file():
                return open_tree(root / name)
        inside = [path for path in root.iterdir() if not path.name.startswith(".")]
        if len(inside) == 1 and is_archive(inside[0]):
            return open_tree(inside[0])
    if not root.exists():
        raise DataError(f"there is no {root.absolute()}", {"data.dir": "FOLDER"})
    return open_tree(root)


def image_source(
    name: str,
    tree: Tree,
    listing: Callable[[], Listing],
    image_size: int,
    fingerprint: Mapping[str, Any],
    native: int = 0,
    channels: int = 3,
) -> Source:
    """Makes a source of images in a tree.

    Args:
      name: of the data set and its variant, with the image size.
      tree: where the images are.
      listing: gives the images of each class of each split; only called to build a store.
      image_size: side of the images in pixels.
      fingerprint: what the pixels depend on, beside name and size.
      native: if not 0, the side that every image must come with.
      channels: 3 for colour, 1 for grey.
    """
    listing = functools.cache(listing)

    def classes_of(split: str) -> list[ClassImages]:
        classes = listing()[split].items()
        return [images.class_images(tree, label, members, image_size, native, channels) for label, members in classes]

    return Source(name, fingerprint, (image_size, image_size, channels), LazySplits(listing, classes_of))


DATA_SET = DataSet(
    "folder",
    lambda data, root: source(root, data.image_size, data.split, data.split_seed),
    TERMS,
)
