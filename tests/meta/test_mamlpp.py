"""MAML++: each part by itself, and what is peculiar to an inner step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maml_jax.meta.inner import InnerLoop, adapt, all_but, sgd
from maml_jax.meta.outer import meta_gradient, multi_step_weights, task_loss
from maml_jax.meta.step import Annealing, init_state, meta_step
from maml_jax.nn import model as models
from maml_jax.nn.norm import Pass

pytestmark = pytest.mark.usefixtures("x64")

INNER = InnerLoop(sgd(0.3, 0.2, 0.0, 0.0), all_but("norm"), checkpoint="none")


def assert_same(actual, expected, tolerance=1e-11):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance), actual, expected)


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, [1 / 3, 1 / 3, 1 / 3]), (0.5, [1 / 6, 1 / 6, 2 / 3]), (1.0, [0, 0, 1])]
)
def test_weights_move_to_the_last_step(progress, expected):
    np.testing.assert_allclose(multi_step_weights(progress, 3), expected)


def test_the_multi_step_loss_is_the_weighted_sum_over_steps(small, episodes):
    model, task = small(), jax.tree.map(lambda x: jnp.asarray(x[0]), episodes())
    params, stats = model.init(jax.random.key(0))
    weights = jnp.asarray([0.5, 0.0, 0.2])

    @functools.partial(jax.jit, static_argnums=0)
    def query_loss(steps, weights=None):
        return task_loss(model, INNER, params, stats, task, steps, True, weights)

    loss, result = query_loss(3, weights)
    after = [query_loss(steps)[0] for steps in (1, 3)]
    np.testing.assert_allclose(loss, 0.5 * after[0] + 0.2 * after[1], rtol=1e-12)
    np.testing.assert_allclose(result.loss, after[1], rtol=1e-12)


def test_annealing_follows_the_meta_step_in_one_compiled_program(small, episodes):
    """Step 0: equal weights, first order. From step 2 on: the last loss alone, second order."""
    model, tasks = small(), episodes(tasks=1)
    optimizer = optax.sgd(1.0)
    start = init_state(model, optimizer, jax.random.key(0))
    step = jax.jit(
        lambda s: meta_step(model, INNER, optimizer, s, tasks, 2, 1, annealing=Annealing(multi_step=2, first_order=1))[
            0
        ]
    )

    def moved(k):
        after = step(start.replace(step=jnp.int32(k)))
        return jax.tree.map(lambda a, b: a - b, start.params, after.params)

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(weights, first_order):
        inner = INNER._replace(first_order=first_order)
        return meta_gradient(model, inner, start.params, start.stats, tasks, 2, 1, weights)[0]

    expected = {0: gradient(jnp.asarray([0.5, 0.5]), True), 1: gradient(jnp.asarray([0.25, 0.75]), False)}
    expected |= {2: gradient(None, False), 7: gradient(None, False)}
    for k, grads in expected.items():
        assert_same(moved(k), grads)


def per_step(mode, steps=3):
    return models.build("convnet4", 2, mode, "meta", 2, (16, 16, 1), steps=steps)


@pytest.fixture
def task():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.random((4, 16, 16, 1))), jnp.asarray([0, 0, 1, 1]), jnp.asarray(rng.random((6, 16, 16, 1)))


def test_each_step_normalises_with_its_own_row(task):
    _, _, query = task
    model, plain = per_step("per_step_batch"), models.build("convnet4", 2, "batch", "meta", 2, (16, 16, 1))
    params, stats = model.init(jax.random.key(0))
    norm = params["encoder"]["block1"]["norm"]
    assert norm["scale"].shape == (3, 2)
    norm["scale"] = jnp.asarray([[1.0, 2.0], [3.0, 4.0], [5.0, -1.0]])
    for step, row in ((0, 0), (2, 2), (5, 2), (-1, 0)):
        picked = jax.tree.map(lambda leaf: leaf, params)
        for block in picked["encoder"].values():
            block["norm"] = {name: leaf[row] for name, leaf in block["norm"].items()}
        expected, _ = plain.apply(picked, {}, query, Pass.QUERY, True)
        assert_same(model.apply(params, stats, query, Pass.QUERY, True, step)[0], expected)


def test_statistics_are_gathered_step_by_step_in_training_and_used_at_test(task):
    x, y, query = task
    model = per_step("per_step")
    params, stats = model.init(jax.random.key(0))
    with jax.disable_jit():
        _, trained, _ = adapt(model, INNER, params, stats, x, y, 2, True)
        _, tested, _ = adapt(model, INNER, params, trained, x, y, 2, False)
    mean = trained["encoder"]["block2"]["norm"]["mean"]
    assert mean.shape == (3, 2)
    assert jnp.any(mean[0])
    assert jnp.any(mean[1] != mean[0])
    assert not jnp.any(mean[2])  # of a step not taken
    assert_same(tested, trained, 0)
    whole, _ = model.apply(params, trained, query, Pass.QUERY, False, 1)
    single, _ = model.apply(params, trained, query[:1], Pass.QUERY, False, 1)
    assert_same(whole[:1], single)
    assert_same(model.lasting_stats(trained), trained, 0)


def test_steps_beyond_the_trained_ones_use_the_last_row(task):
    x, y, _ = task
    model = per_step("per_step_batch", steps=1)
    plain = models.build("convnet4", 2, "batch", "meta", 2, (16, 16, 1))
    params, stats = plain.init(jax.random.key(0))
    rows = jax.tree.map(lambda leaf: leaf, params)
    for block in rows["encoder"].values():
        block["norm"] = {name: leaf[None] for name, leaf in block["norm"].items()}
    with jax.disable_jit():
        expected, _, _ = adapt(plain, INNER, params, stats, x, y, 3, True)
        actual, _, _ = adapt(model, INNER, rows, stats, x, y, 3, True)
    assert_same(actual["head"], expected["head"])
