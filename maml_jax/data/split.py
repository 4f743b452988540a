"""Which classes belong to which split: drawn, or named."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maml_jax.data.archive import Tree
from maml_jax.data.source import SPLITS
from maml_jax.errors import DataError

Listing = Mapping[str, Mapping[str, Sequence[str]]]
"""Images of each class of each split."""
SHARES = {"train": 0.64, "val": 0.16, "test": 0.20}
"""Of the classes, in a random split: mini-ImageNet's."""


def random_split(classes: Mapping[str, Sequence[str]], seed: int, tree: Tree) -> dict[str, dict[str, Sequence[str]]]:
    """Deals classes out to the three splits, in `SHARES`: a function of their names and of `seed`.

    Raises:
      DataError: if there are less than three.
    """
    return {
        split: {name: classes[name] for name in names}
        for split, names in random_names(classes, seed, tree.path).items()
    }


def random_names(names: Iterable[str], seed: int, origin: object) -> dict[str, list[str]]:
    """The names that `random_split` gives each split, sorted."""
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
    """The classes that a list names for each split.

    Raises:
      DataError: if one is not there, or in two splits.
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
      DataError: if it cannot be read, or is malformed.
    """

    def __init__(self, file: Path):
        self._file = file
        try:
            self._names = read_json(file.read_bytes(), str(file))
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
        splits = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{origin} is not JSON: {error}") from error
    if not (isinstance(splits, dict) and splits and set(splits) <= set(SPLITS)) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in splits.values()
    ):
        raise DataError(f'{origin} must hold {{"train": [class names], "val": [...], "test": [...]}}')
    return {split: sorted(splits[split]) for split in SPLITS if split in splits}
