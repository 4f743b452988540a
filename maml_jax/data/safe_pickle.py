"""Unpickling of downloaded files, without running what they might contain.

A pickle is a program: it calls what it likes with what it likes. Even NumPy's own functions for rebuilding arrays are
not safe in its hands, since a pickled dtype may claim that bytes are pointers. So here nothing of NumPy's is handed
out: a pickle that asks for those functions gets stand-ins, which note what was asked and make an array of it.
"""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from maml_jax.errors import DataError

_SCALARS = (type(None), bool, int, float, str, bytes, bytearray, np.generic)
_KINDS = "biufcSUO"
"""Kinds of dtype that an array may have: numbers, byte strings, text, and objects that are plain themselves."""


def load(path: str | os.PathLike[str]) -> Any:
    """Reads a pickle of Python 2 or 3 that holds only plain data.

    Plain are NumPy arrays and scalars, lists, dicts, tuples, strings, bytes, numbers and None. Strings of Python 2,
    in which NumPy kept the bytes of arrays, are read as Latin-1.

    Args:
      path: the file.

    Returns:
      What was pickled. Its arrays are read-only.

    Raises:
      DataError: if the file cannot be read, is damaged, or asks for anything else, which is then not executed.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _load(file, str(path))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error


def loads(content: bytes, origin: str) -> Any:
    """As `load`, of a file that has been read already; `origin` names it in messages."""
    return _load(io.BytesIO(content), origin)


def _load(file: BinaryIO, origin: str) -> Any:
    try:
        return _resolve(_Unpickler(file, origin).load(), {})
    except DataError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"cannot read {origin}: truncated or not a pickle of plain data ({error!r})") from error


class _Unpickler(pickle.Unpickler):
    """Finds the stand-ins of `_GLOBALS` and nothing else."""

    def __init__(self, file: BinaryIO, origin: str):
        super().__init__(file, encoding="latin1")
        self._origin = origin

    def find_class(self, module: str, name: str) -> "_Global":
        """The stand-in for a global of a module.

        Raises:
          DataError: if there is none.
        """
        if (module, name) not in _GLOBALS:
            raise DataError(
                f"{self._origin} asks for {module}.{name}: not a pickle of plain data, so it was not loaded"
            )
        return _Global(_GLOBALS[module, name])


class _Global:
    """A function that a pickle may call but, unlike a bare one, not change."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function has no state")


class _Dtype:
    """Stands for `numpy.dtype`."""

    def __init__(self, name: str, align: bool = False, copy: bool = False):
        del align, copy  # they matter only for structured dtypes and for NumPy's own way of unpickling
        self.dtype = np.dtype(str(name))
        if self.dtype.kind not in _KINDS:
            raise pickle.UnpicklingError(f"arrays of {name} are not plain data")

    def __setstate__(self, state: tuple) -> None:
        _, byte_order, subdtype, names, fields = state[:5]
        if (subdtype, names, fields) != (None, None, None):
            raise pickle.UnpicklingError("structured arrays are not plain data")
        self.dtype = self.dtype.newbyteorder(byte_order)


class _Array:
    """Stands for an array under reconstruction; `array` is the array once it is done."""

    def __init__(self, *args: Any):
        del args  # type, shape and dtype of an empty array, all of which the state gives again

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, content = state
        self.array = _array(content, dtype, shape, "F" if fortran else "C")


def _array(content: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    """Makes an array of its bytes or, if it is one of objects, of the list of them."""
    if dtype.dtype.kind == "O":
        if not isinstance(content, list):
            raise pickle.UnpicklingError("array of objects without a list of them")
        flat = np.empty(len(content), object)
        for i, element in enumerate(_resolve(content, {})):
            flat[i] = element
        array = flat.reshape(shape, order=order)
    else:
        content = _encode(content) if isinstance(content, str) else bytes(content)
        array = np.ndarray(shape, dtype.dtype, content, order=order)
        if array.nbytes != len(content):
            raise pickle.UnpicklingError(f"array of {array.nbytes} bytes in {len(content)} bytes")
    array.flags.writeable = False
    return array


def _scalar(dtype: _Dtype, content: Any) -> Any:
    return _array(content, dtype, (), "C")[()]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Stands for `_codecs.encode`, by which Python 3 writes bytes in Python 2's formats."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes encoded as {encoding}")
    return text.encode("latin1")


_GLOBALS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,  # only ever an argument of _reconstruct
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): lambda: b"",  # how Python 3 writes no bytes in Python 2's formats
    ("collections", "OrderedDict"): dict,
    ("collections", "defaultdict"): lambda kind=None: {},
    ("__builtin__", "list"): list,  # as a defaultdict's kind
    ("builtins", "list"): list,
}
for _package in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    _GLOBALS[f"{_package}.multiarray", "_reconstruct"] = _Array
    _GLOBALS[f"{_package}.multiarray", "scalar"] = _scalar
    _GLOBALS[f"{_package}.numeric", "_frombuffer"] = _array


def _resolve(value: Any, done: dict[int, Any]) -> Any:
    """Returns `value` with stand-ins replaced by their arrays, or raises if anything in it is not plain data.

    Args:
      value: what was unpickled.
      done: what became of the lists, tuples and dicts met so far, by identity. What is shared stays shared: a pickle of
        a hundred bytes can hold a list of ten times a list of ten times a list, and so on, a thousand million elements.
    """
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, (*_SCALARS, np.ndarray)):
        return value
    if id(value) not in done:
        done[id(value)] = _resolve_elements(value, done)
    return done[id(value)]


def _resolve_elements(value: Any, done: dict[int, Any]) -> Any:
    if isinstance(value, list):
        return [_resolve(element, done) for element in value]
    if isinstance(value, tuple):
        return tuple(_resolve(element, done) for element in value)
    if isinstance(value, dict):
        return {_resolve(key, done): _resolve(element, done) for key, element in value.items()}
    raise pickle.UnpicklingError(f"a {type(value).__name__} is not plain data")
