"""Batches of images computed a piece at a time, so that what is made along the way need not be there as a whole.

Only the result of a piece is kept; on the way back the piece is computed anew. What a layer keeps for its derivatives,
and not what it makes, then is what memory has to hold, and the rest stays in a processor's cache.

Layers are written for arrays, and by means of `each` and `measured` take images that are yet to be computed (`Lazy`) in
their place, in which case they give such too. `lazily` is where that starts, `computed` where it ends.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from maml_jax.nn.kernels import barrier
from maml_jax.nn.kernels.loop import largest_divisor, length, map_pieces, put, room, take
from maml_jax.tree import PyTree


@dataclasses.dataclass(frozen=True)
class Lazy:
    """Images yet to be computed from others, each from its own, at once or in pieces of the batch.

    Attributes:
      function: of `inputs`, or the same rows of each, to the images.
      inputs: trees of arrays `[batch, ...]`.
      like: the images' shape and type.
      image_bytes: the size of an image, or of what it is made from, whichever is largest.
      limit: how many bytes of images there may be at once; 0: no limit.
    """

    function: Callable[..., jax.Array]
    inputs: tuple[PyTree, ...]
    like: PyTree
    image_bytes: int
    limit: int = 0

    @classmethod
    def of(cls, x: PyTree, limit: int = 0) -> "Lazy":
        """Images, or anything else with a leading `batch` axis, that are there."""
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), x)
        return cls(_itself, (x,), like, sum(leaf.nbytes // len(leaf) for leaf in jax.tree.leaves(x)), limit)

    def then(self, function: Callable[..., jax.Array], *others: "Lazy") -> "Lazy":
        """`function` of these images and of others."""
        parts = (self, *others)
        ends = list(itertools.accumulate(len(part.inputs) for part in parts))

        def combined(*inputs):
            return function(*(p.function(*inputs[e - len(p.inputs) : e]) for p, e in zip(parts, ends, strict=True)))

        inputs = sum((part.inputs for part in parts), ())
        like = jax.eval_shape(combined, *inputs)
        own = math.prod(like.shape[1:]) * like.dtype.itemsize
        size = max(own, *(part.image_bytes for part in parts))
        return Lazy(combined, inputs, like, size, max(part.limit for part in parts))

    @property
    def shape(self) -> tuple[int, ...]:
        """`[batch, height, width, channels]`."""
        return self.like.shape

    @property
    def dtype(self) -> jnp.dtype:
        """The images' type."""
        return self.like.dtype

    def compute(self, function: Callable[[jax.Array], PyTree] | None = None) -> PyTree:
        """The images, or `function` of them, a piece after the other."""
        if function is None:
            return self.inputs[0] if self.function is _itself else self.compute(_itself)
        return piecewise(lambda *inputs: function(self.function(*inputs)), self.inputs, self.at_once)

    def compute_and(self, after: Callable[[jax.Array], PyTree]) -> tuple[jax.Array, PyTree]:
        """The images, and `after` of them, whose derivatives take the images from memory."""
        return piecewise_and(self.function, after, self.inputs, self.at_once)

    @property
    def at_once(self) -> int:
        """How many images there may be at once, at least 1."""
        batch = length(self.inputs)
        return min(max(self.limit // self.image_bytes, 1), batch) if self.limit else batch


def _itself(x):
    return x


Images = jax.Array | Lazy


def lazily(x: jax.Array, limit: int) -> Images:
    """Images whose layers are computed in pieces of at most `limit` bytes; the array itself if that is 0."""
    return Lazy.of(x, limit) if limit else x


def computed(x: Images) -> jax.Array:
    """The images as an array."""
    return x.compute() if isinstance(x, Lazy) else x


def settled(x: Images) -> Images:
    """The same images, computed if they were yet to be: for what several layers read."""
    return Lazy.of(x.compute(), x.limit) if isinstance(x, Lazy) else x


def each(function: Callable[..., jax.Array], *images: Any) -> Images:
    """`function(*images)`, image by image.

    Args:
      function: of arrays `[n, ...]`, which treats all n alike, to an array `[n, ...]`. What else it depends on are
        float arrays.
      *images: trees of arrays `[batch, ...]`, or images yet to be computed; if any are, then the result is too.
    """
    if not any(isinstance(x, Lazy) for x in images):
        return function(*images)
    first, *others = (x if isinstance(x, Lazy) else Lazy.of(x) for x in images)
    return first.then(function, *others)


def measured(
    images: Images,
    measure: Callable[[jax.Array], PyTree],
    after: Callable[..., jax.Array] | None = None,
    *others: jax.Array,
    keep: bool = True,
) -> tuple[PyTree, Images]:
    """Two things: `measure(images)`, and the images, or `after(images, *others)`.

    Args:
      images: which are computed for this, if they are yet to be.
      measure: of arrays `[n, ...]`, image by image, to arrays `[n, ...]`.
      after: the same.
      *others: arrays `[batch, ...]`.
      keep: keep what has been computed; if not, and it was in pieces, it is computed again where it is used.
    """
    if not isinstance(images, Lazy):
        return measure(images), (after(images, *others) if after else images)
    if not keep and images.at_once < length(images.inputs):
        return images.compute(measure), (each(after, images, *others) if after else images)
    if after is None:
        x, moments = images.compute_and(measure)
        return moments, Lazy.of(x, images.limit)

    def of_piece(others, *inputs):
        x = images.function(*inputs)
        return measure(x), after(x, *others)

    moments, x = piecewise(of_piece, (others, *images.inputs), images.at_once)
    return moments, Lazy.of(x, images.limit)


def recomputed(block: nn.Module) -> Callable[..., Images]:
    """The call of a block that keeps nothing but its input if that is yet to be computed, see `barrier.recomputed`."""

    def call(x, *how):
        if not isinstance(x, Lazy) or block.is_initializing():
            return block(x, *how)
        at_once = lambda block, array, *how: computed(block(Lazy.of(array, x.limit), *how))  # noqa: E731
        return Lazy.of(barrier.recomputed(at_once, block, x.compute(), *how), x.limit)

    return call


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
