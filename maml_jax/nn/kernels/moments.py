"""Means and variances of images, read once or twice, and of batches of them."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
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


def of_batch(mean: jax.Array, variance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance over a batch, `[channels]`, from those of its images, `[batch, channels]`; no derivatives."""
    return tuple(_batch_p.bind(mean, variance))


# The primitives: x [..., batch, *places, channels], mean and variance [..., batch, channels], the first axes mapped.


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
    mean, var = _at_once(x, tuple(range(1, places + 1)))
    return tuple(jnp.moveaxis(a, range(1, a.ndim - 1), groups) for a in (mean, var))


def _at_once(x, axes):
    mean = x.mean(axes)
    return mean, jnp.maximum(jnp.square(x).mean(axes) - jnp.square(mean), 0)


def one_after_other(mean: jax.Array, variance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean of means, then the variance around it: on a CPU."""
    total = mean.mean(-2)
    return total, (variance + jnp.square(mean - total[..., None, :])).mean(-2)


def at_once(mean: jax.Array, variance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums that do not wait for each other: on an accelerator, as one kernel; see `read_once` for digits."""
    total, between = _at_once(mean, -2)
    return total, between + variance.mean(-2)


def _define(name, abstract, default, cpu, static=()):
    """A primitive with two results and a form for each platform, whose mapped axes go to the front."""
    primitive = Primitive(name)

    def run(*args, **how):
        forms = {"cpu": cpu, "default": default}
        return list(lax.platform_dependent(*args, **{name: functools.partial(f, **how) for name, f in forms.items()}))

    def batch(args, dims, **how):
        size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
        args = [batching.bdim_at_front(a, d, size) for a, d in zip(args, dims, strict=True)]
        return primitive.bind(*args, **how), [0, 0]

    primitive.multiple_results = True
    primitive.def_impl(jax.jit(run, static_argnames=static))
    primitive.def_abstract_eval(abstract)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(default, multiple_results=True))
    mlir.register_lowering(primitive, mlir.lower_fun(cpu, multiple_results=True), platform="cpu")
    return primitive


def _of_images(x, *, places):
    return [ShapedArray((*x.shape[: x.ndim - 1 - places], x.shape[-1]), x.dtype)] * 2


def _of_batch(mean, variance):
    del variance
    return [ShapedArray((*mean.shape[:-2], mean.shape[-1]), mean.dtype)] * 2


_moments_p = _define("image_moments", _of_images, read_once, read_twice, static=("places",))
_batch_p = _define("batch_moments", _of_batch, at_once, one_after_other)
