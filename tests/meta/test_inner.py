"""The inner loop against the equation, written out step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maml_jax import tree
from maml_jax.meta.inner import InnerLoop, adapt, all_but, sgd
from maml_jax.meta.learner import Pass, Phase
from tests.helpers import assert_same, differs, one_task, small

pytestmark = pytest.mark.usefixtures("x64")


def start(learner, task):
    return learner.init(jax.random.key(0), task.support_x)


def run(learner, inner, params, stats, task, steps=2):
    return adapt(learner, inner, params, stats, task.support_x, task.support_y, steps, True)


def written_out(learner, params, stats, x, y, steps, rates, momentum, decay):
    """Finn et al. 2017, equation 1, with the original's momentum and weight decay; no scan, no optax, no checkpoint."""
    params, stats = learner.start(params, stats, x, y)
    velocity, losses = jax.tree.map(jnp.zeros_like, params), []
    for k in range(steps):

        def loss(p, stats=stats, k=k):
            logits, after = learner.apply(p, stats, x, Phase(Pass.SUPPORT, True, k))
            return learner.loss(logits, y), after

        (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        gradient = jax.tree.map(lambda g, p: g + decay * p, gradient, params)
        velocity = jax.tree.map(lambda g, v: g + momentum * v, gradient, velocity)
        params = tree.map_named(lambda name, p, v: p - rates[name.split("/")[0]] * v, params, velocity)
        losses.append(value)
    return params, stats, jnp.stack(losses)


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 5e-3)])
def test_equals_the_loop_written_out(momentum, decay):
    """Parameters, statistics and losses, in a layer that keeps statistics and in one that does not."""
    learner, task, rates = small("block1=episodic, batch"), one_task(), {"encoder": 0.1, "head": 0.05}
    params, stats = start(learner, task)
    inner = InnerLoop(sgd(rates, momentum, decay))
    actual = jax.jit(functools.partial(run, learner, inner, stats=stats, task=task, steps=3))(params)
    expected = jax.jit(
        lambda p: written_out(learner, p, stats, task.support_x, task.support_y, 3, rates, momentum, decay)
    )(params)
    assert_same(actual, expected)
    losses = actual[2]
    assert losses.shape == (3,)
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize("given", [optax.sgd(0.3, momentum=0.9), optax.sgd(0.3)])
def test_any_optax_transformation_will_do(given):
    learner, task = small(blocks=1), one_task()
    ours = sgd(0.3, 0.9 if len(jax.tree.leaves(given.init(jnp.zeros(())))) else 0.0)
    params, stats = start(learner, task)
    assert_same(*(run(learner, InnerLoop(rule), params, stats, task, 3) for rule in (given, ours)))


def test_no_steps_change_nothing():
    learner, task = small(), one_task()
    params, stats = start(learner, task)
    inner = InnerLoop(sgd(0.3, 0.9, 0.1))
    adapted, _, losses = run(learner, inner, params, stats, task, 0)
    assert_same(adapted, params, 0)
    assert losses.shape == (0,)


def test_only_what_is_to_adapt_moves():
    """Nothing else does, not even by decay; and a temperature that does not adapt still scales the logits."""
    learner, task = small(learn_temperature=True, temperature=2.0), one_task()
    params, stats = start(learner, task)
    params = jax.tree.map(lambda p: p + 0.5, params)  # decay moves the biases that batch moments cancel
    fixed = ("norm", "block1/conv/kernel", "head/temperature")
    adapted, _, losses = run(learner, InnerLoop(sgd(0.3, 0.9, 0.1), all_but("|".join(fixed))), params, stats, task)
    for name, before in tree.by_name(params).items():
        changed = bool(jnp.any(tree.by_name(adapted)[name] != before))
        assert changed != any(part in name for part in fixed), name
    colder = {**params, "head": {**params["head"], "temperature": jnp.asarray(0.1)}}
    assert run(learner, InnerLoop(sgd(0.3)), colder, stats, task)[2][0] != losses[0]


def test_a_zero_head_gives_the_encoder_no_first_gradient():
    """Logits do not depend on features while the head is zero, so after one step only the head has moved."""
    learner, task = small(starts="zero"), one_task()
    params, stats = start(learner, task)
    adapted, _, _ = run(learner, InnerLoop(sgd(0.3)), params, stats, task, 1)
    assert_same(adapted["encoder"], params["encoder"], 0)
    assert jnp.any(adapted["head"]["kernel"])


def test_a_rate_of_zero_means_zero():
    """Also with momentum and decay, and down to any depth of the tree of rates."""
    learner, task = small(), one_task()
    params, stats = start(learner, task)
    rates = {"encoder": {"block1": 0.0, "block2": {"conv": 0.1, "norm": 0.0}}, "head": 0.1}
    adapted, _, _ = run(learner, InnerLoop(sgd(rates, 0.9, 0.1)), params, stats, task)
    for still in ("block1",), ("block2", "norm"):
        before, after = params["encoder"], adapted["encoder"]
        for part in still:
            before, after = before[part], after[part]
        assert_same(after, before, 0)
    assert differs(adapted["encoder"]["block2"]["conv"], params["encoder"]["block2"]["conv"])
    assert differs(adapted["head"], params["head"])


def test_episodic_statistics_start_anew_and_follow_every_support_pass():
    """With rates of zero every pass sees the same moments m, so five leave (1 - 0.9^5) m + 0.9^5 of the start."""
    learner, task = small("episodic", blocks=1), one_task()
    params, stats = start(learner, task)

    def after(steps):
        return run(learner, InnerLoop(sgd(0.0)), params, stats, task, steps)[1]["batch_stats"]["encoder"]["block1"]

    once, five = after(1)["norm"], after(5)["norm"]
    for name in ("mean", "var"):
        start_value = float(name == "var")
        moment = (once[name] - 0.9 * start_value) / 0.1
        np.testing.assert_allclose(five[name], (1 - 0.9**5) * moment + 0.9**5 * start_value, rtol=1e-10)


def test_what_cannot_be_is_one_clear_error():
    with pytest.raises(ValueError, match=r"checkpoint='setp' must be one of none, step, nested"):
        InnerLoop(sgd(0.1), checkpoint="setp")
    learner, task = small(), one_task()
    params, stats = start(learner, task)
    with pytest.raises(ValueError, match=r"encoder, heat does not fit .*head/kernel.*give one value for all"):
        run(learner, InnerLoop(sgd({"encoder": 0.1, "heat": 0.1})), params, stats, task)
