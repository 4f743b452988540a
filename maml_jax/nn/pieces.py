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
        most = self.at_once(size)
        return piecewise(lambda *inputs: function(self.function(*inputs)), self.inputs, most)

    def at_once(self, size: int) -> int:
        """How many images take at most `size` bytes, but at least 1; all of them if that is 0."""
        batch = len(jax.tree.leaves(self.inputs)[0])
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
    batch = len(jax.tree.leaves(inputs)[0])
    size = max(n for n in range(1, min(most, batch) + 1) if batch % n == 0)
    if size == batch:
        return function(*inputs)
    pieces = jax.tree.map(lambda a: a.reshape(batch // size, size, *a.shape[1:]), inputs)
    function, shared = jax.closure_convert(function, *jax.tree.map(lambda a: a[0], pieces))
    out = _loop(function, pieces, shared)
    return jax.tree.map(lambda a: a.reshape(batch, *a.shape[2:]), out)


# A rule of its own because the derived one, of a checkpointed `lax.map`, keeps a copy of what the loop reads.


def _each(function, pieces, shared):
    """`function(*piece, *shared)` of every piece, the first axis of all in `pieces`."""

    def one(i, out):
        return _put(out, i, function(*_take(pieces, i), *shared))

    like = jax.eval_shape(function, *_take(pieces, 0), *shared)
    return lax.fori_loop(0, _count(pieces), one, _room(like, pieces, shared))


def _each_forward(function, pieces, shared):
    return _each(function, pieces, shared), (pieces, shared)


def _each_backward(function, kept, cotangents):
    pieces, shared = kept

    def one(i, carry):
        for_pieces, total = carry
        _, transpose = jax.vjp(lambda piece, shared: function(*piece, *shared), _take(pieces, i), shared)
        for_piece, for_shared = transpose(_take(cotangents, i))
        return _put(for_pieces, i, for_piece), jax.tree.map(jnp.add, total, for_shared)

    start = _room(_take(pieces, 0), pieces, cotangents), jax.tree.map(jnp.zeros_like, shared)
    return lax.fori_loop(0, _count(pieces), one, start)


_loop = jax.custom_vjp(_each, nondiff_argnums=(0,))
_loop.defvjp(_each_forward, _each_backward)


def _count(pieces):
    return len(jax.tree.leaves(pieces)[0])


def _take(pieces, i):
    return jax.tree.map(lambda a: a[i], pieces)


def _put(pieces, i, piece):
    return jax.tree.map(lambda a, b: a.at[i].set(b), pieces, piece)


def _room(piece, pieces, others):
    """Memory for as many of `piece` as there are `pieces`, filled with anything.

    With zeros, as in `lax.map`, all loops would start from a copy of the same ones, which are there all the time, and
    these copies could be made long before they are needed. With a number that is known only when the loop can start,
    they are not.
    """
    number = sum(leaf.reshape(-1)[0] for leaf in jax.tree.leaves((pieces, others)))
    shape = lambda a: (_count(pieces), *a.shape)  # noqa: E731
    return jax.tree.map(lambda a: jnp.broadcast_to(number.astype(a.dtype), shape(a)), piece)
