"""Layers shared by the encoders."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from maml_jax.nn.conv import conv_same
from maml_jax.nn.norm import BatchNorm, Pass, at_least_float32, image_moments
from maml_jax.nn.pieces import Lazy, piecewise
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

    again = not keep and convolved.at_once(parent.piece) < len(like)

    def measure(rising):
        if not pool:
            if again:
                return convolved.compute(parent.piece, image_moments), convolved
            x, moments = convolved.compute_and(parent.piece, image_moments)
            return moments, Lazy.of(x)
        # A window's largest entry comes out largest, or its smallest where the channel's scale is negative.
        sign = jnp.broadcast_to(jnp.where(rising, 1, -1).astype(like.dtype), (len(like), 1, 1, like.shape[-1]))
        pooled = lambda x, sign: sign * max_pool(sign * x)  # noqa: E731
        if again:
            return convolved.compute(parent.piece, image_moments), convolved.then(pooled, Lazy.of(sign))

        def of_piece(sign, *inputs):
            x = convolved.function(*inputs)
            return image_moments(x), pooled(x, sign)

        moments, x = piecewise(of_piece, (sign, *convolved.inputs), convolved.at_once(parent.piece))
        return moments, Lazy.of(x)

    entries, normalize = BatchNorm(parent.norm, name=norm, parent=parent)(measure, like, bias, which, train)
    return entries.then(lambda x, normalize: normalize(x), Lazy.of(normalize))
