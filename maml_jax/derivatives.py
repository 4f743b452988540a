"""How loops and gradients are differentiated: in which memory, and by which mode. What comes of it is the same."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from maml_jax.tree import PyTree

Checkpoint = Literal["none", "step", "nested"]
CHECKPOINTS: tuple[Checkpoint, ...] = get_args(Checkpoint)


def scan(step: Callable, carry: PyTree, length: int, checkpoint: Checkpoint) -> tuple[PyTree, PyTree]:
    """`lax.scan` without inputs, checkpointed as `maml_jax.meta.inner.InnerLoop` says."""
    if checkpoint == "none":
        return lax.scan(step, carry, length=length)
    remat = functools.partial(jax.checkpoint, prevent_cse=False)  # a scan keeps its iterations apart by itself
    step = remat(step)
    if checkpoint == "step":
        return lax.scan(step, carry, length=length)
    size = max(math.isqrt(length), 1)
    chunks, left = divmod(length, size)
    carry, outputs = lax.scan(remat(lambda carry, _: lax.scan(step, carry, length=size)), carry, length=chunks)
    outputs = jax.tree.map(lambda o: o.reshape(-1, *o.shape[2:]), outputs)
    if not left:
        return carry, outputs
    carry, rest = lax.scan(step, carry, length=left)
    return carry, jax.tree.map(lambda o, r: jnp.concatenate([o, r]), outputs, rest)


def by_forward_over_reverse(loss: Callable, has_aux: bool) -> Callable[..., tuple[Any, PyTree]]:
    """`jax.value_and_grad(loss)` whose own derivative is taken forward over reverse.

    With g(θ, φ) = ∂L/∂θ, the cotangents of θ and φ for a cotangent v of g are (∂²L/∂θ²) v and (∂²L/∂φ∂θ) v, which is
    the derivative of (∂L/∂θ, ∂L/∂φ) in the direction (v, 0). The loss and what comes beside it are not differentiated.

    Args:
      loss: (θ, φ, *constants) -> scalar, and more.
      has_aux: as in `jax.value_and_grad`.
    """

    @jax.custom_vjp
    def value_and_gradient(theta, phi, *constants):
        return jax.value_and_grad(loss, has_aux=has_aux)(theta, phi, *constants)

    def forward(theta, phi, *constants):
        return value_and_gradient(theta, phi, *constants), (theta, phi, constants)

    def backward(at, cotangents):
        theta, phi, constants = at
        both = jax.grad(loss, argnums=(0, 1), has_aux=has_aux)
        _, products = jax.jvp(lambda theta: both(theta, phi, *constants)[0], (theta,), (cotangents[1],))
        return *products, *(None for _ in constants)

    value_and_gradient.defvjp(forward, backward)
    return value_and_gradient
