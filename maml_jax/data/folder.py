"""Folders of class folders, and lists of images: any images of one's own as a data set.

Sources of other modules are made of the same parts, for the data sets that come as images.
"""

import csv
import functools
import io
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maml_jax.data import images
from maml_jax.data.source import SPLITS, ClassImages, LazySplits, Source
from maml_jax.data.tree import Tree, is_archive, is_image, open_tree
from maml_jax.errors import ConfigError, DataError

VERSION = 1
"""Raise it with any change to the pixels, so that stores are built anew."""
TERMS = "Images of your own, or of whoever gave them to you."
SHARES = {"train": 0.64, "val": 0.16, "test": 0.20}
"""Of the classes, in a random split: mini-ImageNet's."""
_SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_LIST_FOLDERS = ("", "splits/", "split/", "fs-splits/")

Listing = Mapping[str, Mapping[str, Sequence[str]]]
"""Images of each class of each split."""


def source(root: str | os.PathLike[str], image_size: int, split: str = "", seed: int = 0) -> Source:
    """Returns images of one's own as a data set: RGB, uint8 `[images, size, size, 3]`, classes sorted by name.

    Args:
      root: A folder, or a zip or tar archive, in one of these forms, of which the first found is taken:

        - `train/`, `val/` (or `valid/`, `validation/`) and `test/`, each with a folder per class;
        - lists `train.csv`, ... of lines `path,label`, where further columns and a head line are ignored and paths
          count from `root`, from `images/` or are bare names; or `train.txt`, ... of one class per line; or one
          `splits.json`, an object of the classes of each split. Lists may also lie in `splits/`, `split/` or
          `fs-splits/`, and images in `images/`; a split may be lacking;
        - a folder per class: 64, 16 and 20 % of the classes, drawn by `seed`.

        Images of a class may lie in folders below its own.
      image_size: Side of the images in pixels; images of another size are resized, bilinearly with antialiasing, and
        grey ones become colour.
      split: '' for the above, 'random' to draw from all classes whatever form they have, or a JSON file of classes by
        split like `splits.json`.
      seed: Of the random split.

    Raises:
      ConfigError: If there is no such split.
      DataError: If the folder has none of the forms, or a list is malformed or names what is not there.
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
      root: Where.
      names: Archives that go first where they lie in the folder.

    Raises:
      DataError: If there is nothing.
    """
    if root.is_dir():
        for name in names:
            if (root / name).is_file():
                return open_tree(root / name)
        inside = [path for path in root.iterdir() if not path.name.startswith(".")]
        if len(inside) == 1 and is_archive(inside[0]):
            return open_tree(inside[0])
    if not root.exists():
        raise DataError(f"there is no {root.absolute()}; set --config.data.dir=FOLDER")
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
      name: Of the data set and its variant, with the image size.
      tree: Where the images are.
      listing: Gives the images of each class of each split; only called to build a store.
      image_size: Side of the images in pixels.
      fingerprint: What the pixels depend on, beside name and size.
      native: If not 0, the side that every image must come with.
      channels: 3 for colour, 1 for grey.
    """
    listing = functools.cache(listing)

    def classes_of(split: str) -> list[ClassImages]:
        classes = listing()[split].items()
        return [images.class_images(tree, label, members, image_size, native, channels) for label, members in classes]

    return Source(name, fingerprint, (image_size, image_size, channels), LazySplits(listing, classes_of))


def class_folders(tree: Tree, merge_splits: bool = False) -> dict[str, list[str]]:
    """Returns the images of each class folder, sorted by name; empty folders too.

    Class folders lie at the root, below `images/` if there is one, or below a single folder that holds everything.

    Args:
      tree: Where to look.
      merge_splits: Whether class folders may also lie below `train/`, `val/` and `test/`.
    """
    prefix = _prefix(tree.members)
    below = [member for member in tree.members if member.startswith(prefix)]
    if merge_splits and (by_split := _by_split_folder(below, prefix)):
        merged: dict[str, list[str]] = defaultdict(list)
        for start in by_split.values():
            for name, members in _by_folder(below, start).items():
                merged[name] += members
        return dict(sorted(merged.items()))
    return {name: members for name, members in _by_folder(below, prefix).items() if f"{name}/" not in _LIST_FOLDERS}


def by_last_folder(tree: Tree) -> dict[str, list[str]]:
    """Groups all images by the name of the folder that they lie in, wherever that is; sorted."""
    classes: dict[str, list[str]] = defaultdict(list)
    for member in tree.members:
        folder, _, file = member.rpartition("/")
        classes[folder.rpartition("/")[2]] += [member] if is_image(file) else []
    return dict(sorted(classes.items()))


def split_folders(tree: Tree) -> dict[str, dict[str, list[str]]]:
    """Returns the images of class folders below `train/`, `val/` and `test/`; nothing if there are no such folders."""
    starts = _by_split_folder(tree.members, _prefix(tree.members))
    found = {split: _by_folder(tree.members, start) for split, start in starts.items()}
    return found if any(members for classes in found.values() for members in classes.values()) else {}


def listed(tree: Tree, prefixes: Sequence[str] = ("",)) -> dict[str, dict[str, list[str]]]:
    """Returns the images that lists in the tree name; nothing if there are no lists.

    Args:
      tree: Where to look.
      prefixes: What the lists' names may begin with.

    Raises:
      DataError: If a list is malformed, or names what is not there or twice.
    """
    members, root = set(tree.members), _prefix(tree.members, images_too=False)
    places = [f"{start}{folder}" for start in dict.fromkeys(("", root)) for folder in _LIST_FOLDERS]
    for place in places:
        if (file := f"{place}splits.json") in members:
            origin = f"{file} in {tree.path}"
            return pick(class_folders(tree), read_json(tree.read(file), origin), origin)
    found: dict[str, tuple[str, Callable]] = {}
    for split in SPLITS:
        for file in (f"{place}{prefix}{split}" for place in places for prefix in prefixes):
            for suffix, read in ((".csv", _read_csv), (".txt", _read_names)):
                if file + suffix in members:
                    found.setdefault(split, (file + suffix, read))
    if not found:
        return {}
    listing = {split: read(tree, file, split) for split, (file, read) in found.items()}
    counts = Counter(member for classes in listing.values() for names in classes.values() for member in names)
    if counts and max(counts.values()) > 1:
        twice = max(counts, key=counts.get)
        raise DataError(f"the lists in {tree.path} name {twice} more than once")
    return listing


def random_split(classes: Mapping[str, Sequence[str]], seed: int, tree: Tree) -> dict[str, dict[str, Sequence[str]]]:
    """Deals classes out to the three splits, in `SHARES`: a function of their names and of `seed`.

    Raises:
      DataError: If there are less than three.
    """
    return {
        split: {name: classes[name] for name in names}
        for split, names in random_names(classes, seed, tree.path).items()
    }


def random_names(names: Iterable[str], seed: int, origin: object) -> dict[str, list[str]]:
    """Returns the names that `random_split` gives each split, sorted."""
    ordered = sorted(names)
    if len(ordered) < 3:
        raise DataError(f"{origin} has {len(ordered)} class folders; three splits need at least one each")
    shuffled = [ordered[i] for i in np.random.default_rng(seed).permutation(len(ordered))]
    val, test = (max(1, round(SHARES[split] * len(ordered))) for split in ("val", "test"))
    train = len(ordered) - val - test
    parts = shuffled[:train], shuffled[train : train + val], shuffled[train + val :]
    return {split: sorted(part) for split, part in zip(SPLITS, parts, strict=True)}


def pick(
    classes: Mapping[str, Sequence[str]], names: Mapping[str, Sequence[str]], origin: str
) -> dict[str, dict[str, Sequence[str]]]:
    """Returns the classes that a list names for each split.

    Raises:
      DataError: If one is not there, or in two splits.
    """
    chosen: dict[str, dict[str, Sequence[str]]] = {}
    split_of: dict[str, str] = {}
    for split, wanted in names.items():
        for name in wanted:
            if name not in classes:
                raise DataError(f"{origin} names the class '{name}', of which there is no folder")
            if name in split_of:
                raise DataError(f"{origin} has class '{name}' in split '{split_of[name]}' and again in '{split}'")
            split_of[name] = split
        chosen[split] = {name: classes[name] for name in wanted}
    return chosen


class JsonSplit:
    """A file that names the classes of each split.

    Raises:
      DataError: If it cannot be read, or is malformed.
    """

    def __init__(self, file: Path):
        self._file = file
        try:
            self._names = read_json(file.read_bytes(), str(file))
        except OSError as error:
            raise DataError(f"cannot read data.split={file}: {error}") from error

    def stamp(self) -> dict[str, Any]:
        """Returns its content: what stands for it in a fingerprint."""
        return self._names

    def pick(self, classes: Mapping[str, Sequence[str]]) -> Listing:
        """Returns the classes that it names; see `pick`."""
        return pick(classes, self._names, str(self._file))


def read_json(content: bytes, origin: str) -> dict[str, list[str]]:
    """Reads an object of the class names of each split.

    Raises:
      DataError: If it is malformed.
    """
    try:
        splits = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{origin} is not JSON: {error}") from error
    if not (isinstance(splits, dict) and splits and set(splits) <= set(SPLITS)) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in splits.values()
    ):
        raise DataError(f'{origin} must hold {{"train": [class names], "val": [...], "test": [...]}}')
    return {split: sorted(splits[split]) for split in SPLITS if split in splits}


def _prefix(members: Iterable[str], images_too: bool = True) -> str:
    """Returns the folder that class folders or splits lie in: '', or the single one there is, and `images/` below."""
    prefix = ""
    tops = {member.partition("/")[0] for member in members if "/" in member}
    if len(tops) == 1 and (top := next(iter(tops))) not in (*_SPLIT_FOLDERS, "images"):
        inside = {rest for member in members if "/" in (rest := member.removeprefix(f"{top}/"))}
        prefix = f"{top}/" if inside else ""
    if images_too and any(member.startswith(f"{prefix}images/") for member in members):
        prefix += "images/"
    return prefix


def _by_split_folder(members: Iterable[str], prefix: str) -> dict[str, str]:
    """Returns the folder of each split, with its prefix."""
    found = {}
    tops = {member.removeprefix(prefix).partition("/")[0] for member in members if "/" in member.removeprefix(prefix)}
    for folder, split in _SPLIT_FOLDERS.items():
        if folder in tops:
            found.setdefault(split, f"{prefix}{folder}/")
    return found


def _by_folder(members: Iterable[str], prefix: str) -> dict[str, list[str]]:
    """Groups images by the folder below `prefix` that they are in, at whatever depth."""
    classes: dict[str, list[str]] = defaultdict(list)
    for member in members:
        name, slash, _ = member.removeprefix(prefix).partition("/")
        if member.startswith(prefix) and slash:
            classes[name] += [member] if is_image(member) else []
    return dict(sorted(classes.items()))


def _text(tree: Tree, file: str) -> io.StringIO:
    return io.StringIO(tree.read(file).decode("utf-8-sig", errors="replace"), newline="")


def _read_names(tree: Tree, file: str, split: str) -> dict[str, list[str]]:
    """Returns the classes of a list of one name per line."""
    names = sorted(line.strip() for line in _text(tree, file) if line.strip())
    return pick(class_folders(tree), {split: names}, f"{file} in {tree.path}")[split]


def _read_csv(tree: Tree, file: str, split: str) -> dict[str, list[str]]:
    """Returns the images of each label of a list, sorted by label."""
    find = _finder(tree)
    classes: dict[str, list[str]] = defaultdict(list)
    try:
        lines = list(csv.reader(_text(tree, file)))
    except csv.Error as error:
        raise DataError(f"cannot read {tree.path / file}: {error}") from error
    for number, line in enumerate(lines, 1):
        where = f"{tree.path / file} line {number}"
        line = [column.strip() for column in line]
        if not line or line[1:2] == ["label"]:
            continue
        if len(line) < 2 or not all(line[:2]):
            raise DataError(f"{where} is '{','.join(line)[:80]}', expected 'filename,label'")
        # Numbers may begin at 0 in every split.
        name = f"{split}/{line[1]}" if line[1].isdigit() else line[1]
        classes[name].append(find(line[0], where))
    return dict(sorted(classes.items()))


def _finder(tree: Tree) -> Callable[[str, str], str]:
    """Returns what finds the member that a list means by a path."""
    members = set(filter(is_image, tree.members))
    prefixes = dict.fromkeys(("", "images/", _prefix(tree.members, images_too=False), _prefix(tree.members)))

    @functools.cache
    def by_name() -> dict[str, list[str]]:
        names = defaultdict(list)
        for member in members:
            names[member.rpartition("/")[2]].append(member)
        return names

    def find(path: str, where: str) -> str:
        for prefix in prefixes:
            if prefix + path in members:
                return prefix + path
        if "/" not in path and len(by_name()[path]) == 1:
            return by_name()[path][0]
        raise DataError(f"{where} names an image that cannot be read: there is no {tree.path / path}")

    return find
