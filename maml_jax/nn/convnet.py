"""ConvNet4, the four-block encoder of most few-shot papers (Vinyals et al. 2016; Finn et al. 2017)."""

import flax.linen as nn
import jax

from maml_jax.errors import ConfigError
from maml_jax.meta.learner import Phase
from maml_jax.nn.context import Film
from maml_jax.nn.layers import ConvNorm, Encoder, each
from maml_jax.nn.moments import at_least_float32


class ConvNet(Encoder):
    """Blocks of 3x3 convolution, normalisation, ReLU and 2x2 max-pooling; four of them are ConvNet4.

    Attributes:
      width: channels of every block.
      blocks: how many.
      warp: see `Conv`.
      context: how many context parameters scale and shift channels (CAVIA, see `maml_jax.nn.context`); 0: none.
      context_block: in which block, counted from 1, between pooling and ReLU; the paper's code has the third.
      norm: see `Encoder`.
      conv: see `Encoder`.

    Raises:
      ConfigError: there is no such block.
    """

    width: int = 32
    blocks: int = 4
    warp: bool = False
    context: int = 0
    context_block: int = 3

    def __post_init__(self):
        if self.context and not 1 <= self.context_block <= self.blocks:
            there = f"model.options: context_block={self.context_block} is none of the {self.blocks} blocks"
            raise ConfigError(f"{there}, for context={self.context}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, phase: Phase) -> jax.Array:
        """Maps images `[batch, height, width, channels]`, of at least 2^blocks px, to features `[batch, features]`."""
        for i in range(1, self.blocks + 1):
            activation = nn.relu
            if self.context and i == self.context_block:
                activation = _modulated(*Film(self.context, self.width, name="film")(at_least_float32(x)))
            block = ConvNorm(
                self.width,
                self.norm,
                pool=True,
                activation=activation,
                conv=self.conv,
                warp=self.warp,
                name=f"block{i}",
            )
            x = block(x, phase)
        return each(lambda x: x.reshape(len(x), -1), x)


def _modulated(scale, shift):
    return lambda x: nn.relu(x * scale.astype(x.dtype) + shift.astype(x.dtype))
