"""The inner loop against the equation, written out step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax import tree
from maml_jax.meta.inner import InnerLoop, adapt, all_but, sgd
from maml_jax.nn.convnet import ConvNet
from maml_jax.nn.head import LinearHead
from maml_jax.nn.loss import cross_entropy
from maml_jax.nn.model import Classifier, Model
from maml_jax.nn.norm import Pass

pytestmark = pytest.mark.usefixtures("x64")


def assert_same(actual, expected, tolerance=1e-12):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance), actual, expected)


def one_task(episodes):
    return jax.tree.map(lambda x: jnp.asarray(x[0]), episodes)


def written_out(model, params, stats, x, y, steps, encoder_rate, head_rate, momentum, decay):
    """Finn et al. 2017, equation 1, with the original's momentum and weight decay; no scan, no optax, no checkpoint."""
    velocity = jax.tree.map(jnp.zeros_like, params)
    for _ in range(steps):

        def loss(p, stats=stats):
            logits, after = model.apply(p, stats, x, Pass.SUPPORT, True)
            return cross_entropy(logits, y), after

        gradient, stats = jax.grad(loss, has_aux=True)(params)
        gradient = jax.tree.map(lambda g, p: g + decay * p, gradient, params)
        velocity = jax.tree.map(lambda g, v: g + momentum * v, gradient, velocity)
        rates = tree.map_named(lambda name, _: head_rate if name.startswith("head") else encoder_rate, params)
        params = jax.tree.map(lambda p, rate, v: p - rate * v, params, rates, velocity)
    return params, stats


@pytest.mark.parametrize("norm", ["batch", "episodic"])
@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 5e-3)])
def test_equals_the_loop_written_out(small, episodes, norm, momentum, decay):
    model, task = small(norm), one_task(episodes())
    params, stats = model.init(jax.random.key(0))
    inner = InnerLoop(sgd(0.3, 0.1, momentum, decay), all_but(""))
    adapted, after, losses = jax.jit(lambda p: adapt(model, inner, p, stats, task.support_x, task.support_y, 3, True))(
        params
    )
    expected, expected_stats = jax.jit(
        lambda p: written_out(
            model, p, model.episode_stats(stats), task.support_x, task.support_y, 3, 0.3, 0.1, momentum, decay
        )
    )(params)
    assert_same(adapted, expected)
    assert_same(after, expected_stats)
    assert losses.shape == (3,)
    assert momentum or losses[-1] < losses[0]


def test_no_steps_change_nothing(small, episodes):
    model, task = small(), one_task(episodes())
    params, stats = model.init(jax.random.key(0))
    inner = InnerLoop(sgd(0.3, 0.1, 0.9, 0.1), all_but(""))
    adapted, _, losses = adapt(model, inner, params, stats, task.support_x, task.support_y, 0, True)
    assert_same(adapted, params, 0)
    assert losses.shape == (0,)


def test_fixed_parameters_stay(small, episodes):
    model, task = small(), one_task(episodes())
    params, stats = model.init(jax.random.key(0))
    params = jax.tree.map(lambda p: p + 0.5, params)  # decay moves the biases that batch moments cancel
    inner = InnerLoop(sgd(0.3, 0.1, 0.9, 0.1), all_but("norm|block1/conv/kernel"))
    adapted, _, _ = adapt(model, inner, params, stats, task.support_x, task.support_y, 2, True)
    moved = tree.map_named(lambda name, leaf: name, params)
    moved = jax.tree.map(lambda name, a, b: (name, bool(jnp.any(a != b))), moved, adapted, params)
    for name, changed in jax.tree.leaves(moved, is_leaf=lambda x: isinstance(x, tuple)):
        assert changed == ("norm" not in name and name != "encoder/block1/conv/kernel"), name


def test_the_temperature_never_adapts(episodes):
    classifier = Classifier(ConvNet(2, 2, norm="batch"), LinearHead(2, 2.0, learn_temperature=True))
    model, task = Model(classifier, "batch", False, (8, 8, 3)), one_task(episodes())
    params, stats = model.init(jax.random.key(0))
    inner = InnerLoop(sgd(0.3, 0.1, 0.9, 0.1), all_but(""))
    adapted, _, _ = adapt(model, inner, params, stats, task.support_x, task.support_y, 2, True)
    assert adapted["head"]["temperature"] == 2.0
    assert jnp.any(adapted["head"]["kernel"] != params["head"]["kernel"])


def test_a_zero_head_gives_the_encoder_no_first_gradient(small, episodes):
    """Logits do not depend on features while the head is zero, so after one step only the head has moved."""
    model, task = small(head="zero"), one_task(episodes())
    params, stats = model.init(jax.random.key(0))
    inner = InnerLoop(sgd(0.3, 0.1, 0.0, 0.0), all_but(""))
    adapted, _, _ = adapt(model, inner, params, stats, task.support_x, task.support_y, 1, True)
    assert_same(adapted["encoder"], params["encoder"], 0)
    assert jnp.any(adapted["head"]["kernel"])


def test_a_rate_of_zero_means_zero(small, episodes):
    model, task = small(), one_task(episodes())
    params, stats = model.init(jax.random.key(0))
    inner = InnerLoop(sgd(0.0, 0.1, 0.9, 0.1), all_but(""))
    adapted, _, _ = adapt(model, inner, params, stats, task.support_x, task.support_y, 2, True)
    assert_same(adapted["encoder"], params["encoder"], 0)
    assert jnp.any(adapted["head"]["kernel"] != params["head"]["kernel"])


def test_episodic_statistics_start_anew_and_follow_every_support_pass(small, episodes):
    """With rates of zero every pass sees the same moments m, so five leave (1 - 0.9^5) m + 0.9^5 of the start."""
    model, task = small("episodic"), one_task(episodes())
    params, stats = model.init(jax.random.key(0))
    inner = InnerLoop(sgd(0.0, 0.0, 0.0, 0.0), all_but(""))

    def after(steps):
        return adapt(model, inner, params, stats, task.support_x, task.support_y, steps, True)[1]

    for name in ("mean", "var"):
        once, five = (after(steps)["encoder"]["block1"]["norm"][name] for steps in (1, 5))
        start = float(name == "var")
        moment = (once - 0.9 * start) / 0.1
        np.testing.assert_allclose(five, (1 - 0.9**5) * moment + 0.9**5 * start, rtol=1e-10)
