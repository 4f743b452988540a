"""Deliberately wrong ports: the comparison that passes with the right one must fail with each of them.

Everything runs without `jit`, where a change costs a run but no compilation, as all cases share their shapes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from maml_jax.config import default
from maml_jax.experiment.method import build_outer
from parity import golden, reference
from parity.check import check_case
from parity.golden import OuterArgs
from parity.grid import make_case
from tests.parity import inner_mutations, mutations

pytestmark = pytest.mark.usefixtures("one_thread")

MIXED = {"conv1": "episodic", "conv2": "global", "conv3": "episodic", "conv4": "global"}
RICH = {"momentum": 0.5, "weight_decay": 0.1, "temp": 2.0, "learn_temp": True, "frozen": ("conv2.bn",)}
# By name: options of `make_case`. No more steps than it takes, in training and in evaluation.
CASES = {
    "statistics": RICH | {"norm": MIXED, "first_order": True},
    "rule": RICH | {"first_order": True},
    "two_steps": RICH | {"first_order": True, "n_step": 2},
    "second_order": {"norm": MIXED},
    "zero_head": {"reset_classifier": True},
    "two_episodes": {"norm": MIXED, "first_order": True, "episodes": 2},
    "two_updates": {"norm": MIXED, "first_order": True, "episodes": 2, "outer": OuterArgs("sgd", 0.1, 0.1, 2)},
}
FORWARD = {"logits_train", "loss_train", "logits_eval", "buffer"}  # what takes no meta-gradient


@functools.cache
def case(name):
    common = {"image_size": 32, "episodes": 1, "n_step": 1, "eval_steps": 1}
    return make_case(name, **(common | CASES[name]))


def failures(name, quantities, change=lambda port: port):
    """The quantities that fail, of those given."""

    def changed(port):
        port = change(port)
        port = mutations.without_gradient(port) if quantities <= FORWARD else port
        return port if "logits_eval" in quantities else mutations.without_evaluation(port)

    with jax.disable_jit():
        results = check_case(case(name), change=changed)
    return {result.quantity for result in results if not result.passed} & quantities


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"two_episodes"}))  # which another one goes beyond
def test_the_port_passes(name):
    everything = FORWARD | {"grad", "gradnorm", "outer_losses", "outer_final"}
    assert failures(name, FORWARD if name == "zero_head" else everything) == set()


def test_parts_of_ones_own_pass():
    """Mutations are wrong for what they change, and not for being others."""

    def change(port):
        right = lambda momentum, decay: [optax.add_decayed_weights(decay), optax.trace(momentum)]  # noqa: E731
        return mutations.own_learner(mutations.norm(inner_mutations.rule(port, right)))

    assert failures("statistics", FORWARD, change) == set()


# Each mutation, the case that it must fail, and quantities that must show it.
MUTATIONS = [
    (mutations.biased_running_variance, "statistics", {"buffer", "logits_train"}),
    (mutations.unbiased_batch_variance, "statistics", {"logits_train"}),
    (mutations.another_epsilon, "statistics", {"logits_train", "logits_eval"}),
    (mutations.running_statistics_move_by_nine_tenths, "statistics", {"buffer"}),
    (mutations.gradient_through_running_statistics, "statistics", {"grad"}),
    (mutations.running_statistics_never_move, "statistics", {"buffer"}),
    (mutations.query_normalised_by_its_own_batch, "statistics", {"logits_train"}),
    (mutations.evaluation_by_batch_moments_in_global_layers, "second_order", {"logits_eval"}),
    (mutations.training_by_running_statistics_in_global_layers, "statistics", {"logits_train", "buffer"}),
    (mutations.episodic_statistics_never_reset, "two_updates", {"outer_losses"}),
    (mutations.global_statistics_of_the_last_episode, "two_episodes", {"buffer"}),
    (mutations.global_statistics_start_anew_at_each_step, "two_updates", {"outer_losses"}),
    (inner_mutations.decay_skipped, "rule", {"logits_train"}),
    (inner_mutations.decay_beside_the_momentum, "two_steps", {"logits_train"}),
    (inner_mutations.decay_not_on_normalisation, "rule", {"logits_train"}),
    (inner_mutations.momentum_skipped, "two_steps", {"logits_train"}),
    (inner_mutations.momentum_of_nesterov, "rule", {"logits_train"}),
    (inner_mutations.momentum_dampened, "rule", {"logits_train"}),
    (inner_mutations.momentum_buffer_not_reset, "rule", {"logits_train"}),
    (inner_mutations.first_order_detaches_the_decay_too, "rule", {"grad"}),
    (inner_mutations.first_order_detaches_the_momentum_too, "two_steps", {"grad"}),
    (inner_mutations.first_order_instead_of_second, "second_order", {"grad"}),
    (inner_mutations.second_order_instead_of_first, "rule", {"grad"}),
    (inner_mutations.frozen_parameters_adapt, "rule", {"logits_train"}),
    (inner_mutations.frozen_parameters_are_not_meta_learned, "rule", {"grad"}),
    (inner_mutations.temperature_adapts, "rule", {"logits_train"}),
    (inner_mutations.rates_swapped, "rule", {"logits_train"}),
    (mutations.one_step_more, "statistics", {"logits_train", "buffer"}),
    (inner_mutations.support_loss_summed, "rule", {"logits_train"}),
    (mutations.head_of_ones_instead_of_zeros, "zero_head", {"logits_eval"}),
    (mutations.head_layout_not_permuted, "rule", {"logits_train"}),
    (mutations.kernels_mirrored, "rule", {"logits_train"}),
    (mutations.meta_gradient_summed_over_tasks, "two_episodes", {"grad"}),
]


@pytest.mark.parametrize(("mutation", "name", "shown_by"), MUTATIONS, ids=[m.__name__ for m, *_ in MUTATIONS])
def test_a_wrong_port_is_caught(mutation, name, shown_by):
    assert failures(name, shown_by, mutation) == shown_by


# The outer optimiser alone, on made-up gradients, tiny ones and ones to be clipped among them.


def outer_error(name, ours):
    """Largest difference from the reference after three updates, relative to the largest weight."""
    rng = np.random.default_rng(0)
    sizes = {"a": np.array([[1.0], [30.0], [1e-3], [1e-8]]), "b": 1.0}
    start = {"a": rng.standard_normal((4, 3)) * (sizes["a"] > 1e-8), "b": rng.standard_normal(5)}
    gradients = [{n: sizes[n] * rng.standard_normal(p.shape) for n, p in start.items()} for _ in range(3)]
    return golden.tree_error(outer_in_jax(ours, start, gradients), outer_in_torch(name, start, gradients))


def outer_in_jax(optimizer, params, gradients):
    with jax.enable_x64(True):
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


def built(name):
    """The outer optimiser as the configuration gives it."""
    config = default()
    config.outer.optimizer, config.outer.rate, config.outer.weight_decay = name, 0.01, 0.1
    return build_outer(config)


def assembled(name, **other):
    """The same by hand, in which a test may put other parts."""
    rules = {
        "sgd": optax.trace(0.9),
        "adam": optax.scale_by_adam(0.9, 0.999, 1e-8),
        "rmsprop": optax.scale_by_rms(0.99, 1e-8, eps_in_sqrt=False),
    }
    right = {"clip": optax.clip(10.0), "decay": optax.add_decayed_weights(0.1), "rule": rules[name]}
    return optax.chain(*(right | other).values(), optax.scale_by_learning_rate(0.01))


@pytest.mark.parametrize("name", reference.OPTIMISERS)
@pytest.mark.parametrize("make", [built, assembled])
def test_the_outer_optimiser_passes(name, make):
    assert outer_error(name, make(name)) < 1e-12


def adam_without_correction():
    mean, square = optax.ema(0.9, debias=False), optax.ema(0.999, debias=False)

    def update(g, state, params=None):
        m, first = mean.update(g, state[0])
        v, second = square.update(jax.tree.map(jnp.square, g), state[1])
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + 1e-8), m, v), (first, second)

    return optax.GradientTransformation(lambda params: (mean.init(params), square.init(params)), update)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("sgd", {"clip": optax.identity()}),
        ("sgd", {"clip": optax.clip_by_global_norm(10.0)}),
        ("sgd", {"decay": optax.identity()}),
        ("adam", {"decay": optax.identity()}),
        ("sgd", {"rule": optax.identity()}),
        ("adam", {"rule": optax.scale_by_adam(0.9, 0.999, 0.0, 1e-8)}),
        ("adam", {"rule": adam_without_correction()}),
        ("rmsprop", {"rule": optax.scale_by_rms(0.99, 1e-8, eps_in_sqrt=True)}),
    ],
    ids=[
        "clip_missing",
        "clip_by_norm",
        "outer_decay_skipped",
        "outer_decay_skipped_in_adam",
        "outer_momentum_skipped",
        "adam_epsilon_inside_the_root",
        "adam_bias_not_corrected",
        "rmsprop_epsilon_inside_the_root",
    ],
)
def test_a_wrong_outer_optimiser_is_caught(name, wrong):
    assert outer_error(name, assembled(name, **wrong)) > 1e-6
