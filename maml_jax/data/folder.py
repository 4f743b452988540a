"""Folders of class folders, and lists of images: any images of one's own as a data set.

Sources of other modules are made of the same parts, for the data sets that come as images.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maml_jax.data import hdf5, images, pixels
from maml_jax.data.account import Account
from maml_jax.data.archive import LIST_SUFFIXES, Tree, is_archive, is_image, open_tree
from maml_jax.data.dataset import DataSet, DataSettings
from maml_jax.data.images import Look
from maml_jax.data.layout import class_folders, split_folders, split_of, split_starts, unused
from maml_jax.data.lists import check_classes, listed, refuse_unread
from maml_jax.data.several import Several
from maml_jax.data.source import ClassImages, LazySplits, Source
from maml_jax.data.split import IMAGES, JsonSplit, Listing, check_name, images_split, no_classes, random_split
from maml_jax.errors import DataError

VERSION = 2
"""Raise it with any change to the layouts and lists that are read, so that stores are built anew."""
UNUSED_TEXTS = "lists and other texts that were not used"
TERMS = "Images of your own, or of whoever gave them to you."


@dataclasses.dataclass(frozen=True)
class _Asked:
    """How a folder is to be read; see `source`."""

    split: str
    seed: int
    class_depth: int
    smallest: int


def source(
    root: str | os.PathLike[str],
    look: Look | int,
    split: str = "",
    seed: int = 0,
    class_depth: int = 0,
    smallest: int = 0,
) -> Source:
    """Images of one's own as a data set: uint8 `[images, size, size, channels]`, classes sorted by name.

    Args:
      root: a folder, or a zip or tar archive, in one of these forms, of which the first found is taken:

        - a folder for each split, `train/`, `val/` and `test/` or by another usual name, each with a folder per class;
        - lists of images, of classes, or of both; see `lists` and `list_forms`. A split may be lacking;
        - HDF5 files with JSON files of labels; see `hdf5`;
        - a folder per class: 64, 16 and 20 % of the classes, drawn by the seed.

      look: what images are made into, bilinearly with antialiasing; a number stands for colour of that side.
      split: '' to go by the folder; 'random' to draw from all classes whatever form they have; 'images' for splits that
        share classes, and else go by the folder; or a JSON file of classes by split like `splits.json`.
      seed: of what is drawn.
      class_depth: see `layout.class_depth`.
      smallest: classes with fewer images are left out.

    Raises:
      ConfigError: if there is no such split.
      DataError: if the folder has none of the forms, it is not plain which, or a list is malformed or names what is not
        there.
    """
    check_name(split)
    look = Look(look) if isinstance(look, int) else look
    if not split and (found := hdf5.find(root, "folder", look.size, "as the JSON files of labels have it")):
        return found
    tree = open_root(Path(root))
    chosen = JsonSplit(Path(split)) if split.endswith(".json") else None
    asked, account = _Asked(split, seed, class_depth, smallest), Account()
    files = [tree.stamp(), *([chosen.stamp()] if chosen else [])]
    fingerprint = {"version": VERSION, **dataclasses.asdict(asked), "files": files}
    listing = functools.partial(_listing, tree, asked, chosen, account)
    return image_source(f"folder-{look.size}", tree, listing, look, fingerprint, account, split == "images")


def _listing(tree: Tree, asked: _Asked, chosen: JsonSplit | None, account: Account) -> Listing:
    if not any(map(is_image, tree.members)):
        raise no_classes(tree)
    drawn = f"drawn at random with seed {asked.seed}: 64, 16 and 20 % of"
    if asked.split == "random" or chosen:
        classes = _large(class_folders(tree, asked.class_depth, merge_splits=True), asked, account)
        account.rule = f"as {asked.split} has it" if chosen else f"{drawn} all classes, as data.split asks"
        return chosen.pick(classes) if chosen else random_split(classes, asked.seed, tree)
    if listing := _as_found(tree, asked, account):
        return listing
    classes = _large(class_folders(tree, asked.class_depth), asked, account)
    if asked.split == "images":
        account.rule = f"{drawn} the images of every class"
        return images_split(classes, asked.seed, tree)
    account.rule = f"{drawn} the classes, for there are neither folders nor lists of splits"
    return random_split(classes, asked.seed, tree)


def _as_found(tree: Tree, asked: _Asked, account: Account) -> Listing:
    """The split that the folders or lists have; nothing if there is none.

    Raises:
      DataError: if there is no telling.
    """
    shared = asked.split == "images"
    starts, others = split_starts(tree)
    if starts and not others and (listing := split_folders(tree, asked.class_depth)):
        account.rule = f"that of the folders {', '.join(folder for split in listing for folder in starts[split])}"
        if not shared:
            check_classes(listing, tree, account, IMAGES)
        return listing
    if listing := listed(tree, account, asked.class_depth, shared, IMAGES):
        return listing
    refuse_unread(tree)
    if starts and not others:
        named = [folder for folders in starts.values() for folder in folders]
        raise DataError(f"{tree.path} has images in the folders {', '.join(named)}, but in no class folders there")
    if starts:
        named, rest = [folder for folders in starts.values() for folder in folders], others[:5]
        raise DataError(
            f"{tree.path} has folders that are named after splits, {', '.join(named)}, beside others, such as "
            f"{', '.join(rest)}: splits, or classes? They are read as classes if the split is drawn",
            {"data.split": "random"},
        )
    return {}


def _large(classes: Mapping[str, list[str]], asked: _Asked, account: Account) -> dict[str, list[str]]:
    """The classes that are not too small, so that the shares of a random split are those of classes that count."""
    small = [name for name, members in classes.items() if len(members) < asked.smallest]
    account.left_out.add(f"classes of fewer than {asked.smallest} images", small)
    return {name: members for name, members in classes.items() if name not in set(small)}


def open_root(root: Path, *names: str) -> Tree:
    """Opens an archive, or a folder; of a folder with nothing but an archive in it, or one for each split, those.

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
        inside = sorted(path for path in root.iterdir() if not path.name.startswith("."))
        if len(inside) == 1 and is_archive(inside[0]):
            return open_tree(inside[0])
        splits = [split_of(path.name.partition(".")[0]) for path in inside if is_archive(path)]
        if len(splits) == len(inside) > 1 and all(splits):
            return Several(root, inside)
    if not root.exists():
        raise DataError(f"there is no {root.absolute()}", {"data.dir": "FOLDER"})
    return open_tree(root)


def image_source(
    name: str,
    tree: Tree,
    listing: Callable[[], Listing],
    look: Look,
    fingerprint: Mapping[str, Any],
    account: Account,
    shared: bool = False,
) -> Source:
    """Makes a source of images in a tree.

    Args:
      name: of the data set and its variant, with the image size.
      tree: where the images are.
      listing: gives the images of each class of each split; only called to build a store.
      look: what images are made into.
      fingerprint: what the pixels depend on, beside name and look.
      account: told of what is left out, and of images that are changed to be shown as a viewer shows them.
      shared: whether splits share classes.
    """

    @functools.cache
    def counted() -> Listing:
        found = listing()
        for reason, members in tree.left_out.items():
            account.left_out.add(reason, members)
        account.left_out.add("images in no class of any split", unused(tree, found))
        texts = [member for member in tree.members if member.lower().endswith(LIST_SUFFIXES)]
        account.left_out.add(UNUSED_TEXTS, [member for member in texts if member not in account.used])
        return found

    @functools.cache
    def channels() -> int:
        members = (m for classes in counted().values() for members in classes.values() for m in members)
        return look.channels or (1 if all(pixels.is_grey(tree.read(member)) for member in members) else 3)

    def classes_of(split: str) -> list[ClassImages]:
        known = dataclasses.replace(look, channels=channels())
        classes = counted()[split].items()
        return [images.class_images(tree, label, members, known, account) for label, members in classes]

    return Source(
        name,
        {**fingerprint, "pixels": pixels.VERSION, "background": list(look.background)},
        (look.size, look.size, look.channels),
        LazySplits(counted, classes_of),
        account,
        channels,
        shared,
    )


def _source(data: DataSettings, root: Path) -> Source:
    channels = 0 if data.channels == "auto" else int(data.channels)
    look = Look(data.image_size, channels, pixels.color(data.background))
    return source(root, look, data.split, data.split_seed, data.class_depth, int(data.skip_small))


DATA_SET = DataSet("folder", _source, TERMS)
