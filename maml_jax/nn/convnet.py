"""ConvNet4, the four-block encoder of most few-shot papers (Vinyals et al. 2016; Finn et al. 2017)."""

import flax.linen as nn
import jax

from maml_jax.nn.layers import Conv, pool_normalized
from maml_jax.nn.norm import BatchNorm, Pass


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, normalisation, ReLU and 2x2 max-pooling; four of them are ConvNet4.

    Attributes:
      width: channels of every block.
      norm: normalisation modes by layer, as `maml_jax.nn.norm.mode_of` reads them.
      blocks: how many.
    """

    width: int = 32
    norm: str = "batch"
    blocks: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, which: Pass, train: bool) -> jax.Array:
        """Maps images `[batch, height, width, channels]`, of at least 2^blocks px, to features `[batch, features]`."""
        for i in range(1, self.blocks + 1):
            x = ConvBlock(self.width, self.norm, name=f"block{i}")(x, which, train)
        return x.reshape(x.shape[0], -1)


class ConvBlock(nn.Module):
    """Convolution, normalisation, ReLU, pooling: halves the image's sides."""

    width: int
    norm: str

    @nn.compact
    def __call__(self, x: jax.Array, which: Pass, train: bool) -> jax.Array:
        """Maps `[batch, height, width, channels]` to `[batch, height // 2, width // 2, self.width]`."""
        x, bias = Conv(self.width, name="conv")(x)
        normalize = BatchNorm(self.norm, name="norm")(x, bias, which, train)
        return pool_normalized(x, normalize, nn.relu)
