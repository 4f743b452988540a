"""Max-pooling closed under differentiation.

Where the maxima are is found once. All else is linear: the derivative of pooling picks the entries at those places, its
transpose puts values there, and these two are each other's transpose. As primitives they stay what they are under every
order of differentiation, where derived rules would become sums over masks and scatters.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from maml_jax.nn.kernels.barrier import materialize


@jax.custom_jvp
def max_pool(x: jax.Array) -> jax.Array:
    """Max-pooling over 2x2 windows with stride 2; an odd last row or column is dropped, as in PyTorch.

    Args:
      x: `[batch, height, width, channels]`.

    Returns:
      `[batch, height // 2, width // 2, channels]`. A window's gradient goes to its first maximum in row-major order.
    """
    a, b, c, d = _corners(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


@max_pool.defjvp
def _max_pool_jvp(primals, tangents):
    # To compare the entries with the maximum instead, as the derivative of a reduction does, fails when a compiler
    # computes an entry twice, rounded differently.
    (x,), (dx,) = primals, tangents
    a, b, c, d = _corners(x)
    top, low = jnp.maximum(a, b), jnp.maximum(c, d)
    place = jnp.where(low > top, 2 + (d > c), b > a).astype(x.dtype)
    return max_pool(x), _pick_p.bind(materialize(lax.stop_gradient(place)), dx)


def _corners(x):
    """The four entries of each window of `[..., h, w, c]`, in row-major order, each `[..., h // 2, w // 2, c]`."""
    *leading, h, w, c = x.shape
    windows = x[..., : h // 2 * 2, : w // 2 * 2, :].reshape(*leading, h // 2, 2, w // 2, 2, c)
    return [windows[..., :, i, :, j, :] for i in (0, 1) for j in (0, 1)]


# The two primitives: place and y [..., h // 2, w // 2, c], of which place is 0 to 3, a constant; x [..., h, w, c].

_pick_p = Primitive("window_pick")
_put_p = Primitive("window_put")


def _pick(place, x):
    """The entry of each window at `place`."""
    a, b, c, d = _corners(x)
    return jnp.where(place < 2, jnp.where(place == 0, a, b), jnp.where(place == 2, c, d))


def _put(place, y, *, height, width):
    """`y` at `place` of each window, zeros elsewhere."""
    *leading, h, w, c = y.shape
    places = jnp.arange(4, dtype=place.dtype).reshape(2, 1, 2, 1)
    windows = jnp.where(place[..., :, None, :, None, :] == places, y[..., :, None, :, None, :], 0)
    left_over = [(0, height - 2 * h), (0, width - 2 * w), (0, 0)]
    return jnp.pad(windows.reshape(*leading, 2 * h, 2 * w, c), [(0, 0)] * len(leading) + left_over)


def _transpose_pick(ct, place, x):
    return [None, _put_p.bind(place, ct, height=x.aval.shape[-3], width=x.aval.shape[-2])]


def _transpose_put(ct, place, y, **_):
    del y
    return [None, _pick_p.bind(place, ct)]


def _batch(primitive, args, dims, **params):
    """The mapped axis stays one by itself; joined to the images, it would have to lie next to them in memory."""
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    return primitive.bind(*(batching.bdim_at_front(a, d, size) for a, d in zip(args, dims, strict=True)), **params), 0


def _register(primitive, function, abstract, transpose):
    primitive.def_impl(lambda *args, **params: jax.jit(functools.partial(function, **params))(*args))
    primitive.def_abstract_eval(abstract)
    ad.defjvp(primitive, None, lambda dx, place, x, **params: primitive.bind(place, dx, **params))
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = lambda args, dims, **params: _batch(primitive, args, dims, **params)
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))


_register(_pick_p, _pick, lambda place, x: ShapedArray(place.shape, x.dtype), _transpose_pick)
_register(
    _put_p,
    _put,
    lambda place, y, height, width: ShapedArray((*y.shape[:-3], height, width, y.shape[-1]), y.dtype),
    _transpose_put,
)
