"""The network of functorch's Omniglot example, in Flax."""

import jax

from maml_jax.nn.convnet import ConvNet
from maml_jax.nn.kernels.conv import conv
from maml_jax.nn.layers import Convolve


def unpadded(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolves images `[n, h, w, in]` by `[window, window, in, out]` where the whole window lies inside."""
    return conv(x[:, ::stride, ::stride] if kernel.shape[0] == 1 else x, kernel, "VALID")


class ConvNet3(ConvNet):
    """Three blocks of ConvNet4's whose convolutions are not padded: images of 28 px end as one pixel.

    Attributes:
      width: see `ConvNet`.
      blocks: see `ConvNet`.
      norm: see `ConvNet`.
      conv: see `ConvNet`.
    """

    blocks: int = 3
    conv: Convolve = unpadded
