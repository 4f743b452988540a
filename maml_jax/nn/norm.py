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
from typing import Literal, NamedTuple

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


def at_least_float32(x: jax.Array) -> jnp.dtype:
    """The type for parameters and moments of activations `x`, which may be of half precision."""
    return jnp.promote_types(x.dtype, jnp.float32)


class Affine(NamedTuple):
    """The map x -> gain x + shift, channel by channel.

    Attributes:
      gain: `[channels]`.
      shift: `[channels]`.
      rising: whether gain >= 0, bool `[channels]`; known before the moments of x are.
    """

    gain: jax.Array
    shift: jax.Array
    rising: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., channels]`."""
        return x * self.gain.astype(x.dtype) + self.shift.astype(x.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last (Ioffe & Szegedy 2015), in one of the modes above.

    Gives the affine map that normalises, `gain` and `shift` of every channel, rather than the normalised images, so
    that pooling can come first (`maml_jax.nn.layers.pool_normalized`).

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
    def __call__(self, x: jax.Array, offset: jax.Array | None, which: Pass, train: bool) -> Affine:
        """The map that takes `x` to the normalised `x + offset`.

        Args:
          x: `[..., channels]`.
          offset: `[channels]`, such as the bias of a convolution, which costs nothing here; None for zeros.
          which: the pass; with `train`, decides the statistics.
          train: meta-training.
        """
        mode = mode_of(self.norm, "/".join(self.path))
        channels, dtype = x.shape[-1:], at_least_float32(x)
        scale = self.param("scale", nn.initializers.ones, channels, dtype)
        bias = self.param("bias", nn.initializers.zeros, channels, dtype)
        if mode == "batch":
            return self._affine(*_moments(x), scale, bias)

        offset = jnp.zeros(channels, dtype) if offset is None else offset
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, dtype)
        var = self.variable("batch_stats", "var", jnp.ones, channels, dtype)
        if which is Pass.QUERY or (mode == "global" and not train):
            return self._affine(mean.value - offset, var.value, scale, bias)

        batch_mean, batch_var = _moments(x)
        if not self.is_initializing():
            count = x.size // x.shape[-1]
            mean.value = self._move(mean.value, batch_mean + offset)
            var.value = self._move(var.value, batch_var * (count / max(count - 1, 1)))
        return self._affine(batch_mean, batch_var, scale, bias)

    def _move(self, running: jax.Array, batch: jax.Array) -> jax.Array:
        return (1 - self.momentum) * running + self.momentum * jax.lax.stop_gradient(batch)

    def _affine(self, mean, var, scale, bias) -> Affine:
        gain = scale * jax.lax.rsqrt(var + self.epsilon)
        return Affine(gain, bias - mean * gain, scale >= 0)


@jax.custom_jvp
def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance per channel of `[..., channels]`, at least float32."""
    x = x.astype(at_least_float32(x))
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    return mean, jnp.square(x - mean).mean(axes)


@_moments.defjvp
def _moments_jvp(primals, tangents):
    # d Var x = 2 (E x dx - E x E dx). Nothing of the size of x has to be kept for the way back but x itself; a derived
    # rule keeps x - E x too.
    (x,), (dx,) = primals, tangents
    mean, var = _moments(x)
    x, dx = (a.astype(mean.dtype) for a in (x, dx))
    axes = tuple(range(x.ndim - 1))
    dmean = dx.mean(axes)
    return (mean, var), (dmean, 2 * ((x * dx).mean(axes) - mean * dmean))
