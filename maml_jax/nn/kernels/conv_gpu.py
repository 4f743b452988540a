"""The two forms of the closed convolution for accelerators, all groups in one call.

Libraries for GPUs know three convolutions: forward, by input and by weights. XLA's compiler finds them by the shape of
a program. It takes a weight gradient for one only where the images' axis is what is summed over and the groups, if
there are any, are groups of the batch (`batch_group_count`); as a convolution in groups of channels, to which
`jax.vmap` would turn it, it becomes a forward convolution by windows as large as the images.

Groups lie beside the channels, [n, h, w, group * c]. XLA lays activations out so from one convolution to the next, and
then no transpose moves anything.
"""

import jax
import jax.numpy as jnp
from jax import lax

from maml_jax.nn.kernels.winograd import Padding


def conv(x: jax.Array, kernel: jax.Array, *, padding: Padding, flipped: bool) -> jax.Array:
    """Convolves `[group, n, h, w, c]` by `[group, kh, kw, c, o]`, to `[group, n, h', w', o]`.

    Flipped, the kernel is `[group, kh, kw, o, c]` and its window reversed.
    """
    if flipped:
        kernel = jnp.flip(kernel, (1, 2)).swapaxes(3, 4)
    y = lax.conv_general_dilated(
        _beside_channels(x),
        _beside_channels(kernel),
        (1, 1),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=len(x),
    )
    return _in_front(y, len(x))


def weight_gradient(x: jax.Array, y: jax.Array, *, padding: Padding) -> jax.Array:
    """Gradients `[group, kh, kw, c, o]`, for `[group, n, h, w, c]` and cotangents `[group, n, h', w', o]`."""
    kernel = lax.conv_general_dilated(
        _beside_channels(x),
        _beside_channels(y),
        (1, 1),
        padding,
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        batch_group_count=len(x),
    )
    return _in_front(kernel, len(x))


def _beside_channels(x):
    """`[group, a, b, c, d]` to `[a, b, c, group * d]`."""
    x = jnp.moveaxis(x, 0, 3)
    return x.reshape(*x.shape[:3], -1)


def _in_front(x, groups):
    """`[a, b, c, group * d]` to `[group, a, b, c, d]`."""
    return jnp.moveaxis(x.reshape(*x.shape[:3], groups, -1), 3, 0)
