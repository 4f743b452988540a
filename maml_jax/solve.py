"""Linear systems whose matrix is known by its products only."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from maml_jax.tree import PyTree


def conjugate_gradients(product: Callable[[PyTree], PyTree], b: PyTree, steps: int) -> PyTree:
    """Solves A x = b approximately, by steps of conjugate gradients from x = b on (Hestenes & Stiefel 1952).

    A is symmetric, and best near the identity. Where it is not positive definite, the steps end at the first direction
    p with pᵀ A p ≤ 0, as in truncated Newton methods (Nocedal & Wright 2006, algorithm 7.1).

    Args:
      product: A times a tree such as b.
      b: a tree of float arrays.
      steps: how many.
    """
    b, unravel = ravel_pytree(b)

    def a_times(p):
        return ravel_pytree(product(unravel(p)))[0]

    def step(_, state):
        x, r, p = state
        ap, size = a_times(p), r @ r
        rate = size / (p @ ap)
        r_next = r - rate * ap
        after = x + rate * p, r_next, r_next + (r_next @ r_next) / size * p
        return jax.tree.map(lambda new, old: jnp.where((p @ ap > 0) & (size > 0), new, old), after, state)

    r = b - a_times(b)
    return unravel(lax.fori_loop(0, steps, step, (b, r, r))[0])
