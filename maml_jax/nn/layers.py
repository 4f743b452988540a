"""Layers shared by the encoders."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from maml_jax.nn.conv import conv_same
from maml_jax.nn.norm import Affine, at_least_float32
from maml_jax.nn.pool import max_pool


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
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Maps `[batch, height, width, channels]` to `[batch, ceil(height / stride), ..., features]`.

        Returns:
          The convolution, and the bias that remains to be added, `[features]`, or None.
        """
        shape = (self.window, self.window, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, at_least_float32(x))
        bias = self.param("bias", nn.initializers.zeros, shape[-1:], kernel.dtype) if self.use_bias else None
        return conv_same(x, kernel.astype(x.dtype), self.stride), bias


def pool_normalized(x: jax.Array, normalize: Affine, activation: Callable) -> jax.Array:
    """`max_pool(activation(normalize(x)))` for a rising activation, at about a quarter of the work.

    Both maps are monotone in each channel, so the entry of a window that comes out largest is its largest one, or where
    the gain is negative its smallest, and only that one needs mapping.

    Args:
      x: `[batch, height, width, channels]`.
      normalize: the normalising map.
      activation: an increasing function, elementwise.

    Returns:
      `[batch, height // 2, width // 2, channels]`.
    """
    sign = jnp.where(normalize.rising, 1, -1).astype(x.dtype)
    return activation(normalize(sign * max_pool(sign * x)))
