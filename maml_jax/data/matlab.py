"""MATLAB files, which some data sets keep their labels in, read by SciPy after a look at their size and headers."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from maml_jax.data.archive import UNKNOWN, Folder, Tree, open_tree
from maml_jax.data.source import stamp
from maml_jax.errors import DataError

_MOST_BYTES = 4 << 20  # ten times the largest that is read
_MOST_ENTRIES = 1 << 20  # of a variable: a compressed file may claim any number


class MatFiles:
    """The MATLAB files of a data set, wherever they lie in its folder, or in archives.

    Args:
      root: the folder.
      tree: where the images are, in which such a file may lie as well.
      archives: names of others in the folder that go first, where they are.
    """

    def __init__(self, root: Path, tree: Tree, *archives: str):
        files = [root / name for name in archives if (root / name).is_file()]
        outside = [Folder(root)] if root.is_dir() and not isinstance(tree, Folder) else []
        self._trees: list[Tree] = [*outside, *map(open_tree, files), tree]
        self._files = files

    def find(self, name: str) -> tuple[Tree, str] | None:
        """Where a file is; None if it is nowhere."""
        for tree in self._trees:
            for member in tree.left_out.get(UNKNOWN, ()):
                if member.rpartition("/")[2] == name:
                    return tree, member
        return None

    def stamps(self) -> list[dict[str, Any]]:
        """What stands for them in a fingerprint, but for those in an archive of images, which its own stamp covers."""
        inside = [tree for tree in self._trees if isinstance(tree, Folder)]
        found = [tree.path / m for tree in inside for m in tree.left_out.get(UNKNOWN, ()) if m.endswith(".mat")]
        return [stamp(file) for file in dict.fromkeys([*found, *self._files])]

    def read(self, name: str, variables: Sequence[str]) -> dict[str, np.ndarray]:
        """The variables of a file, without dimensions of 1.

        Raises:
          DataError: if it is nowhere, cannot be read, is too large, or lacks one.
        """
        found = self.find(name)
        if found is None:
            raise DataError(f"there is no {name} in {self._trees[0].path}")
        tree, member = found
        if isinstance(tree, Folder) and (tree.path / member).stat().st_size > _MOST_BYTES:
            raise _too_large(f"{tree.path / member}")
        return read(tree.read(member), variables, f"{tree.path / member}")


def read(content: bytes, variables: Sequence[str], origin: str) -> dict[str, np.ndarray]:
    """Reads variables of a MATLAB file, of version 5 to 7, without dimensions of 1.

    Args:
      content: the file's.
      variables: their names.
      origin: what to call the file in messages.

    Raises:
      DataError: if it cannot be read, is too large, or lacks one.
    """
    if len(content) > _MOST_BYTES:
        raise _too_large(origin)
    try:
        shapes = {name: shape for name, shape, _ in scipy.io.whosmat(io.BytesIO(content))}
        if any(math.prod(shapes.get(name, ())) > _MOST_ENTRIES for name in variables):
            raise _too_large(origin)
        found = scipy.io.loadmat(io.BytesIO(content), variable_names=list(variables), squeeze_me=True)
    except DataError:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise DataError(f"cannot read {origin}: {error!r}; download it again") from error
    if lacking := [name for name in variables if name not in found]:
        raise DataError(f"{origin} has the variables {', '.join(shapes) or 'none'}, but not {', '.join(lacking)}")
    return {name: np.atleast_1d(found[name]) for name in variables}


def integers(values: np.ndarray, origin: str) -> list[int]:
    """The numbers of an array of one dimension, or of one of an object for each.

    Raises:
      DataError: if they are no integers.
    """
    try:
        numbers = [int(value) for value in values]
        if any(number != value for number, value in zip(numbers, values, strict=True)):
            raise ValueError("they are no integers")
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"cannot read the labels in {origin}: {error}") from error
    return numbers


def _too_large(origin: str) -> DataError:
    return DataError(f"{origin} is larger than labels can be; it is not read")
