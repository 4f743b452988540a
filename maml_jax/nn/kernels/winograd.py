"""Convolution by 3x3 windows with 16 multiplications where there seem to be 36 (Lavin & Gray 2015, arXiv:1509.09308).

A tile of 2x2 results comes from 4x4 pixels d and the window g as Aᵀ [(G g Gᵀ) ∘ (Bᵀ d B)] A, in which every matrix is
small, constant, and of zeros, ones and halves. Summed over channels, the product ∘ is 16 matrix products of [tiles, in]
with [in, out]. The weight gradient is the transpose of the same formula. In float32 the results of both differ from
those of plain sums by 1e-6 or 2e-6 of the largest.

Transformed arrays are lists over the 4 columns of a tile, of arrays whose first axis is its 4 rows: the program is then
a third as large as with 16 arrays, which counts, since a meta-gradient of a deep network has a hundred convolutions.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from maml_jax.nn.kernels.loop import largest_divisor, map_pieces, sum_pieces

Padding = tuple[tuple[int, int], tuple[int, int]]
Matrix = tuple[tuple[float, ...], ...]

_INPUT: Matrix = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))  # Bᵀ
_WINDOW: Matrix = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))  # G
_OUTPUT: Matrix = ((1, 1, 1, 0), (0, 1, -1, -1))  # Aᵀ

_CACHED = 16 * 2**20  # bytes of transformed images at once


def pays(dtype: jnp.dtype, window: tuple[int, ...], channels: tuple[int, ...], least: int) -> bool:
    """Whether a CPU gains by these forms: for 3x3 windows in float32 with at least `least` channels on both sides."""
    return dtype == jnp.float32 and window == (3, 3) and min(channels) >= least


def conv(x: jax.Array, kernel: jax.Array, padding: Padding, flipped: bool = False) -> jax.Array:
    """Stride-1 convolution of `[n, h, w, c]` with `[3, 3, c, o]`, to `[n, h', w', o]` with `h' = h + padding - 2`.

    Or, flipped, with `[3, 3, o, c]`, its window reversed.
    """
    h, w = (side + sum(p) - 2 for side, p in zip(x.shape[1:3], padding, strict=True))
    # Of a reversed window only what the first and last rows of G make of it changes: their places.
    matrix = tuple(_WINDOW[i] for i in (3, 1, 2, 0)) if flipped else _WINDOW
    columns = _product(matrix, [kernel[:, j] for j in range(3)])
    windows = [jnp.stack(_product(matrix, list(column))) for column in columns]
    multiply = functools.partial(lax.dot_general, dimension_numbers=(((2,), (2 if flipped else 1,)), ((0,), (0,))))

    def of_images(x):
        products = [multiply(*pair) for pair in zip(_tiles(x, h, w, padding), windows, strict=True)]
        rows = [_product(_OUTPUT, list(column)) for column in _product(_OUTPUT, products)]
        tall, wide = (h + 1) // 2, (w + 1) // 2
        (a, c), (b, d) = jax.tree.map(lambda y: y.reshape(-1, tall, wide, y.shape[-1]), rows)
        y = jnp.stack([jnp.stack([a, b], 3), jnp.stack([c, d], 3)], 2)
        return y.reshape(-1, 2 * tall, 2 * wide, y.shape[-1])[:, :h, :w]

    return map_pieces(of_images, (x,), _at_once(x, h * w, kernel.shape))


def weight_gradient(x: jax.Array, y: jax.Array, padding: Padding) -> jax.Array:
    """What the kernel of `conv` gets, `[3, 3, c, o]`, for the cotangent `y` of its result."""
    _, h, w, o = y.shape
    shape = (3, 3, x.shape[-1], o)
    spread = functools.partial(_product, _transposed(_OUTPUT))
    contract = functools.partial(lax.dot_general, dimension_numbers=(((1,), (1,)), ((0,), (0,))))

    def of_images(x, y):
        y = jnp.pad(y, [(0, 0), (0, h % 2), (0, w % 2), (0, 0)])
        rows = jnp.stack(spread([y[:, i::2] for i in (0, 1)]))
        columns = spread([rows[:, :, :, j::2].reshape(4, -1, o) for j in (0, 1)])
        return [contract(*pair) for pair in zip(_tiles(x, h, w, padding), columns, strict=True)]

    total = sum_pieces(of_images, (x, y), _at_once(x, h * w, shape))
    gather = functools.partial(_product, _transposed(_WINDOW))
    columns = jnp.stack(gather(total), 1)
    return jnp.stack(gather(list(columns)))


def _at_once(x, pixels, shape):
    """How many of `[n, ...]`: the most whose tiles stay in a cache."""
    bytes_each = 4 * pixels * sum(shape[2:]) * x.dtype.itemsize
    return largest_divisor(len(x), _CACHED // bytes_each)


def _tiles(x, h, w, padding):
    """Bᵀ d B of all tiles: for each of 4 columns, `[4, n * ceil(h / 2) * ceil(w / 2), c]`."""
    tall, wide = (h + 1) // 2, (w + 1) // 2
    ((top, _), (left, _)), (n, height, width, c) = padding, x.shape
    bottom, right = 2 * tall + 2 - height - top, 2 * wide + 2 - width - left
    x = jnp.pad(x, [(0, 0), (top, bottom), (left, right), (0, 0)]).reshape(n, tall + 1, 2, 2 * wide + 2, c)
    rows = jnp.stack(_product(_INPUT, [x[:, i // 2 : i // 2 + tall, i % 2] for i in range(4)]))
    rows = rows.reshape(4, n, tall, wide + 1, 2, c)
    columns = _product(_INPUT, [rows[:, :, :, j // 2 : j // 2 + wide, j % 2] for j in range(4)])
    return [column.reshape(4, -1, c) for column in columns]


def _product(matrix: Matrix, arrays: list[jax.Array]) -> list[jax.Array]:
    """A matrix times a column of arrays of one shape."""
    return [_combination(weights, arrays) for weights in matrix]


def _combination(weights, arrays):
    """Sum of weighted arrays, without multiplications by 1 and -1."""
    total = None
    for weight, a in zip(weights, arrays, strict=True):
        if weight:
            scaled = a if abs(weight) == 1 else abs(weight) * a
            if total is None:
                total = scaled if weight > 0 else -scaled
            else:
                total = total + scaled if weight > 0 else total - scaled
    return total


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))
