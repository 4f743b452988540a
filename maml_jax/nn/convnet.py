"""ConvNet4, the four-block encoder of most few-shot papers (Vinyals et al. 2016; Finn et al. 2017)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from maml_jax.nn.layers import Conv, piecewise
from maml_jax.nn.norm import BatchNorm, Pass, image_moments
from maml_jax.nn.pool import max_pool


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, normalisation, ReLU and 2x2 max-pooling; four of them are ConvNet4.

    Attributes:
      width: channels of every block.
      norm: normalisation modes by layer, as `maml_jax.nn.norm.mode_of` reads them.
      blocks: how many.
      piece: bytes of a layer's convolved images that there may be at once; the batch is computed in pieces, and anew on
        the way back, where there would be more. 0: no limit.
    """

    width: int = 32
    norm: str = "batch"
    blocks: int = 4
    piece: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, which: Pass, train: bool) -> jax.Array:
        """Maps images `[batch, height, width, channels]`, of at least 2^blocks px, to features `[batch, features]`."""
        for i in range(1, self.blocks + 1):
            x = ConvBlock(self.width, self.norm, self.piece, name=f"block{i}")(x, which, train)
        return x.reshape(x.shape[0], -1)


class ConvBlock(nn.Module):
    """Convolution, normalisation, ReLU, pooling: halves the image's sides."""

    width: int
    norm: str
    piece: int

    @nn.compact
    def __call__(self, x: jax.Array, which: Pass, train: bool) -> jax.Array:
        """Maps `[batch, height, width, channels]` to `[batch, height // 2, width // 2, self.width]`."""
        convolve, bias = Conv(self.width, name="conv")(x)
        features = jax.eval_shape(convolve, x)
        image_bytes = features.size // len(x) * features.dtype.itemsize
        most = max(self.piece // image_bytes, 1) if self.piece else 0

        def measure(rising):
            # What normalisation and ReLU do to a channel is monotone: a window's largest entry comes out largest, or
            # its smallest where the channel's scale is negative. Only a quarter of the entries needs to be mapped.
            sign = jnp.where(rising, 1, -1).astype(x.dtype)

            def of_piece(x):
                x = convolve(x)
                return image_moments(x), sign * max_pool(sign * x)

            return piecewise(of_piece, x, most)

        return nn.relu(BatchNorm(self.norm, name="norm")(measure, features, bias, which, train))
