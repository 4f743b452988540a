"""Max-pooling: which entries, and where their gradients go."""

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax.nn.kernels.pool import max_pool


def test_max_pool_drops_an_odd_edge():
    x = jnp.arange(2 * 5 * 7 * 1.0).reshape(2, 5, 7, 1)
    np.testing.assert_array_equal(max_pool(x), x[:, 1:5:2, 1:7:2])


def test_max_pool_loses_no_gradient_in_compiled_code():
    """Whatever the compiler fuses and rounds twice, a window's gradients add up to what came in."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 6, 8)), jnp.float32).at[0].set(0.0)

    @jax.jit
    def gradient(x):
        y = x * 1.1 + 0.3 * jnp.sin(x)
        return jax.grad(lambda shift: jnp.sum(max_pool(y + shift)))(jnp.zeros_like(x))

    windows = gradient(x).reshape(4, 3, 2, 3, 2, 8)
    np.testing.assert_array_equal(windows.sum((2, 4)), 1.0)
    np.testing.assert_array_equal(windows[0, :, 0, :, 0], 1.0)  # of ties, the first
