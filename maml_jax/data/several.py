"""Several archives read as one folder, such as train.zip, val.zip and test.zip."""

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maml_jax.data.archive import Tree, open_tree


class Several:
    """Archives of a folder, each as if unpacked to a folder of its name; see `archive.Tree`.

    Args:
      path: the folder.
      files: the archives.
    """

    def __init__(self, path: Path, files: Sequence[Path]):
        self.path = path
        self._files = files

    @functools.cached_property
    def _trees(self) -> dict[str, Tree]:
        return {file.name.partition(".")[0]: open_tree(file) for file in self._files}

    @functools.cached_property
    def members(self) -> list[str]:
        """See `Tree`."""
        return sorted(f"{name}/{member}" for name, tree in self._trees.items() for member in tree.members)

    @property
    def left_out(self) -> Mapping[str, Sequence[str]]:
        """See `Tree`."""
        found = defaultdict(list)
        for name, tree in self._trees.items():
            for reason, members in tree.left_out.items():
                found[reason] += [f"{name}/{member}" for member in members]
        return dict(found)

    def stamp(self) -> dict[str, Any]:
        """See `Tree`."""
        return {"archives": [tree.stamp() for tree in self._trees.values()]}

    def read(self, member: str) -> bytes:
        """See `Tree`."""
        name, _, rest = member.partition("/")
        return self._trees[name].read(rest)
