"""Reptile: what it learns from is where adaptation leads, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maml_jax import tree
from maml_jax.config import check, preset
from maml_jax.errors import ConfigError
from maml_jax.meta.inner import InnerLoop, adapt, all_but, sgd
from maml_jax.meta.rates import LearnedRates
from maml_jax.meta.reptile import Reptile
from maml_jax.meta.step import init_state, meta_gradient, meta_step
from tests.helpers import assert_same, episodes, one_task, small

INNER = InnerLoop(sgd(0.3), all_but("norm"))


@pytest.mark.parametrize("starts", ["meta", "zero"])
def test_the_gradient_is_the_mean_way_that_adaptation_went(starts, x64):
    """What does not adapt has none, and a head that starts at zero is no meta-parameter."""
    method, tasks = Reptile(small(starts=starts, blocks=1), INNER, steps=2), episodes(tasks=2)
    params, stats = method.init(jax.random.key(0), one_task())
    gradient, results = meta_gradient(method, params, stats, tasks)
    run = jax.jit(lambda x, y: adapt(method.learner, INNER, params, stats, x, y, 2, train=True)[0])
    ends = [tree.by_name(run(tasks.support_x[i], tasks.support_y[i])) for i in range(2)]
    expected = tree.map_named(lambda name, start: start - (ends[0][name] + ends[1][name]) / 2, params)
    assert_same(gradient, expected)
    assert not any(jnp.any(leaf) for name, leaf in tree.by_name(gradient).items() if "norm" in name)
    assert results.loss.shape == results.accuracy.shape == (2,)


def test_it_learns_without_a_derivative_of_adaptation(x64):
    """The loss after adaptation falls; the query set, which it never learns from, may hold anything."""
    method, tasks, optimizer = Reptile(small(blocks=1), INNER, steps=3), episodes(tasks=2), optax.sgd(1.0)
    tasks = tasks._replace(query_x=tasks.support_x, query_y=tasks.support_y)
    state = init_state(method, optimizer, jax.random.key(0), one_task())
    step = jax.jit(lambda state, tasks: meta_step(method, optimizer, state, tasks))
    first, same = step(state, tasks), step(state, tasks._replace(query_x=1 + 0 * tasks.query_x))
    assert_same(same[0].params, first[0].params, 0)
    losses = []
    for _ in range(20):
        state, results = step(state, tasks)
        losses.append(float(results.loss.mean()))
    assert losses[-1] < 0.7 * losses[0]
    assert np.isfinite(losses).all()


def test_what_says_nothing_to_it_is_refused():
    config = preset("omniglot_5w1s_reptile")
    check(config)
    config.outer.multi_step = 10
    with pytest.raises(ConfigError, match=r"outer\.multi_step=10 says nothing with outer\.method='reptile'"):
        check(config)


def test_learned_rates_are_refused():
    """It takes no derivative by which they could be learned."""
    rates = LearnedRates("tensor", 0.1)
    with pytest.raises(ValueError, match="no derivative by which rates could be learned"):
        Reptile(small(), InnerLoop(sgd(0.3), rates=rates), steps=2)
