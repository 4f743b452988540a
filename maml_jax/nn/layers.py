"""Layers shared by the encoders."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from maml_jax.meta.learner import Phase
from maml_jax.nn.kernels.conv import conv_same
from maml_jax.nn.kernels.pieces import Images, computed, each, lazily, measured, recomputed, settled
from maml_jax.nn.kernels.pool import max_pool
from maml_jax.nn.moments import at_least_float32, image_moments
from maml_jax.nn.norm import Normalization

__all__ = ["Conv", "ConvNorm", "Convolve", "Encoder", "computed", "each", "lazily", "max_pool", "recomputed", "settled"]

Convolve = Callable[[jax.Array, jax.Array, int], jax.Array]  # of images, kernel and stride

_FEW = 8  # input channels, of which a convolution costs less to compute again than its result to keep


class Encoder(nn.Module, kw_only=True):
    """A convolutional encoder, as far as all have the same.

    What it does to images it does by the layers and functions of this module, and so it may be given images that are
    yet to be computed, and give back such (see `maml_jax.nn.kernels.pieces`).

    Attributes:
      norm: normalisation modes by layer, or their description (see `Normalization.parse`).
      conv: what convolves images `[batch, height, width, in]` with a kernel `[window, window, in, out]` and a stride.
    """

    norm: Normalization | str = "batch"
    conv: Convolve = conv_same

    def __post_init__(self):
        object.__setattr__(self, "norm", Normalization.parse(self.norm))
        super().__post_init__()


class Conv(nn.Module):
    """Convolution with window // 2 zeros on every side, whose second derivatives are as fast as its first ones.

    Attributes:
      features: output channels.
      window: side of the square window, in pixels, odd.
      stride: 1 or 2.
      use_bias: has one bias per output channel.
      kernel_init: initialiser of the `[window, window, in, features]` kernel.
      conv: what convolves, as in `Encoder`.
      warp: a linear map of the output channels follows, the identity at first. If it is meta-learned but does not adapt
        (`inner.fixed`), inner steps of the kernel K are preconditioned: K T moves by −α G Tᵀ T, G being the gradient of
        K T (T-net; Lee & Choi 2018, arXiv:1801.05558; WarpGrad with linear warps; Flennerhag et al. 2020,
        arXiv:1909.00025). The two are one convolution, with the kernel K T.
    """

    features: int
    window: int = 3
    stride: int = 1
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.he_normal()
    conv: Convolve = conv_same
    warp: bool = False

    def __call__(self, x: Images) -> Images:
        """Maps `[batch, height, width, channels]` to `[batch, ceil(height / stride), ..., features]`."""
        convolve, bias = self.parts(x)
        return each(convolve if bias is None else lambda x: convolve(x) + bias.astype(x.dtype), x)

    @nn.compact
    def parts(self, like: Images) -> tuple[Callable[[jax.Array], jax.Array], jax.Array | None]:
        """The map of images such as `like`, without the bias; and the bias, `[features]`, or None."""
        shape = (self.window, self.window, like.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, at_least_float32(like))
        bias = self.param("bias", nn.initializers.zeros, shape[-1:], kernel.dtype) if self.use_bias else None
        if self.warp:
            warp = self.param("warp", lambda _, size: jnp.eye(size, dtype=kernel.dtype), self.features)
            kernel, bias = kernel @ warp, None if bias is None else bias @ warp
        return lambda x: self.conv(x, kernel.astype(x.dtype), self.stride), bias


class ConvNorm(nn.Module):
    """Convolution, normalisation, an activation if wanted, and 2x2 max-pooling if wanted.

    The order is convolution, pooling, normalisation, activation: as what normalisation and the activation do to a
    channel is monotone, only the quarter of the entries that pooling leaves needs to be mapped.

    Attributes:
      features: output channels.
      norm: as in `Encoder`.
      window: see `Conv`.
      stride: see `Conv`.
      pool: max-pools; an odd last row or column is dropped.
      activation: entry by entry, and never falling if pooled; None for none.
      use_bias: see `Conv`.
      kernel_init: see `Conv`.
      conv: see `Conv`.
      warp: see `Conv`.
      names: of the convolution and the normalisation, among the parameters and for `norm`.
    """

    features: int
    norm: Normalization | str = "batch"
    window: int = 3
    stride: int = 1
    pool: bool = False
    activation: Callable[[jax.Array], jax.Array] | None = None
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.he_normal()
    conv: Convolve = conv_same
    warp: bool = False
    names: tuple[str, str] = ("conv", "norm")

    @nn.compact
    def __call__(self, x: Images, phase: Phase) -> Images:
        """Maps `[batch, height, width, channels]` to `[batch, height', width', features]`."""
        conv, norm = self._layers()
        convolve, bias = conv.parts(x)
        y = each(convolve, x)
        keep = self.window > 1 and x.shape[-1] >= _FEW
        if self.pool:
            moments, entries = measured(y, image_moments, _pooled, self._signs(norm, y, phase), keep=keep)
        else:
            moments, entries = measured(y, image_moments, keep=keep)
        activate = self.activation or (lambda x: x)
        return each(lambda x, normalize: activate(normalize(x)), entries, norm.affine(y, moments, phase, bias))

    def _layers(self):
        policy = Normalization.parse(self.norm)
        conv = Conv(
            self.features,
            self.window,
            self.stride,
            self.use_bias,
            self.kernel_init,
            self.conv,
            self.warp,
            name=self.names[0],
        )
        return conv, policy.layer((*self.path, self.names[1]))

    @staticmethod
    def _signs(norm, y, phase):
        """1 where the normalisation of a channel rises, else -1, for every image `[batch, 1, 1, features]`."""
        signs = jnp.where(norm.rises(y, phase), 1, -1).astype(y.dtype)
        return jnp.broadcast_to(signs, (y.shape[0], 1, 1, y.shape[-1]))


def _pooled(x, sign):
    """A window's entry that comes out largest of a map that rises, or falls, with `sign`."""
    return sign * max_pool(sign * x)
