"""Layers shared by the encoders."""

from collections.abc import Callable

import flax.linen as nn
import jax
from jax import lax

from maml_jax.nn.conv import conv_same
from maml_jax.nn.norm import at_least_float32
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


def piecewise(function: Callable[[jax.Array], PyTree], x: jax.Array, most: int) -> PyTree:
    """`function(x)`, computed for a piece of the batch after the other, and anew on the way back.

    Memory for what the function makes along the way is that of a piece, for one more evaluation.

    Args:
      function: of `[n, ...]`, which treats all n alike, to arrays `[n, ...]`.
      x: `[batch, ...]`.
      most: in a piece, which is a divisor of the batch; 0, or the batch and more, for no pieces.
    """
    batch = x.shape[0]
    size = max((n for n in range(1, most + 1) if batch % n == 0), default=batch)
    if size == batch:
        return function(x)
    pieces = x.reshape(batch // size, size, *x.shape[1:])
    out = lax.map(jax.checkpoint(function, prevent_cse=False), pieces)
    return jax.tree.map(lambda a: a.reshape(batch, *a.shape[2:]), out)
