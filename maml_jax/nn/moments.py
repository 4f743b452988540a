"""Means and variances of activations, of each image by itself and from these of a batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maml_jax.nn.kernels.moments import mean_and_variance, of_batch


class ImageMoments(NamedTuple):
    """What normalisation asks of activations: each image's own moments, from which follow those of the batch.

    Attributes:
      mean: `[batch, channels]`, at least float32.
      var: the biased variance, as `mean`.
    """

    mean: jax.Array
    var: jax.Array

    @property
    def batch(self) -> tuple[jax.Array, jax.Array]:
        """Mean and biased variance over all images, `[channels]`."""
        return _of_batch(*self)


def image_moments(x: jax.Array) -> ImageMoments:
    """The moments of each of the images `[batch, height, width, channels]`, or of anything `[batch, ..., channels]`."""
    return ImageMoments(*_moments(x))


def at_least_float32(x: jax.Array | jax.ShapeDtypeStruct) -> jnp.dtype:
    """The type for parameters and moments of activations `x`, which may be of half precision."""
    return jnp.promote_types(x.dtype, jnp.float32)


@jax.custom_jvp
def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance per image and channel of `[n, ..., c]`, each `[n, c]`, at least float32."""
    return mean_and_variance(x.astype(at_least_float32(x)))


@_moments.defjvp
def _moments_jvp(primals, tangents):
    # d Var x = 2 (E x dx - E x E dx). Nothing of the size of x has to be kept for the way back but x itself; a derived
    # rule keeps x - E x too.
    (x,), (dx,) = primals, tangents
    mean, var = _moments(x)
    x, dx = (a.astype(mean.dtype) for a in (x, dx))
    dmean = dx.mean(_places(x))
    return (mean, var), (dmean, 2 * ((x * dx).mean(_places(x)) - mean * dmean))


@jax.custom_jvp
def _of_batch(mean, var):
    return of_batch(mean, var)


@_of_batch.defjvp
def _of_batch_jvp(primals, tangents):
    (mean, var), (dmean, dvar) = primals, tangents
    total, of_all = _of_batch(mean, var)
    return (total, of_all), (dmean.mean(0), (dvar + 2 * (mean - total) * dmean).mean(0))


def _places(x):
    """The axes between that of images and that of channels."""
    return tuple(range(1, x.ndim - 1))
