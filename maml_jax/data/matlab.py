"""MATLAB files, which some data sets keep their labels in, read here: SciPy's reader crashes on damaged ones.

The format is version 5, which is that of versions 6 and 7 as well: "MAT-File Format", The MathWorks (2014). Read are
numbers, text, cell arrays and struct arrays, all as if of one dimension, in MATLAB's order.
"""

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from maml_jax.data.archive import UNKNOWN, Folder, Tree, open_tree
from maml_jax.data.source import stamp
from maml_jax.errors import DataError

_MOST_BYTES = 4 << 20  # ten times the largest that is read
_MOST_DECOMPRESSED = 32 << 20  # four times the largest that is read
_DEEPEST = 8
_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_CELL, _STRUCT, _CHAR = 1, 2, 4
_NUMERIC = range(6, 16)


class _Damaged(Exception):
    """What is wrong with a file."""


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

    def read(self, name: str, variable: str) -> Any:
        """A variable of a file; see `read`.

        Raises:
          DataError: if the file is nowhere, cannot be read, is too large, or lacks the variable.
        """
        found = self.find(name)
        if found is None:
            raise DataError(f"there is no {name} in {self._trees[0].path}")
        tree, member = found
        if isinstance(tree, Folder) and (tree.path / member).stat().st_size > _MOST_BYTES:
            raise _too_large(f"{tree.path / member}")
        return read(tree.read(member), variable, f"{tree.path / member}")


def read(content: bytes, variable: str, origin: str) -> Any:
    """Reads a variable of a MATLAB file.

    Args:
      content: the file's.
      variable: its name.
      origin: what to call the file in messages.

    Returns:
      For numbers, an array `[entries]`; for text, a string; for a cell array, a list; for a struct array, a list of a
      dict for each entry.

    Raises:
      DataError: if the file cannot be read, is too large, or lacks the variable.
    """
    if len(content) > _MOST_BYTES:
        raise _too_large(origin)
    try:
        order = {b"IM": "<", b"MI": ">"}.get(content[_HEADER - 2 : _HEADER])
        if order is None:
            raise _Damaged("it is no MATLAB file of version 5 to 7")
        names, at = [], _HEADER
        while at < len(content):
            kind, body, at = _element(memoryview(content), at, order)
            if kind == _COMPRESSED:
                kind, body, _ = _element(_decompressed(body), 0, order)
            if kind == _MATRIX:
                name, value = _Matrix(body, order).read(variable)
                if name == variable:
                    return value
                names.append(name)
    except (_Damaged, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"cannot read {origin}: {error}; download it again") from error
    raise DataError(f"{origin} has the variables {', '.join(names) or 'none'}, but not {variable}")


def _decompressed(body: memoryview) -> memoryview:
    stream = zlib.decompressobj()
    content = stream.decompress(body, _MOST_DECOMPRESSED)
    if not stream.eof:
        raise _Damaged("it is truncated, or holds more than labels can")
    return memoryview(content)


def _element(buffer: memoryview, at: int, order: str) -> tuple[int, memoryview, int]:
    """The kind and the content of the data element at a place, and the place of the next."""
    if at + 8 > len(buffer):
        raise _Damaged(f"truncated at byte {at}")
    kind, size = struct.unpack_from(f"{order}II", buffer, at)
    start, end = at + 8, at + 8 + size
    following = end + (0 if kind == _COMPRESSED else -size % 8)
    if kind >> 16:  # a small one, within its own tag
        kind, size = kind & 0xFFFF, kind >> 16
        start, end, following = at + 4, at + 4 + size, at + 8
    if end > len(buffer) or end > following:
        raise _Damaged(f"truncated at byte {at}")
    return kind, buffer[start:end], following


class _Matrix:
    """An array of whichever class, in the content of its data element."""

    def __init__(self, body: memoryview, order: str, depth: int = 0):
        if depth > _DEEPEST:
            raise _Damaged(f"arrays are more than {_DEEPEST} deep")
        self._body, self._order, self._depth, self._at = body, order, depth, 0

    def read(self, wanted: str | None = None) -> tuple[str, Any]:
        """Its name and value; the value only if the name is the one wanted, or any."""
        if not self._body:
            return "", np.zeros(0)
        flags = self._integers(2)
        shape = self._integers()
        name = str(self._next()[1], "latin-1")
        if wanted is not None and name != wanted:
            return name, None
        kind, count = int(flags[0]) & 0xFF, math.prod(map(int, shape))
        if not 0 <= count <= len(self._body) or min(shape, default=0) < 0:
            raise _Damaged(f"'{name}' claims {count} entries")
        return name, self._value(kind, count)

    def _value(self, kind: int, count: int) -> Any:
        if kind == _CELL:
            return [self._inner() for _ in range(count)]
        if kind == _STRUCT:
            (length,) = self._integers(1)
            names = bytes(self._next()[1])
            if not (names and 1 <= length <= 64) or len(names) % length:
                raise _Damaged("names of fields are malformed")
            fields = [names[i : i + length].split(b"\0")[0].decode("latin-1") for i in range(0, len(names), length)]
            return [{field: self._inner() for field in fields} for _ in range(count)]
        form, content = self._next()
        if kind == _CHAR and form in _TEXTS:
            wide = {"<": "-le", ">": "-be"}[self._order] if _TEXTS[form] in ("utf-16", "utf-32") else ""
            return str(content, _TEXTS[form] + wide)
        if kind not in _NUMERIC or form not in _NUMBERS:
            raise _Damaged(f"arrays of class {kind} and type {form} are not read")
        return self._numbers(form, content, count)

    def _inner(self) -> Any:
        kind, body = self._next()
        if kind != _MATRIX:
            raise _Damaged(f"an element of type {kind} instead of an array")
        return _Matrix(body, self._order, self._depth + 1).read()[1]

    def _integers(self, count: int | None = None) -> np.ndarray:
        form, content = self._next()
        if form not in (5, 6):
            raise _Damaged(f"an element of type {form} instead of integers")
        return self._numbers(form, content, len(content) // 4 if count is None else count)

    def _numbers(self, form: int, content: memoryview, count: int) -> np.ndarray:
        kind = np.dtype(self._order + _NUMBERS[form])
        if len(content) != count * kind.itemsize:
            raise _Damaged(f"{len(content)} bytes instead of {count} numbers")
        return np.frombuffer(content, kind)

    def _next(self) -> tuple[int, memoryview]:
        kind, content, self._at = _element(self._body, self._at, self._order)
        return kind, content


def integers(values: Any, origin: str) -> list[int]:
    """The integers among some values, each a number or an array of one.

    Raises:
      DataError: if they are no integers.
    """
    try:
        numbers = [np.asarray(value).item() for value in values]
        if all(number == int(number) for number in numbers):
            return list(map(int, numbers))
    except (TypeError, ValueError, OverflowError):
        pass
    raise DataError(f"cannot read the labels in {origin}: they are no integers")


def _too_large(origin: str) -> DataError:
    return DataError(f"{origin} is larger than labels can be; it is not read")
