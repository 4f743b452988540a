"""Layers shared by the encoders."""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from maml_jax.nn.conv import conv_same
from maml_jax.nn.norm import BatchNorm, Pass, at_least_float32, image_moments
from maml_jax.nn.pool import max_pool
from maml_jax.tree import PyTree


class Conv(nn.Module):
    """Convolution with window // 2 zeros on every side, whose second derivatives are as fast as its first ones.

    Attributes:
      features: output channels.
      window: side of the square window, in pixels, odd.
      stride: 1 or 2.
      use_bias: has one bias per output channel.
      kernel_init: initialiser of the `[window, window, in, features]` kernel.
    """

    features: int
    window: int = 3
    stride: int = 1
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[Callable[[jax.Array], jax.Array], jax.Array | None]:
        """The convolution of images such as `x`, `[batch, height, width, channels]`.

        Returns:
          The map to `[batch, ceil(height / stride), ..., features]`, and the bias that remains to be added,
          `[features]`, or None.
        """
        shape = (self.window, self.window, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, at_least_float32(x))
        bias = self.param("bias", nn.initializers.zeros, shape[-1:], kernel.dtype) if self.use_bias else None
        return lambda x: conv_same(x, kernel.astype(x.dtype), self.stride), bias


class Lazy(NamedTuple):
    """Images yet to be computed from others, each from its own, at once or in pieces of the batch.

    Attributes:
      function: of `inputs`, or the same rows of each, to the images.
      inputs: trees of arrays `[batch, ...]`.
      image_bytes: the size of an image, or of what it is made from, whichever is largest.
    """

    function: Callable[..., jax.Array]
    inputs: tuple[PyTree, ...]
    image_bytes: int

    @classmethod
    def of(cls, x: PyTree) -> "Lazy":
        """Images, or anything else with a leading `batch` axis, that are there."""
        return cls(lambda x: x, (x,), sum(leaf.nbytes // len(leaf) for leaf in jax.tree.leaves(x)))

    def then(self, function: Callable[..., jax.Array], *others: "Lazy") -> "Lazy":
        """`function` of these images and of others."""
        parts = (self, *others)
        ends = list(itertools.accumulate(len(part.inputs) for part in parts))

        def combined(*inputs):
            return function(*(p.function(*inputs[e - len(p.inputs) : e]) for p, e in zip(parts, ends, strict=True)))

        inputs = sum((part.inputs for part in parts), ())
        x = jax.eval_shape(combined, *inputs)
        own = math.prod(x.shape[1:]) * x.dtype.itemsize
        return Lazy(combined, inputs, max(own, *(part.image_bytes for part in parts)))

    @property
    def like(self) -> jax.ShapeDtypeStruct:
        """Shape and type of the images."""
        return jax.eval_shape(self.function, *self.inputs)

    def compute(self, size: int, function: Callable[[jax.Array], PyTree] = lambda x: x) -> PyTree:
        """The images, or `function` of them, those of a piece taking at most `size` bytes; 0: all at once."""
        most = self.at_once(size)
        return piecewise(lambda *inputs: function(self.function(*inputs)), self.inputs, most)

    def at_once(self, size: int) -> int:
        """How many images take at most `size` bytes, but at least 1; all of them if that is 0."""
        batch = len(jax.tree.leaves(self.inputs)[0])
        return min(max(size // self.image_bytes, 1), batch) if size else batch


def conv_norm(
    parent: nn.Module,
    images: Lazy,
    which: Pass,
    train: bool,
    *,
    conv: str = "conv",
    norm: str = "norm",
    pool: bool = False,
    keep: bool = True,
    **how,
) -> Lazy:
    """A convolution and the normalisation after it, in pieces of the batch.

    The images to be convolved are computed in its pieces, and the normalisation in those of what comes next, so that
    only what convolutions give needs to be kept for the way back.

    Args:
      parent: the module to which the two layers belong, with their `channels`, `norm` and `piece`: the bytes of
        convolved images that there may be at once, or 0 for no limit.
      images: what is convolved, `[batch, height, width, channels]`.
      which: the pass.
      train: meta-training.
      conv: name of the convolution.
      norm: name of the normalisation.
      pool: the result is max-pooled. Only a quarter of the entries then has to be normalised, and may be mapped by a
        rising function thereafter.
      keep: keep what the convolution gives; if not, and the batch is in pieces, it is computed again where it is used.
      **how: other attributes of the convolution, see `Conv`.
    """
    convolve, bias = Conv(parent.channels, name=conv, parent=parent, **how)(images.like)
    convolved = images.then(convolve)
    like = convolved.like

    def measure(rising):
        if not pool:
            x = Lazy.of(convolved.compute(parent.piece))
            return x.compute(parent.piece, image_moments), x
        # A window's largest entry comes out largest, or its smallest where the channel's scale is negative.
        sign = jnp.broadcast_to(jnp.where(rising, 1, -1).astype(like.dtype), (len(like), 1, 1, like.shape[-1]))
        pooled = lambda x, sign: sign * max_pool(sign * x)  # noqa: E731
        if not keep and convolved.at_once(parent.piece) < len(like):
            return convolved.compute(parent.piece, image_moments), convolved.then(pooled, Lazy.of(sign))

        def of_piece(sign, *inputs):
            x = convolved.function(*inputs)
            return image_moments(x), pooled(x, sign)

        moments, x = piecewise(of_piece, (sign, *convolved.inputs), convolved.at_once(parent.piece))
        return moments, Lazy.of(x)

    entries, normalize = BatchNorm(parent.norm, name=norm, parent=parent)(measure, like, bias, which, train)
    return entries.then(lambda x, normalize: normalize(x), Lazy.of(normalize))


def piecewise(function: Callable[..., PyTree], inputs: tuple[PyTree, ...], most: int) -> PyTree:
    """`function(*inputs)`, computed for a piece of the batch after the other, and anew on the way back.

    Memory for what the function makes along the way is that of a piece, for one more evaluation.

    Args:
      function: of arrays `[n, ...]`, which treats all n alike, to arrays `[n, ...]`.
      inputs: arrays `[batch, ...]`.
      most: in a piece, which is a divisor of the batch.
    """
    batch = len(jax.tree.leaves(inputs)[0])
    size = max(n for n in range(1, min(most, batch) + 1) if batch % n == 0)
    if size == batch:
        return function(*inputs)
    pieces = jax.tree.map(lambda a: a.reshape(batch // size, size, *a.shape[1:]), inputs)
    out = lax.map(jax.checkpoint(lambda piece: function(*piece), prevent_cse=False), pieces)
    return jax.tree.map(lambda a: a.reshape(batch, *a.shape[2:]), out)
