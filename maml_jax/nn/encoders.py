"""Encoders by name, with their own hyper-parameters."""

import ast
import collections.abc
import dataclasses
import difflib
import functools
import importlib
import types
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn

from maml_jax.errors import ConfigError
from maml_jax.nn.convnet import ConvNet
from maml_jax.nn.mlp import MLP
from maml_jax.nn.norm import Normalization
from maml_jax.nn.resnet import ResNet12, ResNet18

_NOT_OPTIONS = {"norm", "name", "parent"}  # the first is a field of the configuration, the others are Flax's


class _Entry(NamedTuple):
    """A module, and its attributes for the width that its first block is to have; 0 for its own."""

    module: type[nn.Module]
    attributes: Callable[[int], dict[str, Any]]


def _width(own: int, width: int) -> dict[str, Any]:
    return {"width": width or own}


def _channels(own: tuple[int, ...], width: int) -> dict[str, Any]:
    return {"channels": tuple(c * (width or own[0]) // own[0] for c in own)}


_narrow = functools.partial(_channels, (64, 128, 256, 512))
_wide = functools.partial(_channels, (64, 160, 320, 640))

ENCODERS: dict[str, _Entry] = {
    "convnet4": _Entry(ConvNet, functools.partial(_width, 32)),
    "wide_convnet4": _Entry(ConvNet, functools.partial(_width, 64)),
    "resnet12": _Entry(ResNet12, _narrow),
    "wide_resnet12": _Entry(ResNet12, _wide),
    "resnet18": _Entry(ResNet18, _narrow),
    "wide_resnet18": _Entry(ResNet18, _wide),
    "resnet18_standard": _Entry(ResNet18, lambda width: {**_narrow(width), "blocks": 2}),
    "mlp": _Entry(MLP, functools.partial(_width, 40)),
}


def encoder(name: str, width: int = 0, norm: Normalization | str = "batch", options: str = "") -> nn.Module:
    """An encoder by its name.

    Args:
      name: a key of `ENCODERS`, or 'package.module:Class' for a Flax module of one's own, whose `__call__(x, phase)`
        maps inputs to features `[batch, features]`.
      width: channels of the first block, or units of a layer; 0 for the encoder's own.
      norm: normalisation modes by layer, which a module without an attribute `norm` does not get.
      options: other attributes as Python writes keyword arguments: 'blocks=3', 'channels=(32, 64, 128, 256)'.

    Raises:
      ConfigError: there is no such encoder, or it has no such options; naming model.encoder or model.options.
    """
    entry = _own(name) if ":" in name else ENCODERS.get(name)
    if entry is None:
        close = difflib.get_close_matches(name, ENCODERS, 1)
        raise ConfigError(
            f"model.encoder={name!r} is neither one of {', '.join(ENCODERS)} nor 'package.module:Class'",
            {"model.encoder": close[0]} if close else {},
        )
    fields = {f.name: f for f in dataclasses.fields(entry.module) if f.init}
    given = entry.attributes(width)
    if unknown := given.keys() - fields.keys():
        raise ConfigError(f"model.width={width}: {name} has no attribute {unknown.pop()!r}", {"model.width": 0})
    if "norm" in fields:
        given["norm"] = norm
    given |= _options(name, entry.module, options)
    missing = [f.name for f in fields.values() if f.name not in given and not _has_default(f)]
    if missing:
        raise ConfigError(f"model.options={options!r}: {name} needs a value for {', '.join(missing)}")
    try:
        return entry.module(**given)
    except ValueError as error:
        raise ConfigError(f"model.options={options!r}: {error}") from error


def _own(name: str) -> _Entry:
    """The user's own module."""
    path, _, attribute = name.partition(":")
    try:
        module = getattr(importlib.import_module(path), attribute)
    except (ImportError, AttributeError, ValueError) as error:  # the last is for an empty or a relative path
        raise ConfigError(f"model.encoder={name!r} cannot be imported: {error}") from error
    if not (isinstance(module, type) and issubclass(module, nn.Module)):
        raise ConfigError(f"model.encoder={name!r} is no class of Flax modules (flax.linen.Module)")
    return _Entry(module, lambda width: {"width": width} if width else {})


def _options(name: str, module: type[nn.Module], text: str) -> dict[str, Any]:
    """Reads options, checked against the module's attributes and their types."""
    if not text:
        return {}
    hints = typing.get_type_hints(module)
    names = [f.name for f in dataclasses.fields(module) if f.init and f.name not in _NOT_OPTIONS]
    known = {n: hints[n] for n in names if typing.get_origin(hints[n]) is not collections.abc.Callable}
    there = ", ".join(f"{n} ({_said(kind)})" for n, kind in known.items()) or "none"
    options = {}
    for field, value in _keywords(text).items():
        if field not in known:
            raise ConfigError(f"model.options={text!r}: {name} has no {field!r}; its options are {there}")
        value = tuple(value) if isinstance(value, list) else value
        if not _fits(value, known[field]):
            raise ConfigError(f"model.options={text!r}: {field}={value!r} is not of type {_said(known[field])}")
        options[field] = float(value) if known[field] is float else value
    return options


def _keywords(text: str) -> dict[str, Any]:
    try:
        call = ast.parse(f"dict({text})", mode="eval").body
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("there is a value without a name")
        return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (AttributeError, SyntaxError, ValueError) as error:
        raise ConfigError(f"model.options={text!r} must read like 'blocks=3, width=64', with literal values") from error


def _fits(value: Any, kind: Any) -> bool:
    """Whether a literal is of the type that an annotation names."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        parts = parts[:1] * len(value) if parts[1:] == (...,) and isinstance(value, tuple) else parts
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if origin is typing.Literal:
        return value in parts
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return kind is Any or isinstance(value, origin or kind)


def _said(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind).replace("typing.", "")


def _has_default(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
