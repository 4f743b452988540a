"""Convolution by 3x3 windows with 16 multiplications where there seem to be 36 (Lavin & Gray 2015, arXiv:1509.09308).

A tile of 2x2 results comes from 4x4 pixels d and the window g as Aᵀ [(G g Gᵀ) ∘ (Bᵀ d B)] A, in which every matrix is
small, constant, and of zeros, ones and halves. Summed over channels, the product ∘ is 16 matrix products of [tiles, in]
with [in, out]. The weight gradient is the transpose of the same formula. In float32 the results of both differ from
those of plain sums by 1e-6 or 2e-6 of the largest.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]
Matrix = tuple[tuple[float, ...], ...]
Grid = list[list[jax.Array]]  # of arrays of one shape

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
    n, h, w = (x.shape[0], *(side + sum(p) - 2 for side, p in zip(x.shape[1:3], padding, strict=True)))
    transformed = _transformed(kernel)
    if flipped:  # G reversed is G but for its first and last row, which change places
        reverse = lambda rows: [rows[3], rows[1], rows[2], rows[0]]  # noqa: E731
        transformed = reverse([[u.T for u in reverse(row)] for row in transformed])

    def of_images(x):
        products = _each(jnp.matmul, _input_tiles(x, h, w, padding), transformed)
        (a, b), (c, d) = _both_ways(_OUTPUT, products)
        rows = jnp.stack([jnp.stack([a, b], 3), jnp.stack([c, d], 3)], 2)
        tall, wide, out = rows.shape[1], rows.shape[3], rows.shape[5]
        return rows.reshape(-1, 2 * tall, 2 * wide, out)[:, :h, :w]

    groups = _grouped(x, h * w, kernel.shape)
    return lax.map(of_images, groups).reshape(n, h, w, -1) if len(groups) > 1 else of_images(x)


def weight_gradient(x: jax.Array, y: jax.Array, padding: Padding) -> jax.Array:
    """What the kernel of `conv` gets, `[3, 3, c, o]`, for the cotangent `y` of its result."""
    _, h, w, o = y.shape
    shape = (3, 3, x.shape[-1], o)

    def of_images(x, y):
        y = jnp.pad(y, [(0, 0), (0, h % 2), (0, w % 2), (0, 0)])
        spread = _both_ways(_transposed(_OUTPUT), [[y[:, i::2, j::2] for j in (0, 1)] for i in (0, 1)])
        contract = lambda x, y: x.reshape(-1, x.shape[-1]).T @ y.reshape(-1, o)  # noqa: E731
        return _each(contract, _input_tiles(x, h, w, padding), spread)

    groups = _grouped(x, h * w, shape)
    if len(groups) == 1:
        total = of_images(x, y)
    else:
        zeros = [[jnp.zeros(shape[2:], x.dtype)] * 4] * 4
        add = lambda total, pair: (jax.tree.map(jnp.add, total, of_images(*pair)), None)  # noqa: E731
        total, _ = lax.scan(add, zeros, (groups, y.reshape(*groups.shape[:2], *y.shape[1:])))
    once = np.asarray(_WINDOW, x.dtype)
    total = jnp.stack([a for row in total for a in row])
    return (np.kron(once, once).T @ total.reshape(16, -1)).reshape(shape)


def _transformed(kernel) -> Grid:
    """G g Gᵀ: 4x4 arrays `[c, o]`."""
    _, _, c, o = kernel.shape
    if 25 * kernel[0, 0].nbytes > _CACHED:
        return _both_ways(_WINDOW, [list(row) for row in kernel])
    # As one product with a constant, whose program is smaller by 16 kernels.
    once = np.asarray(_WINDOW, kernel.dtype)
    flat = np.kron(once, once) @ kernel.reshape(9, c * o)
    return [list(row) for row in flat.reshape(4, 4, c, o)]


def _grouped(x, pixels, shape):
    """`[n, ...]` to `[groups, n / groups, ...]`, the largest groups whose tiles stay in a cache."""
    bytes_each = 4 * pixels * sum(shape[2:]) * x.dtype.itemsize
    most = max(_CACHED // bytes_each, 1)
    n = len(x)
    size = max(k for k in range(1, n + 1) if n % k == 0 and k <= most)
    return x.reshape(n // size, size, *x.shape[1:])


def _input_tiles(x, h, w, padding) -> Grid:
    """The transformed 4x4 pixels of every tile, each `[n, ceil(h / 2), ceil(w / 2), c]`."""
    tall, wide = (h + 1) // 2, (w + 1) // 2
    ((top, _), (left, _)), (n, height, width, c) = padding, x.shape
    bottom, right = 2 * tall + 2 - height - top, 2 * wide + 2 - width - left
    x = jnp.pad(x, [(0, 0), (top, bottom), (left, right), (0, 0)]).reshape(n, tall + 1, 2, wide + 1, 2, c)
    pixel = lambda i, j: x[:, i // 2 : i // 2 + tall, i % 2, j // 2 : j // 2 + wide, j % 2]  # noqa: E731
    return _both_ways(_INPUT, [[pixel(i, j) for j in range(4)] for i in range(4)])


def _both_ways(matrix: Matrix, grid: Grid) -> Grid:
    """M X Mᵀ, for a grid X of arrays."""
    down = [[_combination(row, column) for column in zip(*grid, strict=True)] for row in matrix]
    return [[_combination(row, across) for row in matrix] for across in down]


def _combination(weights, arrays):
    return sum(a if weight == 1 else weight * a for weight, a in zip(weights, arrays, strict=True) if weight)


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def _each(function, left: Grid, right: Grid) -> Grid:
    return [[function(a, b) for a, b in zip(*rows, strict=True)] for rows in zip(left, right, strict=True)]
