"""Learned inner rates and adaptive inner optimisers: the update they stand for, and its derivative."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from maml_jax import tree
from maml_jax.experiment.method import build_inner
from maml_jax.meta.inner import InnerLoop, adapt, all_but, sgd
from maml_jax.meta.learner import Pass, Phase
from maml_jax.meta.outer import Maml
from maml_jax.meta.rates import LearnedRates
from tests.helpers import assert_same, episodes, one_task, small
from tests.meta.test_outer import along, dot, gradient, random_like

pytestmark = pytest.mark.usefixtures("x64")

RATES = {"encoder": 0.3, "head": 0.1}


def learned(kind, steps=0, positive=False, fixed="norm", **changes):
    """An inner loop whose learned rates differ from those of its optimiser."""
    inner = InnerLoop(sgd(9.0, 0.5, 0.01), all_but(fixed), rates=LearnedRates(kind, RATES, steps, positive))
    return dataclasses.replace(inner, **changes)


def start(learner, inner, task):
    return Maml(learner, inner, 1).init(jax.random.key(0), task)


def adapted(learner, inner, params, stats, task, steps):
    return adapt(learner, inner, params, stats, task.support_x, task.support_y, steps, True)[0]


def those_that_adapt(learner, inner, params, stats, task):
    return inner.start(learner, params, stats, task.support_x, task.support_y)[:2]


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("kind", ["group", "tensor", "element"])
def test_rates_start_where_they_are_told(kind, positive):
    """And then adapt as fixed rates do."""
    learner, task, inner = small(blocks=1), one_task(), learned(kind, steps=2, positive=positive)
    params, stats = start(learner, inner, task)
    plain = InnerLoop(sgd(RATES, 0.5, 0.01), inner.is_adapted)
    model = {"encoder": params["encoder"], "head": params["head"]}
    assert_same(adapted(learner, inner, params, stats, task, 2), adapted(learner, plain, model, stats, task, 2))
    adapts = those_that_adapt(learner, inner, params, stats, task)[0]
    names = tree.names(params["rates"])
    assert names == {"group": ["encoder", "head"]}.get(kind, tree.names(adapts))
    assert not any("norm" in name for name in names)
    shapes = {leaf.shape for leaf in jax.tree.leaves(params["rates"])}
    assert shapes == ({(2,)} if kind != "element" else {(2, *x.shape) for x in jax.tree.leaves(adapts)})


def test_each_step_has_its_rates_and_the_last_ones_are_used_again():
    learner, task = small(blocks=1), one_task()
    inner = learned("tensor", steps=2, optimizer=sgd(9.0))
    params, stats = start(learner, inner, task)
    rng = np.random.default_rng(0)
    params["rates"] = jax.tree.map(lambda r: jnp.asarray(rng.uniform(-0.1, 0.3, r.shape)), params["rates"])

    @jax.jit
    @jax.grad
    def gradient(theta, fixed):
        logits, _ = learner.apply(tree.merge(theta, fixed), stats, task.support_x, Phase(Pass.SUPPORT, True))
        return learner.loss(logits, task.support_y)

    expected, fixed = those_that_adapt(learner, inner, params, stats, task)
    for step in (0, 1, 1, 1):
        expected = jax.tree.map(
            lambda p, r, g, k=step: p - r[k] * g, expected, params["rates"], gradient(expected, fixed)
        )
    assert_same(adapted(learner, inner, params, stats, task, 4), tree.merge(expected, fixed))


def test_an_element_has_its_own_rate():
    learner, task, inner = small(), one_task(), learned("element")
    params, stats = start(learner, inner, task)
    kernel = params["rates"]["head"]["kernel"]
    params["rates"]["head"]["kernel"] = kernel.at[1, 1].set(0.0)
    moved = adapted(learner, inner, params, stats, task, 2)["head"]["kernel"] != params["head"]["kernel"]
    assert not moved[1, 1]
    assert moved.sum() == kernel.size - 1


@pytest.mark.parametrize(
    ("kind", "steps", "positive", "how"),
    [
        ("group", 0, False, {}),
        ("tensor", 3, True, {"forward_over_reverse": True}),
        ("element", 2, False, {"checkpoint": "nested"}),
    ],
)
def test_rates_are_meta_learned(kind, steps, positive, how):
    """Their derivative is that of finite differences, one for all and each for itself."""
    learner, tasks, inner = small(blocks=1), episodes(), learned(kind, steps, positive, **how)
    method = Maml(learner, inner, 3)
    params, stats = start(learner, inner, one_task())
    grads, _ = gradient(method, params, stats, tasks)
    nothing = jax.tree.map(jnp.zeros_like, params)
    direction = {**nothing, "rates": random_like(params["rates"], 0)}
    np.testing.assert_allclose(dot(grads, direction), along(method, params, stats, tasks, direction), rtol=1e-5)
    assert all(jnp.any(g) for g in jax.tree.leaves(grads["rates"]) if g.size > 4)


def test_what_does_not_adapt_has_no_rate():
    """ANIL adapts the head alone, BOIL the body alone; a zero head has rates though it is no meta-parameter."""
    learner, task = small(starts="zero", blocks=1), one_task()
    for fixed, part, other in (("^encoder", "head", "encoder"), ("^head", "encoder", "head")):
        inner = learned("tensor", fixed=fixed)
        params, stats = start(learner, inner, task)
        assert {name.split("/")[0] for name in tree.names(params["rates"])} == {part}
        before = tree.merge(*those_that_adapt(learner, inner, params, stats, task))
        after = adapted(learner, inner, params, stats, task, 2)
        assert_same(after[other], before[other], 0)
        if part == "head":
            assert jnp.any(after["head"]["kernel"])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adam"])
def test_optimisers_equal_pytorchs_and_have_finite_meta_gradients(name):
    """The first gradient of the encoder is zero under a zero head, and so are its second moments."""
    torch = pytest.importorskip("torch")
    config = default.get_config()
    config.inner.optimizer, config.inner.weight_decay, config.inner.encoder_rate = name, 0.01, 0.02
    inner, learner, tasks = build_inner(config), small(starts="zero", blocks=1), episodes()
    params, stats = start(learner, inner, one_task())
    config.inner.weight_decay = 0.0
    grads, _ = gradient(Maml(learner, build_inner(config), 3), params, stats, tasks)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert any(jnp.any(g) for g in jax.tree.leaves(grads))

    rules = {
        "sgd": torch.optim.SGD,
        "rmsprop": torch.optim.RMSprop,
        "adam": torch.optim.Adam,
    }
    x = torch.tensor([0.5, -2.0], dtype=torch.float64, requires_grad=True)
    rule = rules[name]([x], lr=0.02, weight_decay=0.01)
    ours = {"encoder": jnp.array([0.5, -2.0]), "head": None}
    state = inner.optimizer.init(ours)
    for k in range(4):
        rule.zero_grad()
        ((k + 1) * x.pow(3)).sum().backward()
        rule.step()
        update, state = inner.optimizer.update(
            {"encoder": (k + 1) * 3 * ours["encoder"] ** 2, "head": None}, state, ours
        )
        ours = optax.apply_updates(ours, update)
    np.testing.assert_allclose(ours["encoder"], x.detach().numpy(), rtol=1e-6)


def test_one_rate_for_all_can_be_learned():
    learner, task = small(blocks=1), one_task()
    inner = InnerLoop(sgd(9.0), rates=LearnedRates("group", 0.2))
    params, stats = start(learner, inner, task)
    assert params["rates"] == 0.2
    model = {name: part for name, part in params.items() if name != "rates"}
    plain = adapted(learner, InnerLoop(sgd(0.2)), model, stats, task, 1)
    assert_same(adapted(learner, inner, params, stats, task, 1), plain)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (LearnedRates("Group", 0.1), r"kind='Group' must be one of group, tensor, element"),
        (LearnedRates("tensor", {"encoder": 0.1, "heat": 0.1}), r"encoder, heat does not fit one with .*head/kernel"),
    ],
)
def test_rates_that_do_not_fit_are_one_clear_error(rates, message):
    with pytest.raises(ValueError, match=message):
        start(small(), InnerLoop(sgd(0.1), rates=rates), one_task())
