"""Layers shared by the encoders."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from maml_jax.nn.conv import conv_same


class Conv(nn.Module):
    """Convolution with window // 2 zeros on every side, whose second derivatives are as fast as its first ones.

    Attributes:
      features: output channels.
      window: side of the square window, in pixels, odd.
      stride: 1 or 2.
      use_bias: adds one bias per output channel.
      kernel_init: initialiser of the `[window, window, in, features]` kernel.
    """

    features: int
    window: int = 3
    stride: int = 1
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, height, width, channels]` to `[batch, ceil(height / stride), ..., features]`."""
        shape = (self.window, self.window, x.shape[-1], self.features)
        y = conv_same(x, self.param("kernel", self.kernel_init, shape, x.dtype), self.stride)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,), x.dtype)
        return y


def max_pool(x: jax.Array) -> jax.Array:
    """Max-pooling over 2x2 windows with stride 2; an odd last row or column is dropped, as in PyTorch.

    Args:
      x: `[batch, height, width, channels]`.

    Returns:
      `[batch, height // 2, width // 2, channels]`. A window's gradient is shared out evenly among tied maxima.
    """
    # By pairwise maxima, whose derivative compares the entries with each other. That of a reduction compares them with
    # the maximum, and a compiler may compute an entry twice, rounded differently: then none equals it, and the
    # gradient is lost.
    n, h, w, c = x.shape
    rows = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2 * 2, c)
    pairs = jnp.maximum(rows[:, :, 0], rows[:, :, 1]).reshape(n, h // 2, w // 2, 2, c)
    return jnp.maximum(pairs[:, :, :, 0], pairs[:, :, :, 1])
