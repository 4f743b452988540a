"""What a model is judged by: losses over the outputs for a support or a query set."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of logits `[..., way]` against int labels `[...]`."""
    # By way of log-softmax, which subtracts the largest logit first: a loss of 1e-8 keeps its digits.
    # The label's entry is picked by zeros and a sum, whose derivative is no scatter.
    picked = jnp.where(labels[..., None] == jnp.arange(logits.shape[-1]), jax.nn.log_softmax(logits), 0)
    return -picked.sum(-1).mean()


def summed_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`cross_entropy` times the number of ways: a mean over a class's images, summed over classes.

    So the official TensorFlow code of MAML scales both of its losses. An inner rate of 0.4 there, with five ways, is
    one of 2.0 with the mean; the outer loss is five times as large, which Adam does not notice but clipping does.
    """
    return logits.shape[-1] * cross_entropy(logits, labels)


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean squared error of outputs `[..., features]` against targets of the same shape."""
    return jnp.square(outputs - targets).mean()


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "summed_cross_entropy": summed_cross_entropy,
    "squared_error": squared_error,
}
