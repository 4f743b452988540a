"""The classifier: shapes, names, and what an episode starts with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax import tree
from maml_jax.nn import model
from maml_jax.nn.layers import max_pool
from maml_jax.nn.norm import Pass


@pytest.mark.parametrize(("width", "count"), [(32, 32_901), (64, 121_093)])
def test_parameter_count_of_the_original(width, count):
    params, stats = jax.eval_shape(
        model.build("convnet4", width, "batch", "meta", 5, (84, 84, 3)).init, jax.random.key(0)
    )
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


def test_zero_head_is_no_meta_parameter_and_takes_any_way(small):
    params, _ = small(head="zero").init(jax.random.key(0))
    assert not any(name.startswith("head") for name in tree.names(params))
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
