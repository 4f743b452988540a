"""Encoders by name, with their own hyper-parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn

from maml_jax.nn.convnet import ConvNet
from maml_jax.nn.mlp import MLP
from maml_jax.nn.norm import Normalization
from maml_jax.nn.resnet import ResNet12, ResNet18


class _Entry(NamedTuple):
    """A module, and its attributes for a width of its first block."""

    module: type[nn.Module]
    attributes: Callable[[int], dict[str, Any]]


def _narrow(width):
    return {"channels": tuple(c * (width or 64) // 64 for c in (64, 128, 256, 512))}


def _wide(width):
    return {"channels": tuple(c * (width or 64) // 64 for c in (64, 160, 320, 640))}


ENCODERS = {
    "convnet4": _Entry(ConvNet, lambda width: {"width": width or 32}),
    "wide_convnet4": _Entry(ConvNet, lambda width: {"width": width or 64}),
    "resnet12": _Entry(ResNet12, _narrow),
    "wide_resnet12": _Entry(ResNet12, _wide),
    "resnet18": _Entry(ResNet18, _narrow),
    "wide_resnet18": _Entry(ResNet18, _wide),
    "resnet18_standard": _Entry(ResNet18, lambda width: _narrow(width) | {"blocks": 2}),
    "mlp": _Entry(MLP, lambda width: {"width": width or 40}),
}


def encoder(name: str, width: int = 0, norm: Normalization | str = "batch", options: str = "") -> nn.Module:
    """An encoder by its name."""
    module, attributes = ENCODERS[name]
    how = attributes(width)
    if "norm" in module.__dataclass_fields__:
        how["norm"] = norm
    return module(**how)
