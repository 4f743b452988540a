"""Batches of images computed a piece at a time, so that what is made along the way need not be there as a whole.

Only the result of a piece is kept; on the way back the piece is computed anew. What a layer keeps for its derivatives,
and not what it makes, then is what memory has to hold, and the rest stays in a processor's cache.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from maml_jax.nn.loop import largest_divisor, length, map_pieces, put, room, take
from maml_jax.nn.norm import Pass
from maml_jax.tree import PyTree


def piece_of(size: int, which: Pass) -> int:
    """The bytes of images at once on a pass: `size`, or 0 for no limit on the support pass.

    That one is differentiated twice. What its first derivative makes would be kept for every piece.
    """
    return 0 if which is Pass.SUPPORT else size


class Lazy(NamedTuple):
    """Images yet to be computed from others, each from its own, at once or in pieces of the batch.

    Attributes:
      function: of `inputs`, or the same rows of each, to the images.
      inputs: trees of arrays `[batch, ...]`.
      image_bytes: the size of an image, or of what it is made from, whichever is largest.
    """

    function: Callable[..., jax.Array]
    inputs: tuple[PyTree, ...]
    image_bytes: int

    @classmethod
    def of(cls, x: PyTree) -> "Lazy":
        """Images, or anything else with a leading `batch` axis, that are there."""
        return cls(lambda x: x, (x,), sum(leaf.nbytes // len(leaf) for leaf in jax.tree.leaves(x)))

    def then(self, function: Callable[..., jax.Array], *others: "Lazy") -> "Lazy":
        """`function` of these images and of others."""
        parts = (self, *others)
        ends = list(itertools.accumulate(len(part.inputs) for part in parts))

        def combined(*inputs):
            return function(*(p.function(*inputs[e - len(p.inputs) : e]) for p, e in zip(parts, ends, strict=True)))

        inputs = sum((part.inputs for part in parts), ())
        x = jax.eval_shape(combined, *inputs)
        own = math.prod(x.shape[1:]) * x.dtype.itemsize
        return Lazy(combined, inputs, max(own, *(part.image_bytes for part in parts)))

    @property
    def like(self) -> jax.ShapeDtypeStruct:
        """Shape and type of the images."""
        return jax.eval_shape(self.function, *self.inputs)

    def compute(self, size: int, function: Callable[[jax.Array], PyTree] = lambda x: x) -> PyTree:
        """The images, or `function` of them, those of a piece taking at most `size` bytes; 0: all at once."""
        return piecewise(lambda *inputs: function(self.function(*inputs)), self.inputs, self.at_once(size))

    def compute_and(self, size: int, after: Callable[[jax.Array], PyTree]) -> tuple[jax.Array, PyTree]:
        """The images, and `after` of them, whose derivatives take the images from memory."""
        return piecewise_and(self.function, after, self.inputs, self.at_once(size))

    def at_once(self, size: int) -> int:
        """How many images take at most `size` bytes, but at least 1; all of them if that is 0."""
        batch = length(self.inputs)
        return min(max(size // self.image_bytes, 1), batch) if size else batch


def piecewise(function: Callable[..., PyTree], inputs: tuple[PyTree, ...], most: int) -> PyTree:
    """`function(*inputs)`, computed for a piece of the batch after the other, and anew on the way back.

    Memory for what the function makes along the way is that of a piece, for one more evaluation. Derivatives start with
    one in reverse mode.

    Args:
      function: of arrays `[n, ...]`, which treats all n alike, to arrays `[n, ...]`. What else it depends on are float
        arrays.
      inputs: arrays `[batch, ...]`.
      most: in a piece, which is a divisor of the batch.
    """
    return piecewise_and(function, None, inputs, most)[0]


def piecewise_and(
    function: Callable[..., PyTree], after: Callable[[PyTree], PyTree] | None, inputs: tuple[PyTree, ...], most: int
) -> tuple[PyTree, PyTree]:
    """Two things: y = `function(*inputs)` and `after(y)`, a piece after the other; see `piecewise`.

    On the way back y is there, and not computed anew for the derivatives of `after`, a function of nothing else; and no
    second cotangent of the size of y is made.
    """
    size = largest_divisor(length(inputs), most)
    if size == length(inputs):
        return _both(function, after)(*inputs)
    function, shared = jax.closure_convert(function, *take(inputs, 0, size))
    return _loop(function, after, size, inputs, shared)


def _both(function, after):
    def both(*inputs):
        y = function(*inputs)
        return y, (after(y) if after else ())

    return both


# A rule of its own because the derived one, of a checkpointed `lax.map`, keeps a copy of what the loop reads.


def _each(function, after, size, inputs, shared):
    both = _both(function, after)
    return map_pieces(lambda *piece: both(*piece, *shared), inputs, size)


def _each_forward(function, after, size, inputs, shared):
    y, more = _each(function, after, size, inputs, shared)
    return (y, more), (inputs, shared, y if after else ())


def _each_backward(function, after, size, kept, cotangents):
    inputs, shared, y = kept

    def one(i, carry):
        for_inputs, total = carry
        for_y, for_more = take(cotangents, i, size)
        if after:
            _, transpose = jax.vjp(after, take(y, i, size))
            for_y = jax.tree.map(jnp.add, for_y, *transpose(for_more))
        _, transpose = jax.vjp(lambda piece, shared: function(*piece, *shared), take(inputs, i, size), shared)
        for_piece, for_shared = transpose(for_y)
        return put(for_inputs, i, for_piece, size), jax.tree.map(jnp.add, total, for_shared)

    batch = length(inputs)
    start = room(inputs, batch, (inputs, cotangents)), jax.tree.map(jnp.zeros_like, shared)
    return lax.fori_loop(0, batch // size, one, start)


_loop = jax.custom_vjp(_each, nondiff_argnums=(0, 1, 2))
_loop.defvjp(_each_forward, _each_backward)
