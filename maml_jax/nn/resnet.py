"""Residual encoders: ResNet-12 as few-shot papers have it, and ResNet-18 (He et al. 2015) in two depths."""

import functools

import flax.linen as nn
import jax

from maml_jax.nn.barrier import recomputed
from maml_jax.nn.layers import conv_norm
from maml_jax.nn.norm import Pass
from maml_jax.nn.pieces import Lazy, piece_of
from maml_jax.nn.pool import max_pool

# PyTorch-MAML's: Kaiming normal by fan-out for a leaky slope of 0.01, PyTorch's default, whatever the activation.
_CONV = {"use_bias": False, "kernel_init": nn.initializers.variance_scaling(2 / (1 + 0.01**2), "fan_out", "normal")}


class ResNet12(nn.Module):
    """Four residual blocks, each pooled; features are the mean over the last map.

    Attributes:
      channels: of the four blocks, such as (64, 128, 256, 512).
      norm: normalisation modes by layer, as `maml_jax.nn.norm.mode_of` reads them.
      piece: as in `maml_jax.nn.convnet.ConvNet`.
    """

    channels: tuple[int, int, int, int]
    norm: str = "batch"
    piece: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, which: Pass, train: bool) -> jax.Array:
        """Maps images `[batch, height, width, channels]` of at least 16 px to features `[batch, self.channels[3]]`."""
        piece = piece_of(self.piece, which)
        for i, channels in enumerate(self.channels, start=1):
            # What the first block makes is as large as what all the others make, for a fifth of the work.
            block = _RecomputedBlock if i == 1 and piece and not self.is_initializing() else _PooledBlock
            x = block(channels, self.norm, piece, i > 1, name=f"layer{i}")(x, which, train)
        return x.mean((1, 2))


class _PooledBlock(nn.Module):
    """Three convolutions beside a 1x1 shortcut, leaky ReLU of slope 0.1, 2x2 max-pooling.

    Attributes:
      keep: what the first convolution gives. Of few channels it costs less to compute again, as the shortcut's does.
    """

    channels: int
    norm: str
    piece: int
    keep: bool

    @nn.compact
    def __call__(self, x, which, train):
        layer = functools.partial(conv_norm, self, which=which, train=train, **_CONV)
        images, activate = Lazy.of(x), functools.partial(nn.leaky_relu, negative_slope=0.1)
        y = layer(images, conv="conv1", norm="norm1", keep=self.keep).then(activate)
        y = layer(y, conv="conv2", norm="norm2").then(activate)
        y = layer(y, conv="conv3", norm="norm3")
        shortcut = layer(images, conv="shortcut_conv", norm="shortcut_norm", window=1, keep=False)
        return y.then(lambda y, x: activate(max_pool(y + x)), shortcut).compute(self.piece)


_RecomputedBlock = recomputed(_PooledBlock)


class ResNet18(nn.Module):
    """A stem without pooling and four stages of two-convolution blocks; features are the mean over the last map.

    Attributes:
      channels: of the four stages, such as (64, 128, 256, 512); stages two to four halve the image's sides.
      norm: normalisation modes by layer, as `maml_jax.nn.norm.mode_of` reads them.
      piece: as in `maml_jax.nn.convnet.ConvNet`.
      blocks: per stage: 1, as PyTorch-MAML means it, or 2, the standard depth.
    """

    channels: tuple[int, int, int, int]
    norm: str = "batch"
    piece: int = 0
    blocks: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, which: Pass, train: bool) -> jax.Array:
        """Maps images `[batch, height, width, channels]` to features `[batch, self.channels[3]]`."""
        piece = piece_of(self.piece, which)
        x = _Stem(self.channels[0], self.norm, piece, name="stem")(x, which, train)
        for i, channels in enumerate(self.channels, start=1):
            for j in range(1, self.blocks + 1):
                name = f"layer{i}" if self.blocks == 1 else f"layer{i}_{j}"
                stride = 2 if i > 1 and j == 1 else 1
                x = _StridedBlock(channels, self.norm, piece, stride, name=name)(x, which, train)
        return x.mean((1, 2))


class _Stem(nn.Module):
    """A convolution, its normalisation, ReLU."""

    channels: int
    norm: str
    piece: int

    @nn.compact
    def __call__(self, x, which, train):
        return conv_norm(self, Lazy.of(x), which, train, **_CONV).then(nn.relu).compute(self.piece)


class _StridedBlock(nn.Module):
    """Two convolutions, the first of which may have a stride, and then the shortcut is a strided 1x1 convolution."""

    channels: int
    norm: str
    piece: int
    stride: int

    @nn.compact
    def __call__(self, x, which, train):
        layer = functools.partial(conv_norm, self, which=which, train=train, **_CONV)
        shortcut = images = Lazy.of(x)
        y = layer(images, conv="conv1", norm="norm1", stride=self.stride).then(nn.relu)
        y = layer(y, conv="conv2", norm="norm2")
        if self.stride > 1:
            shortcut = layer(images, conv="shortcut_conv", norm="shortcut_norm", window=1, stride=self.stride)
        return y.then(lambda y, x: nn.relu(y + x), shortcut).compute(self.piece)
