"""Layers shared by the encoders."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from maml_jax.nn.barrier import materialize
from maml_jax.nn.conv import conv_same
from maml_jax.nn.norm import Affine, at_least_float32


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


@jax.custom_jvp
def max_pool(x: jax.Array) -> jax.Array:
    """Max-pooling over 2x2 windows with stride 2; an odd last row or column is dropped, as in PyTorch.

    Args:
      x: `[batch, height, width, channels]`.

    Returns:
      `[batch, height // 2, width // 2, channels]`. A window's gradient goes to its first maximum in row-major order.
    """
    a, b, c, d = _corners(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


@max_pool.defjvp
def _max_pool_jvp(primals, tangents):
    # The position of the maximum is found once and kept. Finding it again by comparing the entries with the maximum, as
    # the derivative of a reduction does, fails when a compiler computes an entry twice, rounded differently.
    (x,), (dx,) = primals, tangents
    a, b, c, d = _corners(x)
    top, low = jnp.maximum(a, b), jnp.maximum(c, d)
    place = materialize(lax.stop_gradient(jnp.where(low > top, 2 + (d > c), b > a).astype(x.dtype)))
    return _pick(place, x), _pick(place, dx)


def _windows(x):
    """`[n, h, w, c]` to `[n, h // 2, 2, w // 2, 2, c]`."""
    n, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)


def _corners(x):
    """The four entries of each window, in row-major order."""
    windows = _windows(x)
    return [windows[:, :, i, :, j] for i in (0, 1) for j in (0, 1)]


def _pick(place, x):
    """The entry of each window at `place`, 0 to 3; linear in `x`."""
    places = jnp.arange(4, dtype=place.dtype).reshape(2, 1, 2, 1)
    return jnp.where(place[:, :, None, :, None] == places, _windows(x), 0).sum((2, 4))
