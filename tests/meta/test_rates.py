"""Learned inner rates and adaptive inner optimisers: the update they stand for, and its derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from maml_jax import experiment, tree
from maml_jax.meta.inner import InnerLoop, adapt, all_but, descent, sgd, split
from maml_jax.meta.outer import meta_gradient, meta_loss
from maml_jax.meta.rates import LearnedRates
from maml_jax.meta.step import init_state
from maml_jax.nn.norm import Pass

pytestmark = pytest.mark.usefixtures("x64")


def assert_same(actual, expected, tolerance=1e-12):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance), actual, expected)


def learned(kind, steps=0, positive=False, fixed="norm", **changes):
    """An inner loop whose learned rates differ from those of its optimiser."""
    inner = InnerLoop(sgd(9.0, 9.0, 0.5, 0.01), all_but(fixed), rates=LearnedRates(kind, 0.3, 0.1, steps, positive))
    return inner._replace(**changes)


def start(model, inner):
    state = init_state(model, optax.sgd(0.1), jax.random.key(0), inner)
    return state.params, state.stats


def adapted(model, inner, params, stats, task, steps):
    return adapt(model, inner, params, stats, task.support_x[0], task.support_y[0], steps, True)[0]


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("kind", ["group", "tensor", "element"])
def test_rates_start_where_they_are_told(small, episodes, kind, positive):
    """And then adapt as fixed rates do."""
    model, task, inner = small(), episodes(), learned(kind, steps=2, positive=positive)
    params, stats = start(model, inner)
    plain = InnerLoop(sgd(0.3, 0.1, 0.5, 0.01), inner.is_adapted)
    assert_same(*(adapted(model, loop, params, stats, task, 2) for loop in (inner, plain)))
    names = tree.names(params["rates"])
    assert names == {"group": ["encoder", "head"]}.get(kind, tree.names(split(model, inner, params)[0]))
    assert not any("norm" in name for name in names)
    shapes = {leaf.shape for leaf in jax.tree.leaves(params["rates"])}
    assert shapes == (
        {(2,)} if kind != "element" else {(2, *x.shape) for x in jax.tree.leaves(split(model, inner, params)[0])}
    )


def test_each_step_has_its_rates_and_the_last_ones_are_used_again(small, episodes):
    model, task, inner = small(), episodes(), learned("tensor", steps=2)._replace(optimizer=sgd(9.0, 9.0, 0.0, 0.0))
    params, stats = start(model, inner)
    rng = np.random.default_rng(0)
    params["rates"] = jax.tree.map(lambda r: jnp.asarray(rng.uniform(-0.1, 0.3, r.shape)), params["rates"])

    def loss(theta, fixed):
        logits, _ = model.apply(tree.merge(theta, fixed), stats, task.support_x[0], Pass.SUPPORT, True)
        return model.loss(logits, task.support_y[0])

    expected, fixed = split(model, inner, params)
    for step in (0, 1, 1, 1):
        gradient = jax.jit(jax.grad(loss))(expected, fixed)
        expected = jax.tree.map(lambda p, r, g, k=step: p - r[k] * g, expected, params["rates"], gradient)
    assert_same(adapted(model, inner, params, stats, task, 4), tree.merge(expected, fixed))


def test_an_element_has_its_own_rate(small, episodes):
    model, task, inner = small(), episodes(), learned("element")
    params, stats = start(model, inner)
    kernel = params["rates"]["head"]["kernel"]
    params["rates"]["head"]["kernel"] = kernel.at[3, 1].set(0.0)
    moved = adapted(model, inner, params, stats, task, 2)["head"]["kernel"] != params["head"]["kernel"]
    assert not moved[3, 1]
    assert moved.sum() == kernel.size - 1


@pytest.mark.parametrize(
    ("kind", "steps", "positive", "how"),
    [
        ("group", 0, False, {}),
        ("tensor", 3, True, {"forward_over_reverse": True}),
        ("element", 2, False, {"checkpoint": "nested"}),
    ],
)
def test_rates_are_meta_learned(small, episodes, kind, steps, positive, how):
    """Their derivative is that of finite differences, one for all and each for itself."""
    model, tasks, inner = small(), episodes(), learned(kind, steps, positive, **how)
    params, stats = start(model, inner)
    gradient, _ = jax.jit(lambda p: meta_gradient(model, inner, p, stats, tasks, 3, 1))(params)
    loss = jax.jit(lambda rates: meta_loss(model, inner, {**params, "rates": rates}, stats, tasks, 3)[0])
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda r: jnp.asarray(rng.standard_normal(r.shape)), params["rates"])
    ahead, behind = (loss(jax.tree.map(lambda r, d, h=h: r + h * d, params["rates"], direction)) for h in (1e-6, -1e-6))
    along = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient["rates"], direction)), strict=True))
    np.testing.assert_allclose(along, (ahead - behind) / 2e-6, rtol=1e-5)
    assert all(jnp.any(g) for g in jax.tree.leaves(gradient["rates"]) if g.size > 4)


def test_what_does_not_adapt_has_no_rate(small, episodes):
    """ANIL adapts the head alone, BOIL the body alone; a zero head has rates though it is no meta-parameter."""
    model, task = small(head="zero"), episodes()
    for fixed, part, other in (("^encoder", "head", "encoder"), ("^head", "encoder", "head")):
        inner = learned("tensor", fixed=fixed)
        params, stats = start(model, inner)
        assert {name.split("/")[0] for name in tree.names(params["rates"])} == {part}
        before, after = model.episode_params(params), adapted(model, inner, params, stats, task, 2)
        assert_same(after[other], before[other], 0)
        if part == "head":
            assert jnp.any(after["head"]["kernel"])


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adam"])
def test_optimisers_equal_pytorchs_and_have_finite_meta_gradients(small, episodes, name):
    """The first gradient of the encoder is zero under a zero head, and so are its second moments."""
    torch = pytest.importorskip("torch")
    config = default.get_config()
    config.inner.optimizer, config.inner.weight_decay, config.inner.encoder_rate = name, 0.01, 0.02
    inner, model, tasks = experiment.build_inner(config), small(head="zero"), episodes()
    params, stats = start(model, inner)
    config.inner.weight_decay = 0.0
    undecayed = experiment.build_inner(config)
    gradient, _ = jax.jit(lambda p: meta_gradient(model, undecayed, p, stats, tasks, 3, 1))(params)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient))
    assert any(jnp.any(g) for g in jax.tree.leaves(gradient))

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


def test_any_optax_transformation_will_do(small, episodes):
    model, task = small(), episodes()
    params, stats = start(model, InnerLoop(optax.sgd(0.1), all_but("")))
    by_optax = InnerLoop(optax.sgd(0.1, momentum=0.9), all_but(""))
    by_ours = InnerLoop(descent(optax.trace(0.9), 0.1, 0.1, 0.0), all_but(""))
    assert_same(*(adapted(model, inner, params, stats, task, 3) for inner in (by_optax, by_ours)))
