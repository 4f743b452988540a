"""Batch normalisation whose statistics are an argument, so that one layer can be transductive, episodic or global.

A layer's mode says where its moments come from on the two passes of an episode:

| mode       | support pass                                    | query pass         | statistics             |
| ---------- | ----------------------------------------------- | ------------------ | ---------------------- |
| `batch`    | the batch's                                     | the batch's        | none: transductive     |
| `episodic` | the batch's; updates running ones               | the running ones   | fresh in every episode |
| `global`   | training: as episodic; test: the running ones   | the running ones   | one set for the run    |
| `per_step` | training: as episodic; test: the running ones   | as on the support  | a set per inner step   |
| `metabn`   | the batch's                                     | the context's      | the context's          |
| `tasknorm` | the batch's, mixed with each image's own        | likewise           | the context's          |

`per_step` is MAML++'s (Antoniou et al. 2018, arXiv:1810.09502): scale and bias, too, are an inner step's own. The paper
accumulates statistics per step for use at test. Its public code accumulates them, but always normalises by the batch,
and so is transductive: that is `per_step_batch`, `batch` with a scale and bias for each inner step. What is peculiar to
a step is picked by `maml_jax.nn.model.Model.apply`; the layer sees one step's.

`metabn` and `tasknorm` (TaskNorm-I; Bronskill et al. 2020, arXiv:2003.03284) take the moments of the support set, the
context, at the same parameters that the query set sees: hence a pass of its own over it (`Pass.CONTEXT`), through which
gradients flow. Both are inductive. They can replace `batch` in a trained model at test time.

Modes can differ from layer to layer (`mode_of`). The layer itself only reads the statistics it is given and returns
updated ones (Flax's `batch_stats` collection); that a layer is episodic means that the caller hands it fresh ones
(`maml_jax.nn.model.Model.episode_stats`).
"""

import enum
import math
import re
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from maml_jax.errors import ConfigError
from maml_jax.nn.kernels.moments import moments

Mode = Literal["batch", "episodic", "global", "per_step", "per_step_batch", "metabn", "tasknorm"]
MODES: tuple[Mode, ...] = get_args(Mode)
LASTING: tuple[Mode, ...] = ("global", "per_step")  # whose statistics outlive an episode
PER_STEP: tuple[Mode, ...] = ("per_step", "per_step_batch")  # whose parameters and statistics are a step's own
CONTEXT: tuple[Mode, ...] = ("metabn", "tasknorm")  # whose query pass needs a context pass before it


Entries = TypeVar("Entries")


class Pass(enum.Enum):
    """Which pass over an episode a forward evaluation is."""

    SUPPORT = enum.auto()
    CONTEXT = enum.auto()  # the support set at the adapted parameters, before the query pass
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


def at_least_float32(x: jax.Array | jax.ShapeDtypeStruct) -> jnp.dtype:
    """The type for parameters and moments of activations `x`, which may be of half precision."""
    return jnp.promote_types(x.dtype, jnp.float32)


class ImageMoments(NamedTuple):
    """What normalisation asks of activations: each image's own moments, from which follow those of the batch.

    Attributes:
      mean: `[batch, channels]`, at least float32.
      var: the biased variance, as `mean`.
    """

    mean: jax.Array
    var: jax.Array

    @property
    def batch(self) -> tuple[jax.Array, jax.Array]:
        """Mean and biased variance over all images, `[channels]`."""
        mean = self.mean.mean(0)
        return mean, (self.var + jnp.square(self.mean - mean)).mean(0)


class Affine(NamedTuple):
    """What normalises activations x: gain (x - mean) + bias.

    Attributes:
      mean: `[batch, 1, 1, channels]`, of the activations' type. Taken off first: where channels are far from zero for
        their deviation, gain x + (bias - gain mean) would lose digits.
      gain: as `mean`.
      bias: as `mean`.
    """

    mean: jax.Array
    gain: jax.Array
    bias: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises `[batch, height, width, channels]`, or whichever of its entries are there."""
        return (x - self.mean) * self.gain + self.bias


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
    def __call__(
        self,
        measure: Callable[[jax.Array], tuple[ImageMoments, Entries]],
        like: jax.ShapeDtypeStruct,
        offset: jax.Array | None,
        which: Pass,
        train: bool,
    ) -> tuple[Entries, Affine]:
        """How to normalise some or all entries of x + `offset`, where x need not be there as a whole.

        Args:
          measure: given for every channel whether the map that normalises it rises, bool `[channels]`, gives the
            moments of x and the entries that are to be normalised, in whatever form.
          like: shape and type of x.
          offset: `[channels]`, such as the bias of a convolution, which costs nothing here; None for zeros.
          which: the pass; with `train`, decides the statistics.
          train: meta-training.

        Returns:
          The entries, and the map that normalises them (and adds `offset` before).
        """
        channels, dtype = like.shape[-1:], at_least_float32(like)
        scale = self.param("scale", nn.initializers.ones, channels, dtype)
        bias = self.param("bias", nn.initializers.zeros, channels, dtype)
        moments, entries = measure(scale >= 0)
        mean, var = self._normalizing(moments, math.prod(like.shape[:-1]), offset, which, train)
        gain = scale * jax.lax.rsqrt(var + self.epsilon)
        by_image = (len(like), 1, 1, *channels)
        return entries, Affine(*(jnp.broadcast_to(a.astype(like.dtype), by_image) for a in (mean, gain, bias)))

    def _normalizing(self, moments, count, offset, which, train):
        """Mean and variance to normalise by, `[channels]`, or `[batch, 1, 1, channels]`."""
        mode = mode_of(self.norm, "/".join(self.path))
        channels, dtype = moments.mean.shape[1:], moments.mean.dtype
        if mode in ("batch", "per_step_batch"):
            return moments.batch
        if mode in CONTEXT:
            return self._context_moments(moments, which, mode)

        offset = jnp.zeros(channels, dtype) if offset is None else offset
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, dtype)
        var = self.variable("batch_stats", "var", jnp.ones, channels, dtype)
        queried, tested = which is Pass.QUERY, not train
        if {"episodic": queried, "global": queried or tested, "per_step": tested}[mode]:
            return mean.value - offset, var.value

        batch_mean, batch_var = moments.batch
        if which is not Pass.CONTEXT and not self.is_initializing():
            mean.value = self._move(mean.value, batch_mean + offset)
            var.value = self._move(var.value, batch_var * (count / max(count - 1, 1)))
        return batch_mean, batch_var

    def _context_moments(self, moments, which, mode):
        """TaskNorm's mean and variance: the context's, with weight α, and those of each image by itself."""
        (images, *channels), dtype = moments.mean.shape, moments.mean.dtype
        mean = self.variable("batch_stats", "context_mean", jnp.zeros, channels, dtype)
        var = self.variable("batch_stats", "context_var", jnp.ones, channels, dtype)
        size = self.variable("batch_stats", "context_size", jnp.zeros, (), dtype)
        context = (mean.value, var.value, size.value) if which is Pass.QUERY else (*moments.batch, float(images))
        if which is Pass.CONTEXT:
            mean.value, var.value, size.value = (jnp.asarray(c, dtype) for c in context)
        if mode == "metabn":
            return context[:2]
        slope = self.param("context_scale", nn.initializers.zeros, (), dtype)
        level = self.param("context_offset", nn.initializers.zeros, (), dtype)
        alpha = nn.sigmoid(slope * context[2] + level)
        instance = (m[:, None, None] for m in (moments.mean, moments.var))
        parts = ((alpha, *context[:2]), (1 - alpha, *instance))
        mean = sum(weight * m for weight, m, _ in parts)
        return mean, sum(weight * (v + jnp.square(m - mean)) for weight, m, v in parts)

    def _move(self, running: jax.Array, batch: jax.Array) -> jax.Array:
        return (1 - self.momentum) * running + self.momentum * jax.lax.stop_gradient(batch)


def image_moments(x: jax.Array) -> ImageMoments:
    """The moments of each of the images `[batch, height, width, channels]`."""
    return ImageMoments(*moments(x.astype(at_least_float32(x))))
