"""Means and variances of images, read once or twice."""

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir


def mean_and_variance(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance over the places of each image and channel; has no derivatives of its own.

    Args:
      x: `[batch, ..., channels]`, at least float32.

    Returns:
      Both `[batch, channels]`.
    """
    return tuple(_moments_p.bind(x, places=x.ndim - 2))


# The primitive: x [..., batch, *places, channels], the first axes mapped.


def read_twice(x: jax.Array, *, places: int) -> tuple[jax.Array, jax.Array]:
    """E x, then E (x - E x)²: on a CPU, that has the images at hand."""
    axes = tuple(range(x.ndim - 1 - places, x.ndim - 1))
    mean = x.mean(axes)
    return mean, jnp.square(x - jnp.expand_dims(mean, axes)).mean(axes)


def read_once(x: jax.Array, *, places: int) -> tuple[jax.Array, jax.Array]:
    """E x and E x² - (E x)²: on an accelerator, where each sum is a kernel that waits for memory, but both are one.

    With a mean of m deviations, the variance has a relative error of about m² roundings; where convolutions round to
    TF32 or bfloat16, as they do by default, theirs is larger.
    """
    groups = range(x.ndim - 2 - places)
    x = jnp.moveaxis(x, groups, range(places + 1, x.ndim - 1))  # beside the channels, where convolutions have them
    axes = tuple(range(1, places + 1))
    mean = x.mean(axes)
    var = jnp.maximum(jnp.square(x).mean(axes) - jnp.square(mean), 0)
    return tuple(jnp.moveaxis(a, range(1, a.ndim - 1), groups) for a in (mean, var))


def _abstract(x, *, places):
    each = ShapedArray((*x.shape[: x.ndim - 1 - places], x.shape[-1]), x.dtype)
    return [each, each]


def _batch(args, dims, **how):
    (x,), (dim,) = args, dims
    return _moments_p.bind(jnp.moveaxis(x, dim, 0), **how), [0, 0]


_moments_p = Primitive("image_moments")
_moments_p.multiple_results = True
_moments_p.def_impl(jax.jit(_moments_p.bind, static_argnames="places"))
_moments_p.def_abstract_eval(_abstract)
batching.primitive_batchers[_moments_p] = _batch
mlir.register_lowering(_moments_p, mlir.lower_fun(read_once, multiple_results=True))
mlir.register_lowering(_moments_p, mlir.lower_fun(read_twice, multiple_results=True), platform="cpu")
