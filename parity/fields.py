"""What a field of a golden file may hold: kinds of values, in words and as a test."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Kind = tuple[str, Callable[[Any], bool]]  # what a field must be, in words and as a test


class GoldenError(ValueError):
    """A golden file that cannot be used; the message names the file, the field, and what is wrong with it."""


def number(value: Any) -> bool:
    """Whether `value` is a number that is finite and no truth value."""
    return type(value) in (int, float) and math.isfinite(value)  # bool is an int to isinstance


def one_of(options: Iterable[str]) -> Kind:
    """A string among `options`."""
    return f"one of {', '.join(options)}", lambda value: isinstance(value, str) and value in options


COUNT: Kind = "a positive integer", lambda value: type(value) is int and value > 0
INDEX: Kind = "an integer of 0 or more", lambda value: type(value) is int and value >= 0
NUMBER: Kind = "a finite number", number
AMOUNT: Kind = "a finite number of 0 or more", lambda value: number(value) and value >= 0
FLAG: Kind = "true or false", lambda value: type(value) is bool
TEXT: Kind = "a string", lambda value: isinstance(value, str)
TEXTS: Kind = "a list of strings", lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value)
LIST: Kind = "a list", lambda value: isinstance(value, list)
OBJECT: Kind = "an object", lambda value: True  # left to the `checked` of its own fields


def checked(where: str, values: Any, kinds: Mapping[str, Kind], **defaults: Any) -> dict[str, Any]:
    """The fields of a JSON object, completed by defaults, if they are exactly those of `kinds`."""
    if not isinstance(values, dict):
        raise GoldenError(f"{where} is {values!r}, expected an object")
    values = defaults | values
    for name in sorted(values.keys() ^ kinds.keys()):
        raise GoldenError(f"{where}.{name} is {'missing' if name in kinds else 'unknown'}")
    for name, (expected, valid) in kinds.items():
        if not valid(values[name]):
            raise GoldenError(f"{where}.{name} is {values[name]!r}, expected {expected}")
    return values
