"""Batch normalisation whose statistics are an argument, so that one layer can be transductive, episodic or global.

A layer's mode says where its moments come from on the two passes of an episode:

| mode       | support pass                                    | query pass         | statistics             |
| ---------- | ----------------------------------------------- | ------------------ | ---------------------- |
| `batch`    | the batch's                                     | the batch's        | none: transductive     |
| `episodic` | the batch's; updates running ones               | the running ones   | fresh in every episode |
| `global`   | training: as episodic; test: the running ones   | the running ones   | one set for the run    |

Modes can differ from layer to layer (`mode_of`). The layer itself only reads the statistics it is given and returns
updated ones (Flax's `batch_stats` collection); that a layer is episodic means that the caller hands it fresh ones
(`maml_jax.nn.model.Model.episode_stats`).
"""

import enum
import re
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from maml_jax.errors import ConfigError

Mode = Literal["batch", "episodic", "global"]
MODES: tuple[Mode, ...] = ("batch", "episodic", "global")


class Pass(enum.Enum):
    """Which pass over an episode a forward evaluation is."""

    SUPPORT = enum.auto()
    QUERY = enum.auto()


def mode_of(norm: str, name: str) -> Mode:
    """The mode that a description of an encoder's normalisation gives to one layer.

    Args:
      norm: a mode for all layers, such as 'episodic', or comma-separated `pattern=mode` entries of which the first
        whose regular expression is found in the layer's name decides, such as 'block[12]=global, episodic' (a bare
        mode fits all).
      name: the layer's name, such as 'encoder/block1/norm'.

    Raises:
      ConfigError: an entry is malformed, or none fits.
    """
    entries = [entry.strip().rpartition("=") for entry in norm.split(",")]
    for pattern, _, mode in entries:
        if mode.strip() not in MODES:
            raise ConfigError(f"model.norm={norm!r}: {mode.strip()!r} is not one of {', '.join(MODES)}")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"model.norm={norm!r}: {pattern!r} is not a regular expression: {error}") from None
    for pattern, _, mode in entries:
        if re.search(pattern.strip(), name):
            return mode.strip()
    raise ConfigError(f"model.norm={norm!r} says nothing about {name}; end it with a mode for all other layers")


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last (Ioffe & Szegedy 2015), in one of the modes above.

    Normalises with the biased variance; running statistics move by `momentum` towards the batch mean and the *unbiased*
    variance, as PyTorch has it. No gradient flows through running statistics.

    Attributes:
      norm: the encoder's normalisation modes; `mode_of` picks this layer's by its name.
      momentum: weight of the newest batch in the running statistics.
      epsilon: added to the variance.
    """

    norm: str = "batch"
    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, which: Pass, train: bool) -> jax.Array:
        """Normalises `x`, `[..., channels]`; `which` pass it is and whether in meta-training decide the statistics."""
        mode = mode_of(self.norm, "/".join(self.path))
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels, x.dtype)
        bias = self.param("bias", nn.initializers.zeros, channels, x.dtype)
        if mode == "batch":
            return _normalize(x, *_moments(x), scale, bias, self.epsilon)

        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, x.dtype)
        var = self.variable("batch_stats", "var", jnp.ones, channels, x.dtype)
        if which is Pass.QUERY or (mode == "global" and not train):
            return _normalize(x, mean.value, var.value, scale, bias, self.epsilon)

        batch_mean, batch_var = _moments(x)
        if not self.is_initializing():
            count = x.size // x.shape[-1]
            mean.value = self._move(mean.value, batch_mean)
            var.value = self._move(var.value, batch_var * (count / max(count - 1, 1)))
        return _normalize(x, batch_mean, batch_var, scale, bias, self.epsilon)

    def _move(self, running: jax.Array, batch: jax.Array) -> jax.Array:
        return (1 - self.momentum) * running + self.momentum * jax.lax.stop_gradient(batch)


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance per channel."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    return mean, jnp.square(x - mean).mean(axes)


def _normalize(x, mean, var, scale, bias, epsilon):
    gain = scale * jax.lax.rsqrt(var + epsilon)
    return x * gain + (bias - mean * gain)
