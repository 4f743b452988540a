"""A Flax module as a learner: what an episode starts with, and what outlives it."""

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax import tree
from tests.helpers import one_task, small


def started(learner):
    """Parameters, lasting statistics, and a task."""
    task = one_task()
    return *learner.init(jax.random.key(0), task.support_x), task


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
    learner = small(norm="block1=global, block2=episodic")
    params, stats, task = started(learner)
    names = ["lasting_stats/encoder/block1/norm/mean", "lasting_stats/encoder/block1/norm/var"]
    assert tree.names(stats) == names
    moved = jax.tree.map(lambda s: s + 5, stats)
    _, start = learner.start(params, moved, task.support_x, task.support_y)
    np.testing.assert_array_equal(start["lasting_stats"]["encoder"]["block1"]["norm"]["mean"], 5.0)
    np.testing.assert_array_equal(start["batch_stats"]["encoder"]["block2"]["norm"]["mean"], 0.0)
    np.testing.assert_array_equal(start["batch_stats"]["encoder"]["block2"]["norm"]["var"], 1.0)
    assert tree.names(learner.lasting(start)) == names
