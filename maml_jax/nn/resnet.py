"""Residual encoders: ResNet-12 as few-shot papers have it, and ResNet-18 (He et al. 2015) in two depths."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax

from maml_jax.meta.learner import Phase
from maml_jax.nn.dropblock import DropBlock
from maml_jax.nn.layers import ConvNorm, Convolve, Encoder, each, max_pool, recomputed, settled
from maml_jax.nn.norm import Normalization

# PyTorch-MAML's: Kaiming normal by fan-out for a leaky slope of 0.01, PyTorch's default, whatever the activation.
_CONV = {"use_bias": False, "kernel_init": nn.initializers.variance_scaling(2 / (1 + 0.01**2), "fan_out", "normal")}

_leaky_relu = functools.partial(nn.leaky_relu, negative_slope=0.1)


class ResNet12(Encoder):
    """Four residual blocks, each pooled; features are the mean over the last map.

    Attributes:
      channels: of the four blocks.
      norm: see `Encoder`.
      conv: see `Encoder`.
      drop: share of the last two blocks' maps that is dropped in training, in squares of 5 pixels (DropBlock, as
        MetaOptNet has it: 0.1; Lee et al. 2019, arXiv:1904.03758); 0: none.
    """

    channels: tuple[int, int, int, int] = (64, 128, 256, 512)
    drop: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop={self.drop} must be in [0, 1)")

    @nn.compact
    def __call__(self, x: jax.Array, phase: Phase) -> jax.Array:
        """Maps images `[batch, height, width, channels]` of at least 16 px to features `[batch, self.channels[3]]`."""
        for i, channels in enumerate(self.channels, start=1):
            block = _PooledBlock(channels, self.norm, self.conv, name=f"layer{i}")
            # What the first block makes is as large as what all the others make, for a fifth of the work.
            x = (recomputed(block) if i == 1 else block)(x, phase)
            if i > 2:
                x = DropBlock(self.drop)(x, phase)
        return each(lambda x: x.mean((1, 2)), x)


class _PooledBlock(nn.Module):
    """Three convolutions beside a 1x1 shortcut, leaky ReLU of slope 0.1, 2x2 max-pooling."""

    channels: int
    norm: Normalization
    conv: Convolve

    @nn.compact
    def __call__(self, x, phase):
        layer, x = _layers_of(self), settled(x)
        y = layer("conv1", "norm1", activation=_leaky_relu)(x, phase)
        y = layer("conv2", "norm2", activation=_leaky_relu)(y, phase)
        y = layer("conv3", "norm3")(y, phase)
        shortcut = layer("shortcut_conv", "shortcut_norm", window=1)(x, phase)
        return each(lambda y, x: _leaky_relu(max_pool(y + x)), y, shortcut)


class ResNet18(Encoder):
    """A stem without pooling and four stages of two-convolution blocks; features are the mean over the last map.

    Attributes:
      channels: of the four stages; stages two to four halve the image's sides.
      blocks: per stage: 1, as PyTorch-MAML means it, or 2, the standard depth.
      norm: see `Encoder`.
      conv: see `Encoder`.
    """

    channels: tuple[int, int, int, int] = (64, 128, 256, 512)
    blocks: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, phase: Phase) -> jax.Array:
        """Maps images `[batch, height, width, channels]` to features `[batch, self.channels[3]]`."""
        stem = ConvNorm(self.channels[0], self.norm, activation=nn.relu, conv=self.conv, name="stem", **_CONV)
        x = stem(x, phase)
        for i, channels in enumerate(self.channels, start=1):
            for j in range(1, self.blocks + 1):
                name = f"layer{i}" if self.blocks == 1 else f"layer{i}_{j}"
                stride = 2 if i > 1 and j == 1 else 1
                x = _StridedBlock(channels, self.norm, self.conv, stride, name=name)(x, phase)
        return each(lambda x: x.mean((1, 2)), x)


class _StridedBlock(nn.Module):
    """Two convolutions, the first of which may have a stride, and then the shortcut is a strided 1x1 convolution."""

    channels: int
    norm: Normalization
    conv: Convolve
    stride: int

    @nn.compact
    def __call__(self, x, phase):
        layer, x = _layers_of(self), settled(x)
        y = layer("conv1", "norm1", stride=self.stride, activation=nn.relu)(x, phase)
        y = layer("conv2", "norm2")(y, phase)
        if self.stride > 1:
            x = layer("shortcut_conv", "shortcut_norm", window=1, stride=self.stride)(x, phase)
        return each(lambda y, x: nn.relu(y + x), y, x)


def _layers_of(block: nn.Module) -> Callable[..., ConvNorm]:
    """Makes a block's layers, whose parameters are the block's own: 'layer1/conv1/kernel', 'layer1/norm1/scale'."""

    def layer(*names, **how):
        layer = ConvNorm(block.channels, block.norm, conv=block.conv, names=names, **_CONV, **how)
        nn.share_scope(layer, block)
        return layer

    return layer
