"""ConvNet4, the four-block encoder of most few-shot papers (Vinyals et al. 2016; Finn et al. 2017)."""

import flax.linen as nn
import jax

from maml_jax.meta.learner import Phase
from maml_jax.nn.layers import ConvNorm, Encoder, each


class ConvNet(Encoder):
    """Blocks of 3x3 convolution, normalisation, ReLU and 2x2 max-pooling; four of them are ConvNet4.

    Attributes:
      width: channels of every block.
      blocks: how many.
      norm: see `Encoder`.
      conv: see `Encoder`.
    """

    width: int = 32
    blocks: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, phase: Phase) -> jax.Array:
        """Maps images `[batch, height, width, channels]`, of at least 2^blocks px, to features `[batch, features]`."""
        for i in range(1, self.blocks + 1):
            block = ConvNorm(self.width, self.norm, pool=True, activation=nn.relu, conv=self.conv, name=f"block{i}")
            x = block(x, phase)
        return each(lambda x: x.reshape(len(x), -1), x)
