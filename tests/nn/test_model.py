"""The classifier: shapes, names, and what an episode starts with."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax import tree
from maml_jax.nn import model
from maml_jax.nn.convnet import ConvBlock
from maml_jax.nn.kernels.conv import conv_same
from maml_jax.nn.kernels.pieces import Lazy
from maml_jax.nn.kernels.pool import max_pool
from maml_jax.nn.loss import cross_entropy
from maml_jax.nn.norm import Pass


@pytest.mark.parametrize(
    ("encoder", "width", "count"),
    [
        ("convnet4", 0, 32_901),
        ("convnet4", 64, 121_093),
        ("wide_convnet4", 0, 121_093),
        ("resnet12", 0, 7_999_365),
        ("wide_resnet12", 0, 12_427_525),
    ],
)
def test_parameter_count_of_the_original(encoder, width, count):
    params, stats = jax.eval_shape(model.build(encoder, width, "batch", "meta", 5, (84, 84, 3)).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    assert jax.tree.leaves(stats) == []


@pytest.mark.parametrize(("side", "channels"), [(16, 1), (28, 1), (35, 3), (84, 3)])
def test_any_image_size(side, channels):
    m = model.build("convnet4", 4, "batch", "meta", 3, (side, side, channels))
    params, _ = jax.eval_shape(m.init, jax.random.key(0))
    assert params["head"]["kernel"].shape == (4 * (side // 16) ** 2, 3)
    x = jax.ShapeDtypeStruct((2, side, side, channels), jnp.float32)
    logits, _ = jax.eval_shape(lambda p, x: m.apply(p, {}, x, Pass.SUPPORT, True), params, x)
    assert logits.shape == (2, 3)


@pytest.mark.parametrize("encoder", sorted(model.ENCODERS.keys() - {"mlp"}))
def test_every_encoder_at_an_odd_size_and_a_small_width(encoder):
    m = model.build(encoder, 4, "episodic", "meta", 3, (35, 35, 1))
    params, _ = jax.eval_shape(m.init, jax.random.key(0))
    stats = jax.eval_shape(m.episode_stats, jax.eval_shape(m.init, jax.random.key(0))[1])
    x = jax.ShapeDtypeStruct((2, 35, 35, 1), jnp.float32)
    logits, after = jax.eval_shape(lambda p, s, x: m.apply(p, s, x, Pass.SUPPORT, True), params, stats, x)
    assert logits.shape == (2, 3)
    norms = [name for name in tree.names(params) if name.endswith("scale")]
    assert len(norms) == len([name for name in tree.names(after) if name.endswith("mean")])
    assert jax.tree.leaves(params)[0].shape[-1] == 4


@pytest.mark.parametrize("learned", [False, True])
def test_temperature_scales_the_logits(learned):
    plain, hot = (
        model.build("convnet4", 2, "batch", "meta", 2, (16, 16, 1), t, learn)
        for t, learn in ((1.0, False), (3, learned))
    )
    params, _ = hot.init(jax.random.key(0))
    assert ("temperature" in params["head"]) == learned
    x = jnp.asarray(np.random.default_rng(0).random((3, 16, 16, 1)), jnp.float32)
    without = {**params, "head": {k: v for k, v in params["head"].items() if k != "temperature"}}
    expected = 3 * plain.apply(without, {}, x, Pass.QUERY, True)[0]
    np.testing.assert_allclose(hot.apply(params, {}, x, Pass.QUERY, True)[0], expected, rtol=1e-6)


def test_zero_head_is_no_meta_parameter_and_takes_any_way(small):
    params, _ = small(head="zero").init(jax.random.key(0))
    assert not any(name.startswith("head") for name in tree.names(params))
    learned = model.build("convnet4", 2, "batch", "zero", 2, (16, 16, 1), 2.0, learn_temperature=True)
    assert [n for n in tree.names(learned.init(jax.random.key(0))[0]) if "head" in n] == ["head/temperature"]
    for way in (2, 7):
        head = small(head="zero", way=way).episode_params(params)["head"]
        assert head["kernel"].shape == (8, way)
        assert not jnp.any(head["kernel"])


def test_statistics_that_outlive_an_episode(small):
    m = small(norm="block1=global, block2=episodic")
    _, stats = m.init(jax.random.key(0))
    assert tree.names(stats) == ["encoder/block1/norm/mean", "encoder/block1/norm/var"]
    moved = jax.tree.map(lambda s: s + 5, stats)
    start = m.episode_stats(moved)
    np.testing.assert_array_equal(start["encoder"]["block1"]["norm"]["mean"], 5.0)
    np.testing.assert_array_equal(start["encoder"]["block2"]["norm"]["mean"], 0.0)
    np.testing.assert_array_equal(start["encoder"]["block2"]["norm"]["var"], 1.0)
    assert tree.names(m.lasting_stats(start)) == tree.names(stats)


def test_max_pool_drops_an_odd_edge():
    x = jnp.arange(2 * 5 * 7 * 1.0).reshape(2, 5, 7, 1)
    np.testing.assert_array_equal(max_pool(x), x[:, 1:5:2, 1:7:2])


def test_partition_and_merge(small):
    params, _ = small().init(jax.random.key(0))
    left, right = tree.partition(params, lambda name: "norm" in name)
    assert all("norm" in name for name in tree.names(left))
    assert not any("norm" in name for name in tree.names(right))
    merged = tree.merge(left, right)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    assert tree.names(merged) == tree.names(params)


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


@pytest.mark.parametrize(("piece", "keep"), [(0, True), (2 * 5 * 6 * 3 * 8, True), (2 * 5 * 6 * 3 * 8, False)])
def test_a_block_is_convolution_normalisation_relu_and_pooling_to_second_order(piece, keep, x64):
    """Though it pools before it normalises, and computes its six images two at a time. One scale is negative."""
    rng = np.random.default_rng(0)
    x, direction = jnp.asarray(rng.normal(size=(2, 6, 5, 6, 2)))
    conv = {"kernel": jnp.asarray(rng.normal(size=(3, 3, 2, 3))), "bias": jnp.ones(3)}
    params = {"conv": conv, "norm": {"scale": jnp.array([1.5, -0.7, 0.4]), "bias": jnp.array([0.1, 0.3, -0.2])}}

    def block(params, x):
        return (
            ConvBlock(3, "batch", piece, keep).apply({"params": params}, Lazy.of(x), Pass.SUPPORT, True).compute(piece)
        )

    def plainly(params, x):
        y = conv_same(x, params["conv"]["kernel"]) + params["conv"]["bias"]
        y = (y - y.mean((0, 1, 2))) / jnp.sqrt(y.var((0, 1, 2)) + 1e-5)
        return max_pool(nn.relu(y * params["norm"]["scale"] + params["norm"]["bias"]))

    def hessian_product(f):
        def gradients(params, x):
            return jax.grad(lambda *args: jnp.sum(f(*args) ** 3), (0, 1))(params, x)

        return jax.jit(lambda: (f(params, x), jax.jvp(gradients, (params, x), (params, direction))))()

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12),
        hessian_product(block),
        hessian_product(plainly),
    )


@pytest.mark.parametrize("norm", ["batch", "episodic"])
def test_half_precision_keeps_parameters_and_statistics_whole(norm):
    x = jnp.asarray(np.random.default_rng(0).random((6, 16, 16, 3)), jnp.float32)
    whole, half = (model.build("convnet4", 4, norm, "meta", 3, (16, 16, 3), half=half) for half in (False, True))
    params, stats = half.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, params, whole.init(jax.random.key(0))[0])

    def loss(params, net):
        logits, after = net.apply(params, net.episode_stats(stats), x, Pass.SUPPORT, True)
        return jnp.sum(jnp.tanh(logits)), (logits, after)

    grads, (logits, after) = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(params, half)
    exact, (exact_logits, _) = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(params, whole)
    assert {leaf.dtype for leaf in jax.tree.leaves((grads, logits, after))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(logits, exact_logits, atol=0.1)
    assert not np.allclose(logits, exact_logits, atol=1e-6)
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])  # noqa: E731
    cosine = flat(grads) @ flat(exact) / np.linalg.norm(flat(grads)) / np.linalg.norm(flat(exact))
    assert cosine > 0.95


def test_a_small_loss_keeps_its_digits(x64):
    logits = jnp.array([[90.0, 70.0, 60.0]])
    exact = np.log1p(np.exp(-20.0) + np.exp(-30.0))
    np.testing.assert_allclose(cross_entropy(logits, jnp.array([0])), exact, rtol=1e-7)
