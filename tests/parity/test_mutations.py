"""Deliberately wrong ports: the comparison that passes with the right one must fail with each of them.

Everything runs without `jit`, where a change costs a run but no compilation, as all cases share their shapes.
"""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax import lax

from configs import default
from maml_jax import experiment, tree
from maml_jax.meta import inner, outer, step
from maml_jax.nn import norm
from maml_jax.nn.model import Model
from maml_jax.nn.norm import BatchNorm, Pass
from parity import convert, golden, reference
from parity.check import check_case
from parity.golden import OuterArgs
from parity.grid import make_case

MIXED = {"conv1": "episodic", "conv2": "global", "conv3": "episodic", "conv4": "global"}
RICH = {"momentum": 0.5, "weight_decay": 0.1, "temp": 2.0, "learn_temp": True, "frozen": ("conv2.bn",)}
# By name: options of `make_case`.
CASES = {
    "first_order": RICH | {"first_order": True},
    "second_order": {"n_step": 1},
    "zero_head": {"n_step": 1, "reset_classifier": True},
    "two_episodes": {"n_step": 1, "first_order": True, "episodes": 2, "outer": OuterArgs("sgd", 0.1, 0.1, 2)},
}
FORWARD = {"logits_train", "loss_train", "logits_eval", "buffer"}  # what takes no meta-gradient


@functools.cache
def case(name):
    return make_case(name, **({"norm": MIXED, "image_size": 32, "episodes": 1, "eval_steps": 1} | CASES[name]))


def failures(name, quantities):
    """The quantities that fail, of those given."""
    with jax.disable_jit(), pytest.MonkeyPatch.context() as patch:
        if quantities <= FORWARD:
            patch.setattr(step, "meta_gradient", without_gradient)
        results = check_case(case(name))
    return {result.quantity for result in results if not result.passed} & quantities


def without_gradient(model, inner, params, stats, episodes, steps, tasks_at_once, weights):
    """Stands in for `meta_gradient` where only its results are looked at, which takes a tenth of the time."""
    results = lax.map(lambda e: outer.task_loss(model, inner, params, stats, e, steps, True)[1], episodes)
    return jax.tree.map(jnp.zeros_like, params), results


@pytest.mark.parametrize("name", CASES)
def test_the_port_passes(name):
    everything = FORWARD | {"grad", "gradnorm", "outer_losses", "outer_final"}
    assert failures(name, FORWARD if name == "zero_head" else everything) == set()


# Normalisation


def biased_running_variance(patch):
    patch.setattr(norm, "max", lambda below, one: below + 1, raising=False)  # n / (n - 1) becomes n / n


def unbiased_batch_variance(patch):
    right = BatchNorm._normalizing

    def moments(self, moments, count, *rest):
        mean, var = right(self, moments, count, *rest)
        return mean, var * count / (count - 1)

    patch.setattr(BatchNorm, "_normalizing", moments)


def another_epsilon(patch):
    right = BatchNorm._normalizing

    def moments(self, *rest):
        mean, var = right(self, *rest)
        return mean, var + 1e-3 - 1e-5

    patch.setattr(BatchNorm, "_normalizing", moments)


def running_statistics_move_by_nine_tenths(patch):
    patch.setattr(BatchNorm, "_move", lambda self, old, new: 0.1 * old + 0.9 * lax.stop_gradient(new))


def gradient_through_running_statistics(patch):
    patch.setattr(BatchNorm, "_move", lambda self, old, new: 0.9 * old + 0.1 * new)


def running_statistics_never_move(patch):
    patch.setattr(BatchNorm, "_move", lambda self, old, new: old)


def query_normalised_by_its_own_batch(patch):
    right = Model.apply
    patch.setattr(Model, "apply", lambda self, p, s, x, which, train, *k: right(self, p, s, x, Pass.SUPPORT, train))


def evaluation_by_batch_moments_in_global_layers(patch):
    right = Model.apply
    patch.setattr(Model, "apply", lambda self, p, s, x, which, train, *k: right(self, p, s, x, which, True))


def training_by_running_statistics_in_global_layers(patch):
    right = Model.apply
    patch.setattr(Model, "apply", lambda self, p, s, x, which, train, *k: right(self, p, s, x, which, False))


def episodic_statistics_never_reset(patch):
    patch.setattr(Model, "_lasts", lambda self, name: True)


def global_statistics_of_the_last_episode(patch):
    right = Model.lasting_stats
    last = lambda leaf: leaf[-1:] if leaf.ndim > 1 else leaf  # noqa: E731
    patch.setattr(Model, "lasting_stats", lambda self, stats: right(self, jax.tree.map(last, stats)))


def global_statistics_start_anew_at_each_step(patch):
    right = Model.episode_stats
    fresh = lambda stats: tree.map_named(lambda n, x: jnp.full_like(x, n.endswith("var")), stats)  # noqa: E731
    patch.setattr(Model, "episode_stats", lambda self, stats: right(self, fresh(stats)))


# Inner loop


def rule(patch, make):
    """Replaces the inner rule by the chain that `make(rates, momentum, weight_decay)` gives."""

    def sgd(encoder_rate, head_rate, momentum, weight_decay):
        rates = {"encoder": encoder_rate, "head": head_rate}
        down = optax.stateless(lambda g, params: tree.map_named(lambda name, g: -rates[name.split("/")[0]] * g, g))
        return optax.chain(*make(momentum, weight_decay), down)

    patch.setattr(inner, "sgd", sgd)


def decay_skipped(patch):
    rule(patch, lambda momentum, decay: [optax.trace(momentum)])


def decay_beside_the_momentum(patch):
    rule(patch, lambda momentum, decay: [optax.trace(momentum), optax.add_decayed_weights(decay)])


def decay_not_on_normalisation(patch):
    convolutions = lambda params: tree.map_named(lambda name, leaf: "norm" not in name, params)  # noqa: E731
    rule(patch, lambda momentum, decay: [optax.add_decayed_weights(decay, convolutions), optax.trace(momentum)])


def momentum_skipped(patch):
    rule(patch, lambda momentum, decay: [optax.add_decayed_weights(decay)])


def momentum_of_nesterov(patch):
    rule(patch, lambda momentum, decay: [optax.add_decayed_weights(decay), optax.trace(momentum, nesterov=True)])


def momentum_dampened(patch):
    rule(patch, lambda momentum, decay: [optax.add_decayed_weights(decay), optax.ema(momentum, debias=False)])


def momentum_buffer_not_reset(patch):
    def make(momentum, decay):
        trace = optax.trace(momentum)
        left = lambda params: trace.init(params)._replace(trace=jax.tree.map(lambda p: 0.01 * p, params))  # noqa: E731
        return [optax.add_decayed_weights(decay), optax.GradientTransformation(left, trace.update)]

    rule(patch, make)


def detached(transformation):
    """Lets no gradient through the update, nor through the state."""

    def update(updates, state, params=None):
        return lax.stop_gradient(transformation.update(updates, state, params))

    return optax.GradientTransformation(transformation.init, update)


def first_order_detaches_the_decay_too(patch):
    rule(patch, lambda momentum, decay: [detached(optax.add_decayed_weights(decay)), optax.trace(momentum)])


def first_order_detaches_the_momentum_too(patch):
    def make(momentum, decay):
        trace = optax.trace(momentum)
        update = lambda g, state, params=None: trace.update(g, lax.stop_gradient(state), params)  # noqa: E731
        return [optax.add_decayed_weights(decay), optax.GradientTransformation(trace.init, update)]

    rule(patch, make)


def built(patch, **changes):
    """Replaces fields of the inner loop."""
    right = experiment.build_inner
    patch.setattr(experiment, "build_inner", lambda config: right(config)._replace(**changes))


def first_order_instead_of_second(patch):
    built(patch, first_order=True)


def second_order_instead_of_first(patch):
    built(patch, first_order=False)


def frozen_parameters_adapt(patch):
    built(patch, is_adapted=lambda name: True)


def split(patch, partition):
    """Replaces how `adapt` splits the parameters."""
    patch.setattr(inner, "tree", SimpleNamespace(partition=partition, merge=tree.merge, map_named=tree.map_named))


def frozen_parameters_are_not_meta_learned(patch):
    def partition(params, is_adapted):
        adapted, fixed = tree.partition(params, is_adapted)
        return adapted, lax.stop_gradient(fixed)

    split(patch, partition)


def temperature_adapts(patch):
    split(patch, lambda params, is_adapted: tree.partition(params, lambda n: n == "head/temperature" or is_adapted(n)))


def rates_swapped(patch):
    right = inner.sgd
    patch.setattr(inner, "sgd", lambda encoder, head, momentum, decay: right(head, encoder, momentum, decay))


def one_step_more(patch):
    right = outer.adapt
    patch.setattr(outer, "adapt", lambda *arguments: right(*arguments[:6], arguments[6] + 1, *arguments[7:]))


def support_loss_summed(patch):
    right = outer.adapt

    def adapt(model, *rest):
        return right(dataclasses.replace(model, loss=lambda *at: model.loss(*at) * len(at[1])), *rest)

    patch.setattr(outer, "adapt", adapt)


def head_of_ones_instead_of_zeros(patch):
    right = Model.episode_params

    def episode_params(self, params):
        whole = right(self, params)
        return whole if "kernel" in params["head"] else {**whole, "head": jax.tree.map(jnp.ones_like, whole["head"])}

    patch.setattr(Model, "episode_params", episode_params)


# Names and layouts


def head_layout_not_permuted(patch):
    for name in ("_to_torch", "_from_torch"):
        right = getattr(convert, name)
        patch.setattr(
            convert,
            name,
            lambda n, array, features, right=right: array.T if n == "head/kernel" else right(n, array, features),
        )


def kernels_mirrored(patch):
    right = convert._from_torch
    flip = lambda array: array[::-1] if array.ndim == 4 else array  # noqa: E731
    patch.setattr(convert, "_from_torch", lambda name, array, features: flip(right(name, array, features)))


# Outer loop


def optimizer(patch, **rules):
    """Replaces rules of optax, wherever the outer optimiser takes them from."""
    patch.setattr(experiment, "optax", SimpleNamespace(**(vars(optax) | rules)))


def clip_missing(patch):
    optimizer(patch, clip=lambda limit: optax.identity())


def clip_by_norm(patch):
    optimizer(patch, clip=optax.clip_by_global_norm)


def outer_decay_skipped(patch):
    optimizer(patch, add_decayed_weights=lambda decay: optax.identity())


def outer_momentum_skipped(patch):
    optimizer(patch, trace=lambda momentum: optax.identity())


def adam_epsilon_inside_the_root(patch):
    optimizer(patch, scale_by_adam=lambda b1, b2, eps: optax.scale_by_adam(b1, b2, 0.0, eps))


def adam_bias_not_corrected(patch):
    def scale(b1, b2, eps):
        mean, square = optax.ema(b1, debias=False), optax.ema(b2, debias=False)

        def update(g, state, params=None):
            m, first = mean.update(g, state[0])
            v, second = square.update(jax.tree.map(jnp.square, g), state[1])
            return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), m, v), (first, second)

        return optax.GradientTransformation(lambda params: (mean.init(params), square.init(params)), update)

    optimizer(patch, scale_by_adam=scale)


def rmsprop_epsilon_inside_the_root(patch):
    optimizer(
        patch, scale_by_rms=lambda decay, eps, eps_in_sqrt: optax.scale_by_rms(decay, eps, eps_in_sqrt=not eps_in_sqrt)
    )


def meta_gradient_summed_over_tasks(patch):
    right = step.meta_gradient

    def summed(*arguments):
        gradient, results = right(*arguments)
        return jax.tree.map(lambda g: g * len(results.loss), gradient), results

    patch.setattr(step, "meta_gradient", summed)


# Each mutation, the case that it must fail, and quantities that must show it.
MUTATIONS = [
    (biased_running_variance, "first_order", {"buffer", "logits_train"}),
    (unbiased_batch_variance, "first_order", {"logits_train"}),
    (another_epsilon, "first_order", {"logits_train", "logits_eval"}),
    (running_statistics_move_by_nine_tenths, "first_order", {"buffer"}),
    (gradient_through_running_statistics, "first_order", {"grad"}),
    (running_statistics_never_move, "first_order", {"buffer"}),
    (query_normalised_by_its_own_batch, "first_order", {"logits_train"}),
    (evaluation_by_batch_moments_in_global_layers, "first_order", {"logits_eval"}),
    (training_by_running_statistics_in_global_layers, "first_order", {"logits_train", "buffer"}),
    (episodic_statistics_never_reset, "two_episodes", {"outer_losses"}),
    (global_statistics_of_the_last_episode, "two_episodes", {"buffer"}),
    (global_statistics_start_anew_at_each_step, "two_episodes", {"outer_losses"}),
    (decay_skipped, "first_order", {"logits_train"}),
    (decay_beside_the_momentum, "first_order", {"logits_train"}),
    (decay_not_on_normalisation, "first_order", {"logits_train"}),
    (momentum_skipped, "first_order", {"logits_train"}),
    (momentum_of_nesterov, "first_order", {"logits_train"}),
    (momentum_dampened, "first_order", {"logits_train"}),
    (momentum_buffer_not_reset, "first_order", {"logits_train"}),
    (first_order_detaches_the_decay_too, "first_order", {"grad"}),
    (first_order_detaches_the_momentum_too, "first_order", {"grad"}),
    (first_order_instead_of_second, "second_order", {"grad"}),
    (second_order_instead_of_first, "first_order", {"grad"}),
    (frozen_parameters_adapt, "first_order", {"logits_train"}),
    (frozen_parameters_are_not_meta_learned, "first_order", {"grad"}),
    (temperature_adapts, "first_order", {"logits_train"}),
    (rates_swapped, "first_order", {"logits_train"}),
    (one_step_more, "first_order", {"logits_train", "buffer"}),
    (support_loss_summed, "first_order", {"logits_train"}),
    (head_of_ones_instead_of_zeros, "zero_head", {"logits_eval"}),
    (head_layout_not_permuted, "first_order", {"logits_train"}),
    (kernels_mirrored, "first_order", {"logits_train"}),
    (meta_gradient_summed_over_tasks, "two_episodes", {"grad"}),
]


@pytest.mark.parametrize(
    ("mutation", "name", "shown_by"), MUTATIONS, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_wrong_port_is_caught(monkeypatch, mutation, name, shown_by):
    case(name)  # made by the right one
    mutation(monkeypatch)
    assert failures(name, shown_by) == shown_by


# The outer optimiser alone, on made-up gradients, tiny ones and ones to be clipped among them.


def outer_error(name):
    """Largest difference from the reference after three updates, relative to the largest weight."""
    rng = np.random.default_rng(0)
    sizes = {"a": np.array([[1.0], [30.0], [1e-3], [1e-8]]), "b": 1.0}
    start = {"a": rng.standard_normal((4, 3)) * (sizes["a"] > 1e-8), "b": rng.standard_normal(5)}
    gradients = [{n: sizes[n] * rng.standard_normal(p.shape) for n, p in start.items()} for _ in range(3)]
    return golden.tree_error(outer_in_jax(name, start, gradients), outer_in_torch(name, start, gradients))


def outer_in_jax(name, params, gradients):
    config = default.get_config()
    config.outer.optimizer, config.outer.rate, config.outer.weight_decay = name, 0.01, 0.1
    with jax.enable_x64(True):
        optimizer = experiment.build_outer(config)
        params = jax.tree.map(jnp.asarray, params)
        state = optimizer.init(params)
        for gradient in gradients:
            update, state = optimizer.update(jax.tree.map(jnp.asarray, gradient), state, params)
            params = optax.apply_updates(params, update)
        return jax.tree.map(np.asarray, params)


def outer_in_torch(name, params, gradients):
    params = {n: torch.tensor(value) for n, value in params.items()}
    rule = reference.OPTIMISERS[name](params.values(), lr=0.01, weight_decay=0.1)
    with pytest.MonkeyPatch.context() as patch:
        for gradient in gradients:
            grads = {n: torch.tensor(value) for n, value in gradient.items()}
            given = reference.MetaGradient(None, None, grads, {}, [])
            patch.setattr(reference, "meta_gradient", lambda *arguments, given=given: given)
            reference.outer_step(reference.ModelSpec(), reference.InnerSpec(), rule, params, {}, None)
    return {n: value.numpy() for n, value in params.items()}


@pytest.mark.parametrize("name", reference.OPTIMISERS)
def test_the_outer_optimiser_passes(name):
    assert outer_error(name) < 1e-12


@pytest.mark.parametrize(
    ("mutation", "name"),
    [
        (clip_missing, "sgd"),
        (clip_by_norm, "sgd"),
        (outer_decay_skipped, "sgd"),
        (outer_decay_skipped, "adam"),
        (outer_momentum_skipped, "sgd"),
        (adam_epsilon_inside_the_root, "adam"),
        (adam_bias_not_corrected, "adam"),
        (rmsprop_epsilon_inside_the_root, "rmsprop"),
    ],
)
def test_a_wrong_outer_optimiser_is_caught(monkeypatch, mutation, name):
    mutation(monkeypatch)
    assert outer_error(name) > 1e-6
