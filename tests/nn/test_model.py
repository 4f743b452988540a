"""A Flax module as a learner: what an episode starts with, and what outlives it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax import tree
from maml_jax.meta.learner import Pass, Phase
from maml_jax.nn.model import learner
from tests.helpers import one_task, small


def started(of):
    """Parameters, lasting statistics, and a task."""
    task = one_task()
    return *of.init(jax.random.key(0), task.support_x), task


def test_zero_head_is_no_meta_parameter_and_takes_any_way():
    params, stats, task = started(small(starts="zero"))
    assert not any(name.startswith("head") for name in tree.names(params))
    learned = started(small(starts="zero", temperature=2.0, learn_temperature=True))[0]
    assert [n for n in tree.names(learned) if "head" in n] == ["head/temperature"]
    for way in (2, 7):
        head = small(starts="zero", way=way).start(params, stats, task.support_x, task.support_y)[0]["head"]
        assert head["kernel"].shape == (2, way)
        assert not jnp.any(head["kernel"])


def test_statistics_that_outlive_an_episode():
    of = small(norm="block1=global, block2=episodic")
    params, stats, task = started(of)
    names = ["lasting_stats/encoder/block1/norm/mean", "lasting_stats/encoder/block1/norm/var"]
    assert tree.names(stats) == names
    moved = jax.tree.map(lambda s: s + 5, stats)
    _, start = of.start(params, moved, task.support_x, task.support_y)
    np.testing.assert_array_equal(start["lasting_stats"]["encoder"]["block1"]["norm"]["mean"], 5.0)
    np.testing.assert_array_equal(start["batch_stats"]["encoder"]["block2"]["norm"]["mean"], 0.0)
    np.testing.assert_array_equal(start["batch_stats"]["encoder"]["block2"]["norm"]["var"], 1.0)
    assert tree.names(of.lasting(start)) == names


@pytest.mark.parametrize("way", [2, 5])
def test_a_shared_head_is_one_vector_for_any_way(way):
    params, stats, task = started(small(starts="shared"))
    assert params["head"]["kernel"].shape == (2, 1)
    head = small(starts="shared", way=way).start(params, stats, task.support_x, task.support_y)[0]["head"]
    np.testing.assert_array_equal(head["kernel"], jnp.tile(params["head"]["kernel"], way))
    assert head["bias"].shape == (way,)


def test_of_a_head_learned_class_by_class_it_takes_the_mean():
    params, stats, task = started(small(way=3))
    params["head"]["bias"] = jnp.arange(3.0)
    head = small(starts="shared", way=4).start(params, stats, task.support_x, task.support_y)[0]["head"]
    np.testing.assert_allclose(head["kernel"], jnp.tile(params["head"]["kernel"].mean(1, keepdims=True), 4))
    np.testing.assert_array_equal(head["bias"], 1.0)


def test_prototypes_are_the_nearest_class_mean_with_uneven_shots_and_absent_classes():
    of = small(starts="prototypes", way=3, temperature=0.5, learn_temperature=True, width=4)
    params, stats, task = started(of)
    assert [n for n in tree.names(params) if "head" in n] == ["head/temperature"]
    labels = jnp.array([1, 0, 1, 1], jnp.int32)
    start, stats = of.start(params, stats, task.support_x, labels)
    logits, _ = of.apply(start, stats, task.query_x, Phase())
    support, _ = of.features(start, stats, task.support_x, Phase(Pass.SUPPORT))
    query, _ = of.features(start, stats, task.query_x, Phase())
    means = np.stack([support[1], support[np.array([0, 2, 3])].mean(0), jnp.zeros_like(support[0])])
    distances = np.square(query[:, None] - means).sum(-1)
    expected = 0.5 * (np.square(query).sum(-1)[:, None] - distances)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_gradients_go_through_the_prototypes():
    """Without inner steps all that the query loss knows of the support set is where they are."""
    of = small(starts="prototypes")
    params, stats, task = started(of)

    def loss(support_x):
        start, fresh = of.start(params, stats, support_x, task.support_y)
        return of.loss(of.apply(start, fresh, task.query_x, Phase())[0], task.query_y)

    assert jnp.any(jax.grad(loss)(task.support_x))


def test_prototypes_of_a_module_without_features_are_refused():
    of = learner(nn.Dense(2), starts="prototypes")
    params, stats, task = started(of)
    with pytest.raises(ValueError, match="method `features` and a linear head"):
        of.start(params, stats, task.support_x, task.support_y)
