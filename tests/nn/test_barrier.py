"""What the compiler must not look through: the same numbers, and the work done again where it was asked for."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax.nn.kernels.barrier import materialize, recomputed

pytestmark = pytest.mark.usefixtures("x64")


class Waves(nn.Module):
    """Two sines, and a statistic of the first."""

    @nn.compact
    def __call__(self, x, steepness, key):
        x = x + 0.1 * jax.random.normal(key, x.shape)
        x = jnp.sin(x @ self.param("rates", nn.initializers.orthogonal(), (x.shape[1], x.shape[1]), x.dtype))
        total = self.variable("batch_stats", "sum", jnp.zeros, (), x.dtype)
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            total.value = total.value + x.sum()
        return jnp.sin(steepness * x)


class Twice(nn.Module):
    again: bool

    @nn.compact
    def __call__(self, x):
        waves, how = Waves(name="waves"), (3, jax.random.key(0))
        again = self.again and not self.is_initializing()
        y = recomputed(lambda waves, *inputs: waves(*inputs), waves, x, *how) if again else waves(x, *how)
        return nn.Dense(2, name="after", param_dtype=x.dtype)(y)


def loss(again, variables, x):
    out, changed = Twice(again).apply(variables, x, mutable=["batch_stats"])
    return jnp.square(out).sum(), changed


@pytest.fixture
def start():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 16)))
    return Twice(False).init(jax.random.key(0), x), x


def test_recomputation_changes_neither_results_nor_derivatives(start):
    def derivatives(again):
        gradient = jax.grad(loss, (1, 2), has_aux=True)
        along = jax.tree.map(jnp.cos, start)
        forward = jax.jvp(lambda *at: gradient(again, *at)[0], start, along)
        return gradient(again, *start), forward

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), derivatives(True), derivatives(False)
    )


def test_the_compiler_does_what_it_was_asked_to_do_again(start):
    def products(again):
        gradient = jax.jit(jax.grad(loss, (1, 2), has_aux=True), static_argnums=0)
        return gradient.lower(again, *start).compile().as_text().count(" dot(")

    assert products(True) == products(False) + 1


@pytest.mark.parametrize("after", [None, 1.0, jnp.nan])
def test_materialize_is_the_identity_whatever_comes_before(after):
    x = jnp.asarray([jnp.nan, 1.0, -2.0]) if after is None else jnp.asarray([3.0, 1.0, -2.0])
    after = None if after is None else jnp.full((2, 2), after)
    same = jax.jit(lambda x: materialize(x, after))
    np.testing.assert_array_equal(same(x), x)
    np.testing.assert_array_equal(jax.jit(jax.vmap(same))(jnp.stack([x, 2 * x])), jnp.stack([x, 2 * x]))
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda x: 3 * same(x)[1]))(x), [0.0, 3.0, 0.0])
