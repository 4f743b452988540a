"""ConvNet4, the four-block encoder of most few-shot papers (Vinyals et al. 2016; Finn et al. 2017)."""

import flax.linen as nn
import jax

from maml_jax.nn.layers import conv_norm
from maml_jax.nn.norm import Pass
from maml_jax.nn.pieces import Lazy, piece_of


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, normalisation, ReLU and 2x2 max-pooling; four of them are ConvNet4.

    Attributes:
      width: channels of every block.
      norm: normalisation modes by layer, as `maml_jax.nn.norm.mode_of` reads them.
      blocks: how many.
      piece: bytes of a layer's convolved images that there may be at once; where there would be more, a query
        or context set is computed in pieces, and anew on the way back. 0: no limit.
    """

    width: int = 32
    norm: str = "batch"
    blocks: int = 4
    piece: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, which: Pass, train: bool) -> jax.Array:
        """Maps images `[batch, height, width, channels]`, of at least 2^blocks px, to features `[batch, features]`."""
        images, piece = Lazy.of(x), piece_of(self.piece, which)
        for i in range(1, self.blocks + 1):
            # The first convolution, of few channels, costs less than to keep what it gives.
            images = ConvBlock(self.width, self.norm, piece, i > 1, name=f"block{i}")(images, which, train)
        return images.compute(piece).reshape(len(x), -1)


class ConvBlock(nn.Module):
    """Convolution, normalisation, ReLU, pooling, but in the order convolution, pooling, normalisation, ReLU.

    What normalisation and ReLU do to a channel is monotone, so only the entries that pooling leaves need to be mapped.

    Attributes:
      channels: of the convolution.
      norm: see `ConvNet`.
      piece: see `ConvNet`.
      keep: see `maml_jax.nn.layers.conv_norm`.
    """

    channels: int
    norm: str
    piece: int = 0
    keep: bool = True

    @nn.compact
    def __call__(self, images: Lazy, which: Pass, train: bool) -> Lazy:
        """Maps `[batch, height, width, channels]` to `[batch, height // 2, width // 2, self.channels]`."""
        return conv_norm(self, images, which, train, pool=True, keep=self.keep).then(nn.relu)
