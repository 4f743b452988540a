"""The reference's statistics and outer loop, and the original's outputs."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from parity import golden, golden_file, replay
from parity.reference import (
    CLIP,
    HEAD,
    OPTIMISERS,
    InnerSpec,
    adapt,
    evaluate,
    forward,
    meta_gradient,
    meta_loss,
    outer_step,
    start,
)
from tests.parity.problem import FIRST_CONV, FIRST_MEAN, FIRST_VAR, MIXED, close, episode, problem

pytestmark = pytest.mark.usefixtures("one_thread")

# Statistics


def test_running_statistics_follow_the_support_set():
    spec, params, stats, batch = problem(norm="episodic")
    inner = InnerSpec(5, frozen=("conv1",))  # so that the first layer sees the same maps at every step
    stale = {name: value + 3 for name, value in stats.items()}
    _, after = adapt(spec, inner, start(inner, params), stale, batch.support_x[0], batch.support_y[0])
    maps = F.conv2d(batch.support_x[0], params[FIRST_CONV], params[FIRST_CONV.replace("weight", "bias")], padding=1)
    mean, var = maps.mean((0, 2, 3)), maps.var((0, 2, 3), correction=1)
    close({"mean": after[FIRST_MEAN]}, {"mean": (1 - 0.9**5) * mean})
    close({"var": after[FIRST_VAR]}, {"var": 0.9**5 + (1 - 0.9**5) * var})


def test_every_mode_does_its_part_in_one_encoder():
    spec, params, stats, batch = problem(norm=MIXED, episodes=1)
    assert {name.split(".")[2] for name in stats} == {"conv1", "conv2", "conv4"}
    result = meta_gradient(spec, InnerSpec(2), params, stats, batch)
    changed = {name.split(".")[2] for name in stats if not torch.equal(result.stats[name], stats[name])}
    assert changed == {"conv2", "conv4"}
    close(
        {n: v for n, v in result.stats.items() if "conv1" not in n},
        {n: v for n, v in result.episode_stats[0].items() if "conv1" not in n},
    )
    assert not torch.equal(result.episode_stats[0][FIRST_MEAN], stats[FIRST_MEAN])


def test_episodes_share_their_start_and_average_global_updates():
    spec, params, stats, batch = problem(norm="global", episodes=3)
    together = meta_gradient(spec, InnerSpec(2), params, stats, batch)
    alone = [meta_gradient(spec, InnerSpec(2), params, stats, episode(batch, i)) for i in range(3)]
    close(together.stats, {name: sum(result.stats[name] for result in alone) / 3 for name in stats})
    close(together.grads, {name: sum(result.grads[name] for result in alone) / 3 for name in params})
    close({"": together.logits}, {"": torch.cat([result.logits for result in alone])})


def test_global_statistics_are_used_but_not_touched_in_evaluation():
    spec, params, stats, batch = problem(norm="global")
    stats = meta_gradient(spec, InnerSpec(2), params, stats, batch).stats
    inner, support = InnerSpec(1, 0.1, 0.1), (batch.support_x[0], batch.support_y[0])
    point = start(inner, params)
    adapted, after = adapt(spec, inner, point, stats, *support, training=False)
    assert all(after[name] is stats[name] for name in stats)
    # In evaluation a support image's logits do not depend on the rest of its batch; in training they do.
    whole, _ = forward(spec, point, stats, support[0], support=True, training=False)
    single, _ = forward(spec, point, stats, support[0][:1], support=True, training=False)
    close({"": whole[:1]}, {"": single})
    trained, _ = adapt(spec, inner, point, stats, *support, training=True)
    assert not torch.allclose(trained[FIRST_CONV], adapted[FIRST_CONV])
    query, _ = forward(spec, adapted, stats, batch.query_x[0], support=False, training=False)
    close({"": evaluate(spec, inner, params, stats, batch)[0]}, {"": query.detach()})


def test_evaluation_equals_training_where_nothing_is_global():
    spec, params, stats, batch = problem(norm={**MIXED, "conv2": "episodic", "conv4": "batch"})
    result = meta_gradient(spec, InnerSpec(2), params, stats, batch)
    close({"": evaluate(spec, InnerSpec(2), params, stats, batch)}, {"": result.logits})


# Outer loop


@pytest.mark.parametrize("first_order", [False, True])
def test_one_backward_per_episode_equals_one_for_all(first_order):
    spec, params, stats, batch = problem(norm=MIXED, episodes=3, learn_temp=True)
    inner = InnerSpec(2, 0.1, 0.1, 0.9, 0.01, first_order, reset_classifier=True)
    result, point = meta_gradient(spec, inner, params, stats, batch), start(inner, params)
    loss = meta_loss(spec, inner, point, stats, batch)
    close(result.grads, dict(zip(point, torch.autograd.grad(loss, list(point.values())), strict=True)))
    over_all_queries = F.cross_entropy(result.logits.flatten(0, 1), batch.query_y.flatten())
    close({"": result.loss}, {"": over_all_queries})
    close({"": result.loss}, {"": loss.detach()})


def test_only_the_outer_step_modifies_its_arguments():
    spec, params, stats, batch = problem(norm=MIXED)
    kept = [{name: value.clone() for name, value in tree.items()} for tree in (params, stats)]
    inner = InnerSpec(1, reset_classifier=True)
    meta_gradient(spec, inner, params, stats, batch)
    evaluate(spec, inner, params, stats, batch)
    for tree, before in zip((params, stats), kept, strict=True):
        assert all(torch.equal(tree[name], before[name]) for name in before)
        assert not any(value.requires_grad for value in tree.values())


@pytest.mark.parametrize("name", list(OPTIMISERS))
def test_first_outer_step_by_hand(name):
    spec, params, stats, batch = problem(temp=300.0)  # steep enough that clipping matters
    lr, decay = 1e-3, 0.1
    before = {key: value.clone() for key, value in params.items()}
    grads = meta_gradient(spec, InnerSpec(1), params, stats, batch).grads
    assert max(grad.abs().max() for grad in grads.values()) > CLIP
    outer_step(spec, InnerSpec(1), OPTIMISERS[name](params.values(), lr=lr, weight_decay=decay), params, stats, batch)
    for key, grad in grads.items():
        grad = grad.clamp(-CLIP, CLIP) + decay * before[key]
        step = {"sgd": grad, "adam": grad / (grad.abs() + 1e-8), "rmsprop": grad / (0.1 * grad.abs() + 1e-8)}[name]
        torch.testing.assert_close(params[key], before[key] - lr * step, rtol=0, atol=1e-9)


def test_outer_loop_resets_the_head_and_learns():
    spec, params, stats, batch = problem(norm="episodic")
    inner = InnerSpec(2, 0.1, 0.1, reset_classifier=True)
    optimiser = OPTIMISERS["sgd"](params.values(), lr=0.1)
    first = outer_step(spec, inner, optimiser, params, stats, batch)
    assert torch.equal(params[HEAD[1]], -0.1 * first.grads[HEAD[1]])  # from zero, not from where it was
    second = outer_step(spec, inner, optimiser, params, stats, batch)
    momentum = 0.9 * first.grads[HEAD[1]] + second.grads[HEAD[1]]
    torch.testing.assert_close(params[HEAD[1]], -0.1 * momentum, rtol=0, atol=1e-12)
    losses = [outer_step(spec, inner, optimiser, params, stats, batch).loss for _ in range(6)]
    assert losses[-1] < first.loss


# The original


FOLDER = os.environ.get("MAML_JAX_GOLDEN")
CASES = sorted(Path(FOLDER).glob("*.npz")) if FOLDER else []


@pytest.mark.skipif(not FOLDER, reason="MAML_JAX_GOLDEN names no folder of golden cases")
def test_there_are_golden_cases():
    assert CASES


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_originals_outputs_are_reproduced(path):
    case = golden_file.read_case(path)
    errors = golden.compare(case, replay.in_torch(case))
    print(case.name, {quantity: f"{error:.1e}" for quantity, error in errors.items()})
    tolerance = golden.TOLERANCE[case.dtype]
    assert all(error <= tolerance.get(quantity, tolerance["default"]) for quantity, error in errors.items()), errors
    assert {"logits_train", "loss_train", "logits_eval", "grad", "gradnorm"} <= errors.keys()
    assert np.isfinite(list(errors.values())).all()
