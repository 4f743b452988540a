"""The meta-gradient: exact, and the same by every route."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maml_jax import tree
from maml_jax.meta import outer
from maml_jax.meta.inner import InnerLoop, all_but, sgd
from maml_jax.meta.outer import meta_gradient, meta_loss
from maml_jax.meta.step import init_state, meta_step
from maml_jax.nn.loss import cross_entropy
from tests.meta.test_inner import written_out

pytestmark = pytest.mark.usefixtures("x64")


def assert_same(actual, expected, tolerance=1e-12):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance), actual, expected)


def inner_loop(**changes):
    return InnerLoop(sgd(0.3, 0.2, 0.5, 0.01), all_but("norm"))._replace(**changes)


def gradient(model, inner, params, stats, episodes, tasks_at_once=1, steps=3):
    return jax.jit(lambda p: meta_gradient(model, inner, p, stats, episodes, steps, tasks_at_once))(params)


@pytest.mark.parametrize("norm", ["batch", "episodic"])
def test_against_finite_differences(small, episodes, norm):
    model, tasks = small(norm), episodes()
    params, stats = model.init(jax.random.key(1))
    analytic, _ = gradient(model, inner_loop(), params, stats, tasks)
    loss = jax.jit(lambda p: meta_loss(model, inner_loop(), p, stats, tasks, 3)[0])
    rng = np.random.default_rng(0)
    for _ in range(4):
        direction = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape)), params)
        ahead, behind = (loss(jax.tree.map(lambda p, d, h=h: p + h * d, params, direction)) for h in (1e-6, -1e-6))
        along = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (analytic, direction)), strict=True))
        if norm == "batch":
            np.testing.assert_allclose(along, (ahead - behind) / 2e-6, rtol=1e-5)
        else:  # the loss also moves through the running statistics, which the gradient leaves out by definition
            assert abs(along - (ahead - behind) / 2e-6) > 1e-4


@pytest.mark.parametrize("first_order", [False, True])
def test_checkpointing_and_grouping_of_tasks_change_nothing(small, episodes, first_order):
    """One task after the other in a scan, in groups, or all under one `vmap`; with and without checkpoints."""
    model, tasks = small("block1=episodic, batch"), episodes(tasks=4)
    params, stats = model.init(jax.random.key(1))
    expected = gradient(model, inner_loop(first_order=first_order, checkpoint="none"), params, stats, tasks, 1)
    for checkpoint, at_once in (("step", 1), ("step", 2), ("step", 4), ("none", 4)):
        inner = inner_loop(first_order=first_order, checkpoint=checkpoint)
        assert_same(gradient(model, inner, params, stats, tasks, at_once), expected)


@pytest.mark.parametrize(
    ("norm", "how"),
    [
        ("batch", {"checkpoint": "nested"}),
        ("block1=episodic, global", {"checkpoint": "nested", "forward_over_reverse": True}),
        ("batch", {"forward_over_reverse": True, "first_order": True}),
    ],
)
def test_every_way_to_the_meta_gradient_gives_the_same(small, episodes, norm, how):
    """Five steps are two chunks of two and one left over."""
    model, tasks = small(norm), episodes()
    params, stats = model.init(jax.random.key(1))
    plain = inner_loop(checkpoint="none", first_order=how.get("first_order", False))
    expected = gradient(model, plain, params, stats, tasks, steps=5)
    assert_same(gradient(model, inner_loop(**how), params, stats, tasks, steps=5), expected)


@pytest.mark.parametrize("checkpoint", ["none", "step", "nested"])
def test_no_inner_steps(small, episodes, checkpoint):
    model, tasks = small(), episodes()
    params, stats = model.init(jax.random.key(1))
    grads, results = gradient(model, inner_loop(checkpoint=checkpoint), params, stats, tasks, steps=0)
    assert results.support_losses.shape == (2, 0)
    assert jnp.any(grads["encoder"]["block1"]["conv"]["kernel"])


def test_without_jit(small, episodes):
    model, tasks = small("block1=episodic, batch"), episodes()
    params, stats = model.init(jax.random.key(1))
    with jax.disable_jit():
        plain = meta_gradient(model, inner_loop(), params, stats, tasks, 2, 1)
    assert_same(plain, gradient(model, inner_loop(), params, stats, tasks, steps=2))


def test_without_scan(small, episodes):
    """The steps and the tasks written out one after the other, and differentiated as one expression."""
    model, tasks = small("block1=episodic, batch"), episodes()
    params, stats = model.init(jax.random.key(1))

    def written_out_loss(params):
        losses = []
        for i in range(2):
            task = jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), tasks)
            start = model.episode_stats(stats)
            adapted, after = written_out(
                model, params, start, task.support_x, task.support_y, 3, 0.3, 0.2, momentum=0.5, decay=0.01
            )
            logits, _ = model.apply(adapted, after, task.query_x, outer.Pass.QUERY, True)
            losses.append(cross_entropy(logits, task.query_y))
        return sum(losses) / 2

    scanned, _ = gradient(model, inner_loop(is_adapted=all_but("")), params, stats, tasks)
    assert_same(scanned, jax.jit(jax.grad(written_out_loss))(params))


def test_fixed_parameters_are_meta_learned(small, episodes):
    model, tasks = small(), episodes()
    params, stats = model.init(jax.random.key(1))
    grads, _ = gradient(model, inner_loop(), params, stats, tasks)
    assert all(jnp.any(g) for name, g in zip(tree.names(grads), jax.tree.leaves(grads), strict=True) if "norm" in name)


def test_first_order_differs_but_keeps_the_paths_of_decay_and_momentum(small, episodes):
    """With one step and weight decay λ, θ' = θ - α(g + λθ); g constant leaves dθ'/dθ = 1 - αλ."""
    model, tasks = small(), episodes(tasks=1)
    params, stats = model.init(jax.random.key(1))
    task = jax.tree.map(lambda x: jnp.asarray(x[0]), tasks)
    rate, decay = 0.3, 0.5
    inner = InnerLoop(sgd(rate, rate, 0.0, decay), all_but(""), first_order=True)
    first, _ = gradient(model, inner, params, stats, tasks, steps=1)
    adapted, after, _ = outer.adapt(model, inner, params, stats, task.support_x, task.support_y, 1, True)

    def query_loss(p):
        return cross_entropy(model.apply(p, after, task.query_x, outer.Pass.QUERY, True)[0], task.query_y)

    at_adapted = jax.grad(query_loss)(adapted)
    assert_same(first, jax.tree.map(lambda g: g * (1 - rate * decay), at_adapted), 1e-10)
    second, _ = gradient(model, inner._replace(first_order=False), params, stats, tasks, steps=1)
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.abs(a - b).max(), first, second))) > 1e-4


def test_meta_step_averages_global_statistics_over_tasks(small, episodes):
    model, tasks = small("block1=global, episodic"), episodes(tasks=3)
    optimizer = optax.sgd(0.1)
    state = init_state(model, optimizer, jax.random.key(1))
    state, results = meta_step(model, inner_loop(), optimizer, state, tasks, 2, 1)
    mean = results.stats["encoder"]["block1"]["norm"]["mean"]
    assert mean.shape[0] == 3
    assert jnp.any(mean[0] != mean[1])
    assert_same(state.stats["encoder"]["block1"]["norm"]["mean"], mean.mean(0))
    assert state.stats["encoder"]["block2"]["norm"]["mean"] is None
    assert int(state.step) == 1


def test_meta_steps_learn(small, episodes):
    model, tasks = small(), episodes()
    optimizer = optax.adam(0.02)
    state = init_state(model, optimizer, jax.random.key(1))
    step = jax.jit(lambda s: meta_step(model, inner_loop(), optimizer, s, tasks, 2, 1))
    losses = []
    for _ in range(30):
        state, results = step(state)
        losses.append(float(results.loss.mean()))
    assert losses[-1] < 0.5 * losses[0]
    assert {f.name for f in dataclasses.fields(state)} == {"step", "params", "stats", "optimizer"}
