"""Residual encoders: ResNet-12 as few-shot papers have it, and ResNet-18 (He et al. 2015) in two depths."""

import flax.linen as nn
import jax

from maml_jax.nn.layers import Conv
from maml_jax.nn.norm import BatchNorm, Pass, image_moments
from maml_jax.nn.pool import max_pool

# PyTorch-MAML's: Kaiming normal by fan-out for a leaky slope of 0.01, PyTorch's default, whatever the activation.
_KERNEL_INIT = nn.initializers.variance_scaling(2 / (1 + 0.01**2), "fan_out", "normal")


class ResNet12(nn.Module):
    """Four residual blocks, each pooled; features are the mean over the last map.

    Attributes:
      channels: of the four blocks, such as (64, 128, 256, 512).
      norm: normalisation modes by layer, as `maml_jax.nn.norm.mode_of` reads them.
    """

    channels: tuple[int, int, int, int]
    norm: str = "batch"

    @nn.compact
    def __call__(self, x: jax.Array, which: Pass, train: bool) -> jax.Array:
        """Maps images `[batch, height, width, channels]` of at least 16 px to features `[batch, self.channels[3]]`."""
        for i, channels in enumerate(self.channels, start=1):
            x = _PooledBlock(channels, self.norm, name=f"layer{i}")(x, which, train)
        return x.mean((1, 2))


class _PooledBlock(nn.Module):
    """Three convolutions beside a 1x1 shortcut, leaky ReLU of slope 0.1, 2x2 max-pooling."""

    channels: int
    norm: str

    @nn.compact
    def __call__(self, x, which, train):
        y = nn.leaky_relu(_conv_norm(self, x, which, train, "conv1", "norm1"), 0.1)
        y = nn.leaky_relu(_conv_norm(self, y, which, train, "conv2", "norm2"), 0.1)
        y = _conv_norm(self, y, which, train, "conv3", "norm3")
        y += _conv_norm(self, x, which, train, "shortcut_conv", "shortcut_norm", window=1)
        return nn.leaky_relu(max_pool(y), 0.1)


class ResNet18(nn.Module):
    """A stem without pooling and four stages of two-convolution blocks; features are the mean over the last map.

    Attributes:
      channels: of the four stages, such as (64, 128, 256, 512); stages two to four halve the image's sides.
      norm: normalisation modes by layer, as `maml_jax.nn.norm.mode_of` reads them.
      blocks: per stage: 1, as PyTorch-MAML means it, or 2, the standard depth.
    """

    channels: tuple[int, int, int, int]
    norm: str = "batch"
    blocks: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, which: Pass, train: bool) -> jax.Array:
        """Maps images `[batch, height, width, channels]` to features `[batch, self.channels[3]]`."""
        x = nn.relu(_Stem(self.channels[0], self.norm, name="stem")(x, which, train))
        for i, channels in enumerate(self.channels, start=1):
            for j in range(1, self.blocks + 1):
                name = f"layer{i}" if self.blocks == 1 else f"layer{i}_{j}"
                x = _StridedBlock(channels, self.norm, 2 if i > 1 and j == 1 else 1, name=name)(x, which, train)
        return x.mean((1, 2))


class _Stem(nn.Module):
    """A convolution and its normalisation."""

    channels: int
    norm: str

    @nn.compact
    def __call__(self, x, which, train):
        return _conv_norm(self, x, which, train, "conv", "norm")


class _StridedBlock(nn.Module):
    """Two convolutions, the first of which may have a stride, and then the shortcut is a strided 1x1 convolution."""

    channels: int
    norm: str
    stride: int

    @nn.compact
    def __call__(self, x, which, train):
        y = nn.relu(_conv_norm(self, x, which, train, "conv1", "norm1", stride=self.stride))
        y = _conv_norm(self, y, which, train, "conv2", "norm2")
        if self.stride > 1:
            x = _conv_norm(self, x, which, train, "shortcut_conv", "shortcut_norm", window=1, stride=self.stride)
        return nn.relu(x + y)


def _conv_norm(block, x, which, train, conv, norm, window=3, stride=1):
    """A convolution without bias and its normalisation, as children `conv` and `norm` of `block`."""
    layer = Conv(block.channels, window, stride, use_bias=False, kernel_init=_KERNEL_INIT, name=conv, parent=block)
    convolve, bias = layer(x)
    x = convolve(x)
    measure = lambda rising: (image_moments(x), x)  # noqa: E731
    return BatchNorm(block.norm, name=norm, parent=block)(measure, x, bias, which, train)
