"""Which classes, or images, belong to which split: drawn, or named."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maml_jax.bounded import read_bytes
from maml_jax.data.archive import ARCHIVE_SUFFIXES, Tree
from maml_jax.data.layout import outline, split_of
from maml_jax.data.source import SPLITS
from maml_jax.errors import ConfigError, DataError

Listing = Mapping[str, Mapping[str, Sequence[str]]]
"""Images of each class of each split."""
SHARES = {"train": 0.64, "val": 0.16, "test": 0.20}
"""Of the classes, in a random split: mini-ImageNet's."""
IMAGES = {"data.split": "images"}
"""What lets splits share classes."""


def check_name(split: str) -> None:
    """Refuses a `data.split` that is none of those that any data set of images has.

    Raises:
      ConfigError: if it is not '', 'random', 'images' or a JSON file.
    """
    if split not in ("", "random", "images") and not split.endswith(".json"):
        raise ConfigError(f"data.split is '{split}'; choose random, images or a .json file, or '' to go by the files")


def random_split(classes: Mapping[str, Sequence[str]], seed: int, tree: Tree) -> dict[str, dict[str, Sequence[str]]]:
    """Deals classes out to the three splits, in `SHARES`: a function of their names and of `seed`.

    Raises:
      DataError: if there are less than three.
    """
    if not classes:
        raise no_classes(tree)
    return {
        split: {name: classes[name] for name in names}
        for split, names in random_names(classes, seed, tree.path).items()
    }


def no_classes(tree: Tree) -> DataError:
    """The error that there are no class folders; it says what there is."""
    packed = [name for names in tree.left_out.values() for name in names if name.lower().endswith(ARCHIVE_SUFFIXES)]
    hint = {"data.dir": str(tree.path / packed[0])} if packed and tree.path.is_dir() else {}
    few = f"{tree.path} has 0 class folders; three splits need at least one each. There are {outline(tree)}"
    return DataError(few + (f", but {', '.join(packed[:3])}" if packed else ""), hint)


def random_names(names: Iterable[str], seed: int, origin: object) -> dict[str, list[str]]:
    """The names that `random_split` gives each split, sorted."""
    ordered = sorted(names)
    if len(ordered) < 3:
        raise DataError(
            f"{origin} has {len(ordered)} class folders; three splits need at least one each, or can share them", IMAGES
        )
    return _dealt(ordered, seed)


def images_split(classes: Mapping[str, Sequence[str]], seed: int, tree: Tree) -> dict[str, dict[str, Sequence[str]]]:
    """Deals the images of every class out to the three splits, in `SHARES`: a function of their paths and of `seed`.

    Raises:
      DataError: if a class has less than three images.
    """
    listing: dict[str, dict[str, Sequence[str]]] = {split: {} for split in SPLITS}
    for name, members in sorted(classes.items()):
        if len(members) < 3:
            found = f"class '{name}' from {tree.path} has {len(members)} images"
            raise DataError(f"{found}; three splits need at least one each", {"data.skip_small": True})
        for split, part in _dealt(sorted(members), seed).items():
            listing[split][name] = part
    return listing


def _dealt(ordered: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Deals three names or more out to the splits, sorted in each."""
    shuffled = [ordered[i] for i in np.random.default_rng(seed).permutation(len(ordered))]
    val, test = (max(1, round(SHARES[split] * len(ordered))) for split in ("val", "test"))
    train = len(ordered) - val - test
    parts = shuffled[:train], shuffled[train : train + val], shuffled[train + val :]
    return {split: sorted(part) for split, part in zip(SPLITS, parts, strict=True)}


def pick(
    classes: Mapping[str, Sequence[str]], names: Mapping[str, Sequence[str]], origin: str
) -> dict[str, dict[str, Sequence[str]]]:
    """The classes that a list names for each split.

    Raises:
      DataError: if one is not there, or in two splits.
    """
    chosen: dict[str, dict[str, Sequence[str]]] = {}
    split_of: dict[str, str] = {}
    for split, wanted in names.items():
        for name in wanted:
            if name not in classes:
                raise DataError(f"{origin} names the class '{name[:80]}', of which there is no folder")
            if name in split_of:
                raise DataError(f"{origin} has class '{name}' in split '{split_of[name]}' and again in '{split}'")
            split_of[name] = split
        chosen[split] = {name: classes[name] for name in wanted}
    return chosen


class JsonSplit:
    """A JSON file of the classes of each split.

    Raises:
      DataError: if it cannot be read.
    """

    def __init__(self, file: Path):
        self._file = file
        try:
            self._names = read_json(read_bytes(file), str(file))
        except OSError as error:
            raise DataError(f"cannot read data.split={file}: {error}") from error

    def stamp(self) -> dict[str, Any]:
        """Its content: what stands for it in a fingerprint."""
        return self._names

    def pick(self, classes: Mapping[str, Sequence[str]]) -> Listing:
        """The classes that it names; see `pick`."""
        return pick(classes, self._names, str(self._file))


def read_json(content: bytes, origin: str) -> dict[str, list[str]]:
    """Reads an object of the class names of each split.

    Raises:
      DataError: if it is malformed.
    """
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{origin} is not JSON: {error}") from error
    splits = by_split(value)
    if splits is None or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in splits.values()
    ):
        raise DataError(f'{origin} must hold {{"train": [class names], "val": [...], "test": [...]}}')
    return {split: sorted(names) for split, names in splits.items()}


def by_split(value: Any) -> dict[str, Any] | None:
    """What a JSON object has for each split, by whichever name; None if it has other keys too, or two of one split."""
    if not (isinstance(value, dict) and value):
        return None
    named: dict[str, list[Any]] = defaultdict(list)
    for key, part in value.items():
        named[split_of(key)].append(part)
    if "" in named or any(len(parts) > 1 for parts in named.values()):
        return None
    return {split: named[split][0] for split in SPLITS if split in named}
