"""iMAML: the implicit gradient is the derivative of where the inner loop ends, at a memory that knows no steps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from maml_jax import tree
from maml_jax.config import check, default
from maml_jax.errors import ConfigError
from maml_jax.meta.implicit import ImplicitMaml
from maml_jax.meta.inner import InnerLoop, adapt, all_but, sgd
from maml_jax.meta.learner import Pass, Phase
from maml_jax.meta.outer import Maml
from maml_jax.meta.precondition import Curvature
from maml_jax.meta.step import init_state, meta_step
from maml_jax.nn.model import learner
from maml_jax.solve import conjugate_gradients
from tests.helpers import assert_same, differs, episodes, one_task, small

STRENGTH = 0.5


class Smooth(nn.Module):
    """A network without kinks, whose inner problem has a minimum that descent reaches."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(3, param_dtype=x.dtype, name="body")(x.reshape(len(x), -1)))
        return nn.Dense(2, param_dtype=x.dtype, name="head")(x)


def inner(fixed="body/bias|head/kernel", rate=0.2, **how):
    return InnerLoop(sgd(rate), all_but(fixed), proximal=STRENGTH, **how)


def start(model, task):
    params, stats = model.init(jax.random.key(1), task.support_x)
    return jax.tree.map(lambda p: p + 0.1, params), stats


def exact(model, loop, params, stats, task, steps):
    """The derivative by dense matrices: a Hessian, a matrix of mixed derivatives, and a solver."""
    end, _, _ = adapt(model, loop, params, stats, task.support_x, task.support_y, steps, True)
    (x, to_adapted), (z, to_fixed) = map(ravel_pytree, tree.partition(end, loop.is_adapted))

    def loss(x, z, which, images, labels):
        outputs, _ = model.apply(tree.merge(to_adapted(x), to_fixed(z)), stats, images, Phase(which, True))
        return model.loss(outputs, labels)

    support = lambda x, z: loss(x, z, Pass.SUPPORT, task.support_x, task.support_y)  # noqa: E731
    by_x, by_z = jax.grad(lambda *at: loss(*at, Pass.QUERY, task.query_x, task.query_y), (0, 1))(x, z)
    hessian, mixed = jax.hessian(support)(x, z), jax.jacobian(jax.grad(support), 1)(x, z)
    dx_dtheta = np.linalg.inv(np.asarray(hessian) / STRENGTH + np.eye(len(x)))
    dx_dz = -dx_dtheta @ mixed / STRENGTH
    return tree.merge(to_adapted(by_x @ dx_dtheta), to_fixed(by_z + by_x @ dx_dz))


def gradient(method, params, stats, task):
    return jax.jit(lambda params: method.task_gradient(params, stats, task, 0)[0])(params)


@pytest.fixture(scope="module")
def converged():
    """A problem of which 400 steps reach the minimum."""
    with jax.enable_x64(True):
        model, task = learner(Smooth()), one_task(query=4)
        return model, *start(model, task), task, 400


def test_at_the_minimum_it_is_the_derivative(converged, x64):
    """By a dense solver, and by differentiation through all steps that led there; also of what does not adapt."""
    model, params, stats, task, steps = converged
    method = ImplicitMaml(model, inner(), steps, cg_steps=20)
    found = gradient(method, params, stats, task)
    assert all(jnp.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(found))
    assert_same(found, exact(model, method.inner, params, stats, task, steps), 1e-10)
    assert_same(found, gradient(Maml(model, method.inner, steps), params, stats, task), 1e-8)


def test_the_inner_optimiser_says_nothing_at_the_minimum(converged, x64):
    model, params, stats, task, steps = converged
    plain = gradient(ImplicitMaml(model, inner(), steps, 20), params, stats, task)
    loop = InnerLoop(sgd(0.1, momentum=0.5), inner().is_adapted, proximal=STRENGTH)
    assert_same(gradient(ImplicitMaml(model, loop, steps, 20), params, stats, task), plain, 1e-8)


def test_few_steps_of_conjugate_gradients_come_nearer_and_nearer(converged, x64):
    """None gives the first-order gradient."""
    model, params, stats, task, steps = converged
    truth, errors = exact(model, inner(), params, stats, task, steps), []
    for cg_steps in (0, 2, 5):
        found = gradient(ImplicitMaml(model, inner(), steps, cg_steps), params, stats, task)
        errors.append(
            max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (found, truth)), strict=True))
        )
    assert errors[0] > 3 * errors[1] > 30 * errors[2]


@pytest.mark.parametrize(("norm", "starts"), [("tasknorm", "meta"), ("episodic", "zero")])
def test_with_a_normalised_network(norm, starts, x64):
    """Through a context pass; and where some parameters start at zero and are not learned, as if they were."""
    model, task = small(norm, starts, blocks=1), one_task()
    method = ImplicitMaml(model, inner("norm", rate=0.1), 3, cg_steps=40)
    params, stats = start(model, task)
    found = gradient(method, params, stats, task)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    assert any(jnp.any(leaf) for name, leaf in tree.by_name(found).items() if "norm" in name)
    if starts == "zero":
        model_of_all = small(norm, blocks=1)
        params = {**params, "head": jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), _head(model_of_all, task))}
        found_of_all = gradient(ImplicitMaml(model_of_all, method.inner, 3, 40), params, stats, task)
        assert_same(found["encoder"], found_of_all["encoder"])


def _head(model, task):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), task.support_x)[0])["head"]


def test_memory_is_flat_in_inner_steps():
    """The program for 100 steps has the temporaries of that for 5, where unrolling has a copy for each."""
    model, task = small(width=8), one_task(side=16)
    params, stats = start(model, task)

    def temporaries(method):
        compiled = jax.jit(lambda p: method.task_gradient(p, stats, task, 0)[0]).lower(params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    implicit = [temporaries(ImplicitMaml(model, inner(""), steps)) for steps in (5, 100)]
    unrolled = [temporaries(Maml(model, inner(""), steps)) for steps in (5, 100)]
    losses = 95 * 4  # of support, one of each step
    assert implicit[1] - implicit[0] <= 4 * losses
    assert unrolled[1] - unrolled[0] > 50 * 4 * sum(leaf.size for leaf in jax.tree.leaves(params))


def test_adaptation_at_test_is_held_near_the_start_too(x64):
    model, task = small(blocks=1), one_task()
    params, stats = start(model, task)
    ways = []
    for strength in (0.01, 1.0, 8.0):
        method = ImplicitMaml(model, InnerLoop(sgd(0.1), proximal=strength), 20)
        end, _, _ = method.adapted(params, stats, task.support_x, task.support_y)
        ways.append(float(optax.tree.norm(jax.tree.map(jnp.subtract, end, params))))
    assert ways[0] > 1.5 * ways[1] > 3 * ways[2] > 0


def test_it_learns(x64):
    """The query loss falls."""
    method, tasks, optimizer = ImplicitMaml(small(blocks=1), inner(""), 5), episodes(), optax.adam(0.05)
    state = first = init_state(method, optimizer, jax.random.key(0), one_task())
    step = jax.jit(lambda state: meta_step(method, optimizer, state, tasks))
    losses = []
    for _ in range(40):
        state, results = step(state)
        losses.append(float(results.loss.mean()))
    assert losses[-1] < 0.6 * losses[0]
    assert differs(state.params, first.params)


def test_conjugate_gradients(x64):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((6, 6))
    a, b = a @ a.T + np.eye(6), {"x": rng.standard_normal(4), "y": rng.standard_normal((2, 1))}
    flat, unravel = ravel_pytree(b)

    def solve(a, steps):
        return conjugate_gradients(lambda p: unravel(a @ ravel_pytree(p)[0]), b, steps)

    assert_same(solve(a, 8), unravel(jnp.linalg.solve(a, flat)), 1e-9)
    assert_same(solve(a, 50), unravel(jnp.linalg.solve(a, flat)), 1e-9)  # nothing is left to divide by
    assert_same(solve(a, 0), b, 0)
    assert_same(solve(-a, 5), b, 0)  # no positive curvature


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"needs InnerLoop\(proximal=λ\) with λ > 0, got 0"):
        ImplicitMaml(small(), InnerLoop(sgd(0.1)), 2)
    with pytest.raises(ValueError, match="does not depend on precondition"):
        ImplicitMaml(small(), InnerLoop(sgd(0.1), precondition=Curvature(), proximal=1.0), 2)


@pytest.mark.parametrize(
    ("fields", "message", "way_out"),
    [
        (
            {"outer.method": "imaml"},
            r"inner\.proximal=0\.0 will not do with outer\.method='imaml'",
            {"inner.proximal": 2.0},
        ),
        ({"outer.cg_steps": 3}, r"outer\.cg_steps=3 says nothing with outer\.method='maml'", {"outer.cg_steps": 5}),
        (
            {"outer.method": "imaml", "inner.proximal": 1.0, "inner.precondition": "curvature"},
            r"inner\.precondition='curvature' says nothing with outer\.method='imaml'",
            {"inner.precondition": "none"},
        ),
    ],
)
def test_settings_that_do_not_go_with_it(fields, message, way_out):
    config = default()
    config.update_from_flattened_dict(fields)
    with pytest.raises(ConfigError, match=message) as caught:
        check(config)
    assert caught.value.settings == way_out
    config.update_from_flattened_dict(way_out)
    check(config)
