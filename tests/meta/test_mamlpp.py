"""MAML++: each part by itself, and what is peculiar to an inner step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maml_jax.meta.inner import InnerLoop, adapt, all_but, sgd
from maml_jax.meta.learner import Pass, Phase
from maml_jax.meta.outer import Annealing, Maml, multi_step_weights, task_loss
from maml_jax.meta.step import init_state, meta_step
from tests.helpers import assert_same, episodes, one_task, small

pytestmark = pytest.mark.usefixtures("x64")

INNER = InnerLoop(sgd({"encoder": 0.3, "head": 0.2}), all_but("norm"), checkpoint="none")


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, [1 / 3, 1 / 3, 1 / 3]), (0.5, [1 / 6, 1 / 6, 2 / 3]), (1.0, [0, 0, 1])]
)
def test_weights_move_to_the_last_step(progress, expected):
    np.testing.assert_allclose(multi_step_weights(progress, 3), expected)


def test_the_multi_step_loss_is_the_weighted_sum_over_steps():
    learner, task = small(), one_task()
    params, stats = learner.init(jax.random.key(0), task.support_x)
    weights = jnp.asarray([0.5, 0.0, 0.2])

    @functools.partial(jax.jit, static_argnums=0)
    def query_loss(steps, weights=None):
        return task_loss(learner, INNER, params, stats, task, steps, weights)

    loss, result = query_loss(3, weights)
    after = [query_loss(steps)[0] for steps in (1, 3)]
    np.testing.assert_allclose(loss, 0.5 * after[0] + 0.2 * after[1], rtol=1e-12)
    np.testing.assert_allclose(result.loss, after[1], rtol=1e-12)


def test_annealing_follows_the_meta_step_in_one_compiled_program():
    """Step 0: equal weights, first order. From step 2 on: the last loss alone, second order."""
    learner, tasks = small(blocks=1), episodes(tasks=1)
    task = jax.tree.map(lambda x: jnp.asarray(x[0]), tasks)
    method, optimizer = Maml(learner, INNER, 2, Annealing(multi_step=2, first_order=1)), optax.sgd(1.0)
    start = init_state(method, optimizer, jax.random.key(0), task)
    step = jax.jit(lambda s: meta_step(method, optimizer, s, tasks)[0])

    def moved(k):
        after = step(start.replace(step=jnp.int32(k)))
        return jax.tree.map(lambda a, b: a - b, start.params, after.params)

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(weights, first_order):
        inner = dataclasses.replace(INNER, first_order=first_order)
        return jax.grad(lambda p: task_loss(learner, inner, p, start.stats, task, 2, weights)[0])(start.params)

    expected = {0: gradient(jnp.asarray([0.5, 0.5]), True), 1: gradient(jnp.asarray([0.25, 0.75]), False)}
    expected |= {2: gradient(None, False), 7: gradient(None, False)}
    for k, grads in expected.items():
        assert_same(moved(k), grads, 1e-11)


def with_rows(params, rows_of):
    """The parameters with those of normalisation layers changed."""
    blocks = {
        name: {**block, "norm": {part: rows_of(leaf) for part, leaf in block["norm"].items()}}
        for name, block in params["encoder"].items()
    }
    return {**params, "encoder": blocks}


def test_each_step_normalises_with_its_own_row():
    task = one_task()
    learner, plain = small("per_step_batch", steps=3), small("batch")
    params, stats = learner.init(jax.random.key(0), task.support_x)
    norm = params["encoder"]["block1"]["norm"]
    assert norm["scale"].shape == (3, 2)
    norm["scale"] = jnp.asarray([[1.0, 2.0], [3.0, 4.0], [5.0, -1.0]])
    for step, row in ((0, 0), (2, 2), (5, 2), (-1, 0)):
        picked = with_rows(params, lambda leaf, row=row: leaf[row])
        expected, _ = plain.apply(picked, {}, task.query_x, Phase(Pass.QUERY, True))
        assert_same(learner.apply(params, stats, task.query_x, Phase(Pass.QUERY, True, step))[0], expected, 1e-11)


def test_statistics_are_gathered_step_by_step_in_training_and_used_at_test():
    task = one_task()
    learner = small("per_step", steps=3)
    params, stats = learner.init(jax.random.key(0), task.support_x)
    run = functools.partial(adapt, learner, INNER, params, support_x=task.support_x, support_y=task.support_y, steps=2)
    _, trained, _ = run(stats, train=True)
    _, tested, _ = run(trained, train=False)
    mean = trained["lasting_stats"]["encoder"]["block2"]["norm"]["mean"]
    assert mean.shape == (3, 2)
    assert jnp.any(mean[0])
    assert jnp.any(mean[1] != mean[0])
    assert not jnp.any(mean[2])  # of a step not taken
    assert_same(tested, trained, 0)
    whole, _ = learner.apply(params, trained, task.query_x, Phase(step=1))
    single, _ = learner.apply(params, trained, task.query_x[:1], Phase(step=1))
    assert_same(whole[:1], single, 1e-11)
    assert_same(learner.lasting(trained), trained, 0)


def test_steps_beyond_the_trained_ones_use_the_last_row():
    task = one_task()
    learner, plain = small("per_step_batch", steps=1), small("batch")
    params, stats = plain.init(jax.random.key(0), task.support_x)
    support = task.support_x, task.support_y, 3, True
    expected, _, _ = adapt(plain, INNER, params, stats, *support)
    actual, _, _ = adapt(learner, INNER, with_rows(params, lambda leaf: leaf[None]), stats, *support)
    assert_same(actual["head"], expected["head"], 1e-11)
