"""The meta-gradient: exact, and the same by every route."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maml_jax import tree
from maml_jax.episode import Episode
from maml_jax.meta.inner import InnerLoop, adapt, all_but, sgd
from maml_jax.meta.learner import Pass, Phase
from maml_jax.meta.method import evaluate_task, predict
from maml_jax.meta.outer import Maml, task_loss
from maml_jax.meta.rates import LearnedRates
from maml_jax.meta.step import init_state, meta_gradient, meta_step
from tests.helpers import assert_same, differs, episodes, one_task, small
from tests.meta.test_inner import written_out

pytestmark = pytest.mark.usefixtures("x64")

RATES = {"encoder": 0.3, "head": 0.2}


def maml(learner, steps=3, **changes):
    inner = InnerLoop(sgd(RATES, 0.5, 0.01), all_but("norm"))
    return Maml(learner, dataclasses.replace(inner, **changes), steps)


def start(learner, tasks):
    return learner.init(jax.random.key(1), tasks.support_x[0])


def gradient(method, params, stats, tasks, at_once=1):
    return jax.jit(lambda p: meta_gradient(method, p, stats, tasks, tasks_at_once=at_once))(params)


def meta_loss(method, params, stats, tasks):
    """The mean query loss over tasks, which the meta-gradient is the derivative of."""

    def of_task(episode):
        return task_loss(method.learner, method.inner, params, stats, episode, method.steps)[0]

    return jnp.mean(jax.vmap(of_task)(tasks))


def along(method, params, stats, tasks, direction):
    """The derivative of the meta-loss in a direction, by finite differences."""
    loss = jax.jit(lambda h: meta_loss(method, jax.tree.map(lambda p, d: p + h * d, params, direction), stats, tasks))
    return (loss(1e-6) - loss(-1e-6)) / 2e-6


def dot(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def random_like(params, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape)), params)


@pytest.mark.parametrize("norm", ["batch", "episodic"])
def test_against_finite_differences(norm):
    learner, tasks = small(norm), episodes()
    params, stats = start(learner, tasks)
    analytic, _ = gradient(maml(learner), params, stats, tasks)
    loss = jax.jit(lambda p: meta_loss(maml(learner), p, stats, tasks))
    for seed in range(4):
        direction = random_like(params, seed)
        ahead, behind = (loss(jax.tree.map(lambda p, d, h=h: p + h * d, params, direction)) for h in (1e-6, -1e-6))
        if norm == "batch":
            np.testing.assert_allclose(dot(analytic, direction), (ahead - behind) / 2e-6, rtol=1e-5)
        else:  # the loss also moves through the running statistics, which the gradient leaves out by definition
            assert abs(dot(analytic, direction) - (ahead - behind) / 2e-6) > 1e-4


@pytest.mark.parametrize("first_order", [False, True])
def test_checkpointing_and_grouping_of_tasks_change_nothing(first_order):
    """One task after the other in a scan, in groups, or all under one `vmap`; with and without checkpoints."""
    learner, tasks = small("block1=episodic, batch"), episodes(tasks=4)
    params, stats = start(learner, tasks)
    expected = gradient(maml(learner, first_order=first_order, checkpoint="none"), params, stats, tasks)
    for checkpoint, at_once in (("step", 1), ("step", 2), ("none", 4)):
        method = maml(learner, first_order=first_order, checkpoint=checkpoint)
        assert_same(gradient(method, params, stats, tasks, at_once), expected)


@pytest.mark.parametrize(
    ("norm", "how"),
    [
        ("batch", {"checkpoint": "nested"}),
        ("block1=episodic, global", {"checkpoint": "nested", "forward_over_reverse": True}),
        ("batch", {"forward_over_reverse": True, "first_order": True}),
    ],
)
def test_every_way_to_the_meta_gradient_gives_the_same(norm, how):
    """Five steps are two chunks of two and one left over."""
    learner, tasks = small(norm), episodes()
    params, stats = start(learner, tasks)
    plain = maml(learner, 5, checkpoint="none", first_order=how.get("first_order", False))
    assert_same(gradient(maml(learner, 5, **how), params, stats, tasks), gradient(plain, params, stats, tasks))


@pytest.mark.parametrize("checkpoint", ["none", "step", "nested"])
def test_no_inner_steps(checkpoint):
    learner, tasks = small(blocks=1), episodes()
    params, stats = start(learner, tasks)
    grads, results = gradient(maml(learner, 0, checkpoint=checkpoint), params, stats, tasks)
    assert results.support_losses.shape == (2, 0)
    assert jnp.any(grads["encoder"]["block1"]["conv"]["kernel"])


def test_without_jit():
    learner, tasks = small("episodic", blocks=1), episodes()
    params, stats = start(learner, tasks)
    with jax.disable_jit():
        plain = meta_gradient(maml(learner, 1), params, stats, tasks)
    assert_same(plain, gradient(maml(learner, 1), params, stats, tasks))


def test_without_scan():
    """The steps and the tasks written out one after the other, and differentiated as one expression."""
    learner, tasks = small("block1=episodic, batch"), episodes()
    params, stats = start(learner, tasks)

    def written_out_loss(params):
        losses = []
        for i in range(2):
            task = jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), tasks)
            adapted, after, _ = written_out(
                learner, params, stats, task.support_x, task.support_y, 2, RATES, momentum=0.5, decay=0.01
            )
            logits, _ = learner.apply(adapted, after, task.query_x, Phase(Pass.QUERY, True))
            losses.append(learner.loss(logits, task.query_y))
        return sum(losses) / 2

    scanned, _ = gradient(maml(learner, 2, is_adapted=all_but("")), params, stats, tasks)
    assert_same(scanned, jax.jit(jax.grad(written_out_loss))(params))


def test_fixed_parameters_are_meta_learned():
    learner, tasks = small(blocks=1), episodes()
    params, stats = start(learner, tasks)
    grads, _ = gradient(maml(learner), params, stats, tasks)
    assert all(jnp.any(g) for name, g in tree.by_name(grads).items() if "norm" in name)


def test_first_order_differs_but_keeps_the_paths_of_decay_and_momentum():
    """With one step and weight decay λ, θ' = θ - α(g + λθ); g constant leaves dθ'/dθ = 1 - αλ."""
    learner, tasks, task = small(), episodes(tasks=1), one_task()
    params, stats = start(learner, tasks)
    rate, decay = 0.3, 0.5
    method = Maml(learner, InnerLoop(sgd(rate, 0.0, decay), first_order=True), 1)
    first, _ = gradient(method, params, stats, tasks)
    adapted, after, _ = adapt(learner, method.inner, params, stats, task.support_x, task.support_y, 1, True)

    def query_loss(p):
        return learner.loss(learner.apply(p, after, task.query_x, Phase(Pass.QUERY, True))[0], task.query_y)

    at_adapted = jax.jit(jax.grad(query_loss))(adapted)
    assert_same(first, jax.tree.map(lambda g: g * (1 - rate * decay), at_adapted), 1e-10)
    second, _ = gradient(Maml(learner, InnerLoop(sgd(rate, 0.0, decay)), 1), params, stats, tasks)
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.abs(a - b).max(), first, second))) > 1e-4


def test_meta_step_averages_global_statistics_over_tasks():
    learner, tasks = small("block1=global, episodic"), episodes(tasks=3)
    optimizer, method = optax.sgd(0.1), maml(learner, 1)
    state = init_state(method, optimizer, jax.random.key(1), one_task())
    state, results = jax.jit(lambda s: meta_step(method, optimizer, s, tasks))(state)
    mean = results.stats["lasting_stats"]["encoder"]["block1"]["norm"]["mean"]
    assert mean.shape[0] == 3
    assert jnp.any(mean[0] != mean[1])
    assert_same(
        state.stats["lasting_stats"]["encoder"],
        {
            "block1": {
                "norm": {
                    name: leaf.mean(0)
                    for name, leaf in results.stats["lasting_stats"]["encoder"]["block1"]["norm"].items()
                }
            }
        },
    )
    assert results.stats["batch_stats"]["encoder"].keys() == {"block2"}
    assert state.stats.keys() == {"lasting_stats"}
    assert int(state.step) == 1


def test_meta_steps_learn():
    learner, tasks = small(blocks=1), episodes()
    optimizer, method = optax.adam(0.02), maml(learner, 2)
    state = init_state(method, optimizer, jax.random.key(1), one_task())
    step = jax.jit(lambda s: meta_step(method, optimizer, s, tasks))
    losses = []
    for _ in range(50):
        state, results = step(state)
        losses.append(float(results.loss.mean()))
    assert losses[-1] < 0.5 * losses[0]
    assert {f.name for f in dataclasses.fields(state)} == {"step", "params", "stats", "optimizer"}


def test_a_fresh_state_holds_no_values_of_the_episode():
    """Of which shapes suffice, as `jax.eval_shape` gives them."""
    method, optimizer, task = maml(small(blocks=1)), optax.sgd(0.1), one_task()
    shapes = jax.eval_shape(lambda: task)
    states = [init_state(method, optimizer, jax.random.key(3), example) for example in (task, shapes)]
    assert_same(*states, 0)


def test_uneven_support_sets():
    """Any number of examples of each class, down to one; the labels say which they are of."""
    learner, task = small(blocks=1), one_task(shot=3)
    method = maml(learner, 2)
    params, stats = learner.init(jax.random.key(1), task.support_x)
    x, y = task.support_x[np.array([0, 1, 2, 5])], jnp.asarray([0, 0, 0, 1])
    order = np.array([3, 1, 0, 2])
    answers = [predict(method, params, stats, x[i], y[i], task.query_x) for i in (np.arange(4), order)]
    assert answers[0].shape == (6, 2)
    assert_same(answers[0], answers[1], 1e-10)
    uneven = Episode(x, y, task.query_x, task.query_y)
    grads, result = jax.jit(lambda p: method.task_gradient(p, stats, uneven, 0))(params)
    assert all(jnp.any(g) for name, g in tree.by_name(grads).items() if "bias" not in name)
    assert result.support_losses.shape == (2,)


@pytest.mark.parametrize("norm", ["batch", "tasknorm"])
def test_predict_gives_the_logits_of_an_evaluation(norm):
    learner, task = small(norm, blocks=1), one_task()
    method = maml(learner, 2)
    params, stats = learner.init(jax.random.key(1), task.support_x)
    logits = predict(method, params, stats, task.support_x, task.support_y, task.query_x)
    result = evaluate_task(method, params, stats, task)
    assert_same(logits, result.logits, 0)
    assert result.accuracy == (logits.argmax(-1) == task.query_y).mean()
    more = predict(method, params, stats, task.support_x, task.support_y, task.query_x, steps=3)
    assert differs(more, logits)


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Of a model, and nothing else of it."""

    initial: object

    def init(self, key, x):
        return self.initial, {}


@pytest.mark.parametrize("initial", [[np.zeros(3)], {"rates": np.zeros(3)}])
def test_what_is_learned_of_the_inner_rule_needs_a_place_of_its_own(initial):
    inner = InnerLoop(sgd(0.1), rates=LearnedRates("tensor", 0.1))
    with pytest.raises(ValueError, match="rates stand in the dict of parameters, beside parts of other names"):
        Maml(Parameters(initial), inner, 1).init(jax.random.key(0), one_task())
