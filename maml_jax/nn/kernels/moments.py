"""Mean and variance over the pixels of images, in one reading or in two.

A primitive, since it has a form for each platform. Its derivatives need nothing but the images.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir


@jax.custom_jvp
def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance over height and width of `[batch, height, width, channels]`, each `[batch, channels]`.

    Of float32 and float64; the caller converts what is of half precision.
    """
    return tuple(_moments_p.bind(x))


@moments.defjvp
def _moments_jvp(primals, tangents):
    # d Var x = 2 (E x dx - E x E dx). Nothing of the size of x has to be kept for the way back but x itself; a derived
    # rule keeps x - E x too.
    (x,), (dx,) = primals, tangents
    mean, var = moments(x)
    dmean = dx.mean((1, 2))
    return (mean, var), (dmean, 2 * ((x * dx).mean((1, 2)) - mean * dmean))


_PIXELS = (-3, -2)


def in_two_readings(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """E x, and then E (x - E x)²: for a CPU, which has what it reads at hand."""
    mean = x.mean(_PIXELS)
    return mean, jnp.square(x - mean[..., None, None, :]).mean(_PIXELS)


def in_one_reading(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """With d = x - s, s + E d and E d² - (E d)², which a GPU sums in one kernel.

    The shift s is the pixel in the middle. Far from zero as the mean may be, it is about a deviation from that, and no
    digits are lost.
    """
    groups = range(x.ndim - 4)
    x = jnp.moveaxis(x, groups, range(3, x.ndim - 1))  # as convolutions in groups have it in memory
    mean, square = x.mean((1, 2)), jnp.square(x).mean((1, 2))
    var = jnp.maximum(square - jnp.square(mean), 0)
    return tuple(jnp.moveaxis(a, range(1, a.ndim - 1), groups) for a in (mean, var))


def _abstract(x):
    out = ShapedArray((*x.shape[:-3], x.shape[-1]), x.dtype)
    return [out, out]


def _batch(args, dims):
    return _moments_p.bind(batching.bdim_at_front(args[0], dims[0], args[0].shape[dims[0]])), [0, 0]


_moments_p = Primitive("image_moments")
_moments_p.multiple_results = True
_moments_p.def_impl(jax.jit(_moments_p.bind))
_moments_p.def_abstract_eval(_abstract)
batching.primitive_batchers[_moments_p] = _batch
mlir.register_lowering(_moments_p, mlir.lower_fun(in_one_reading, multiple_results=True))
mlir.register_lowering(_moments_p, mlir.lower_fun(in_two_readings, multiple_results=True), platform="cpu")
