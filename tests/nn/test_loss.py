"""Losses in finite precision."""

import jax.numpy as jnp
import numpy as np

from maml_jax.nn.loss import cross_entropy


def test_a_small_loss_keeps_its_digits(x64):
    logits = jnp.array([[90.0, 70.0, 60.0]])
    exact = np.log1p(np.exp(-20.0) + np.exp(-30.0))
    np.testing.assert_allclose(cross_entropy(logits, jnp.array([0])), exact, rtol=1e-7)
