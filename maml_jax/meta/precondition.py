"""Preconditioned inner steps: a linear map of the inner gradients, meta-learned beside the parameters."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from maml_jax import tree
from maml_jax.tree import PyTree


@dataclasses.dataclass(frozen=True)
class Curvature:
    """Meta-Curvature (Park & Oliva 2019, arXiv:1902.03356): a matrix for each mode of a parameter's gradient.

    G ← G ×₁ M_window ×₂ M_in ×₃ M_out for the gradient G of a convolution's kernel, seen as `[window, in, out]` with
    the places of its window in one axis; G ← G ×₁ M_in ×₂ M_out for the `[in, out]` kernel of a dense layer; and every
    element of anything else times a factor of its own. G ×ₙ M is the product of mode n: M times G along its axis n.

    The matrices start as identities, so that at first this is plain descent, and stand beside the meta-parameters as
    'precondition/encoder/block1/conv/kernel/in'. They are the same in every inner step. Only what adapts has any.
    """

    def init(self, adapted: PyTree) -> PyTree:
        """The identity, for the adapted parameters (None in place of the others)."""
        return jax.tree.map(lambda leaf: {n: _identity(leaf, s) for n, s in _modes(leaf).items()}, adapted)

    def apply(self, matrices: PyTree, gradient: PyTree) -> PyTree:
        """The gradient of the adapted parameters after all products."""
        at = tree.by_name(matrices)
        return tree.map_named(lambda name, g: _product(g, {n: at[f"{name}/{n}"] for n in _modes(g)}), gradient)


def _modes(leaf: jax.Array) -> dict[str, int]:
    """The size of each matrix by its name, in the order of the axes; {'scale': 0} for factors of elements."""
    if leaf.ndim < 2:
        return {"scale": 0}
    *window, inputs, outputs = leaf.shape
    return ({"window": math.prod(window)} if window else {}) | {"in": inputs, "out": outputs}


def _identity(leaf: jax.Array, size: int) -> jax.Array:
    return jnp.eye(size, dtype=leaf.dtype) if size else jnp.ones_like(leaf)


def _product(g: jax.Array, matrices: dict[str, jax.Array]) -> jax.Array:
    if "scale" in matrices:
        return g * matrices["scale"]
    product = g.reshape(*(len(m) for m in matrices.values()))
    for axis, matrix in enumerate(matrices.values()):
        product = jnp.moveaxis(jnp.tensordot(matrix, product, (1, axis)), 0, axis)
    return product.reshape(g.shape)
