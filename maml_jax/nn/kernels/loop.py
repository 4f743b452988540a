"""Loops over pieces of the leading axis of arrays.

They read and write slices, where `lax.map` and `lax.scan` want an axis of pieces: beside an axis of length 1, XLA takes
that for another layout and copies. And results take memory when a loop starts and not before. `lax.map` starts from
zeros: XLA makes all loops with results of one shape start from copies of the same ones, which are there all the time,
and can make these copies long before they are needed.
"""

import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from maml_jax.tree import PyTree


def length(arrays: PyTree) -> int:
    """Of the leading axis."""
    return len(jax.tree.leaves(arrays)[0])


def largest_divisor(batch: int, most: int) -> int:
    """The largest size of equal pieces that is at most `most`, and at least 1."""
    return max(n for n in range(1, max(min(most, batch), 1) + 1) if batch % n == 0)


def map_pieces(function: Callable[..., PyTree], arrays: tuple[PyTree, ...], size: int) -> PyTree:
    """`function(*arrays)`, computed for a piece after the other.

    Args:
      function: of arrays `[size, ...]`, which treats all alike, to arrays `[size, ...]`.
      arrays: `[batch, ...]`.
      size: of a piece; divides the batch.
    """
    batch = length(arrays)
    if size == batch:
        return function(*arrays)

    def one(i, out):
        return put(out, i, function(*take(arrays, i, size)), size)

    like = jax.eval_shape(function, *take(arrays, 0, size))
    return lax.fori_loop(0, batch // size, one, room(like, batch, arrays))


def sum_pieces(function: Callable[..., PyTree], arrays: tuple[PyTree, ...], size: int) -> PyTree:
    """The sum over pieces of `function(*piece)`; arguments as of `map_pieces`, but the function's result is any."""
    batch = length(arrays)
    if size == batch:
        return function(*arrays)

    def one(i, total):
        return jax.tree.map(operator.add, total, function(*take(arrays, i, size)))

    like = jax.eval_shape(function, *take(arrays, 0, size))
    return lax.fori_loop(0, batch // size, one, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like))


def take(arrays: PyTree, i: int | jax.Array, size: int) -> PyTree:
    """Piece `i` of `size`."""
    return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, i * size, size), arrays)


def put(arrays: PyTree, i: jax.Array, piece: PyTree, size: int) -> PyTree:
    """The arrays, with `piece` as piece `i`."""
    return jax.tree.map(lambda a, b: lax.dynamic_update_slice_in_dim(a, b, i * size, 0), arrays, piece)


def room(piece: PyTree, batch: int, known: PyTree) -> PyTree:
    """Memory for a `batch` of what the piece is a part of, filled with a number that is known once the arrays are."""
    number = sum(leaf.reshape(-1)[0] for leaf in jax.tree.leaves(known))
    return jax.tree.map(lambda a: jnp.broadcast_to(number.astype(a.dtype), (batch, *a.shape[1:])), piece)
