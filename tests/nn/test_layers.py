"""Layers by themselves, as a user's own network has them: arrays in, arrays out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax import tree
from maml_jax.meta.learner import Pass, Phase
from maml_jax.nn.kernels.conv import conv_same
from maml_jax.nn.kernels.pieces import computed, lazily
from maml_jax.nn.kernels.pool import max_pool
from maml_jax.nn.layers import Conv, ConvNorm
from maml_jax.nn.norm import Normalization
from tests.helpers import assert_same

pytestmark = pytest.mark.usefixtures("x64")

SUPPORT = Phase(Pass.SUPPORT, True)


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("use_bias", [True, False])
def test_a_convolution_by_itself(stride, use_bias):
    x, kernel, bias = drawn(2, 5, 6, 3), drawn(3, 3, 3, 4, seed=1), jnp.arange(4.0)
    params = {"kernel": kernel} | ({"bias": bias} if use_bias else {})
    y = Conv(4, stride=stride, use_bias=use_bias).apply({"params": params}, x)
    np.testing.assert_allclose(y, conv_same(x, kernel, stride) + use_bias * bias, rtol=1e-12)


@pytest.mark.parametrize("few", [True, False])  # input channels
@pytest.mark.parametrize("limit", [0, 2 * 5 * 6 * 8 * 8])
def test_a_pooled_layer_is_what_it_says_to_second_order(limit, few, x64):
    """Though it pools before it normalises, and computes its six images two at a time. One scale is negative."""
    inputs = 2 if few else 8
    x, direction = drawn(2, 6, 5, 6, inputs)
    conv = {"kernel": drawn(3, 3, inputs, 3, seed=1), "bias": jnp.ones(3)}
    params = {"conv": conv, "norm": {"scale": jnp.array([1.5, -0.7, 0.4]), "bias": jnp.array([0.1, 0.3, -0.2])}}
    layer = ConvNorm(3, pool=True, activation=nn.relu)

    def block(params, x):
        return computed(layer.apply({"params": params}, lazily(x, limit), SUPPORT))

    def plainly(params, x):
        y = conv_same(x, params["conv"]["kernel"]) + params["conv"]["bias"]
        y = (y - y.mean((0, 1, 2))) / jnp.sqrt(y.var((0, 1, 2)) + 1e-5)
        return max_pool(nn.relu(y * params["norm"]["scale"] + params["norm"]["bias"]))

    def hessian_product(f):
        def gradients(params, x):
            return jax.grad(lambda *args: jnp.sum(f(*args) ** 3), (0, 1))(params, x)

        return jax.jit(lambda: (f(params, x), jax.jvp(gradients, (params, x), (params, direction))))()

    assert_same(hessian_product(block), hessian_product(plainly), 1e-11)


def test_one_that_neither_pools_nor_activates():
    x = drawn(3, 5, 4, 2)
    layer = ConvNorm(3, window=1, stride=2, use_bias=False)
    variables = layer.init(jax.random.key(0), x, SUPPORT)
    y = conv_same(x, variables["params"]["conv"]["kernel"], 2)
    expected = (y - y.mean((0, 1, 2))) / jnp.sqrt(y.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(layer.apply(variables, x, SUPPORT), expected, rtol=1e-10)


def test_the_policy_knows_layers_by_their_names():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, phase):
            norm = Normalization.parse("head/bn=episodic, body=global, batch")
            x = ConvNorm(2, norm, name="body")(x, phase)
            return ConvNorm(2, norm, names=("filters", "bn"), name="head")(x, phase)

    variables = Block().init(jax.random.key(0), drawn(2, 4, 4, 1), SUPPORT)
    assert set(tree.names(variables["lasting_stats"])) == {"body/norm/mean", "body/norm/var"}
    assert set(tree.names(variables["batch_stats"])) == {"head/bn/mean", "head/bn/var"}
    assert "head/filters/kernel" in tree.names(variables["params"])


def test_a_layer_of_any_name_has_a_row_for_every_step():
    """That it is per step is the layer's to say, and nobody's to guess from its name."""
    norm = Normalization.parse("per_step", steps=3)
    layer, x = ConvNorm(2, norm, names=("filters", "whiten")), drawn(2, 4, 4, 1)
    variables = layer.init(jax.random.key(0), x, SUPPORT)
    assert variables["params"]["whiten"]["scale"].shape == (3, 2)
    apply = jax.jit(lambda step: layer.apply(variables, x, Phase(Pass.SUPPORT, True, step), mutable=["lasting_stats"]))
    _, after = apply(jnp.int32(1))
    moved = after["lasting_stats"]["whiten"]["mean"] != 0
    np.testing.assert_array_equal(moved, [[False, False], [True, True], [False, False]])


def test_per_step_without_steps_is_refused():
    with pytest.raises(ValueError, match="per_step wants steps"):
        ConvNorm(2, "per_step").init(jax.random.key(0), drawn(1, 4, 4, 1), SUPPORT)


def test_the_convolution_is_the_one_given():
    x = drawn(2, 4, 4, 1)
    double = lambda x, kernel, stride: 2 * conv_same(x, kernel, stride)  # noqa: E731
    plain, ours = Conv(2), Conv(2, conv=double)
    variables = plain.init(jax.random.key(0), x)
    np.testing.assert_allclose(ours.apply(variables, x), 2 * plain.apply(variables, x), rtol=1e-12)
