"""The PyTorch yardstick held against calculus, against its own definitions, and against the original's outputs."""

import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from parity import golden
from parity.reference import (
    CLIP,
    HEAD,
    OPTIMISERS,
    TEMP,
    Episodes,
    InnerSpec,
    ModelSpec,
    adapt,
    evaluate,
    forward,
    init_params,
    init_stats,
    meta_gradient,
    meta_loss,
    outer_step,
    start,
)

FIRST_CONV = "encoder.encoder.conv1.conv.weight"
FIRST_MEAN, FIRST_VAR = "encoder.encoder.conv1.bn.running_mean", "encoder.encoder.conv1.bn.running_var"
MIXED = {"conv1": "episodic", "conv2": "global", "conv3": "batch", "conv4": "global"}


@pytest.fixture(autouse=True)
def _one_thread():
    """Small shapes gain nothing from threads, and lose much where the processor is shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def problem(encoder="convnet4", *, norm="batch", episodes=2, way=2, shot=2, query=3, size=16, **head):
    """A small float64 model, its parameters and statistics, and random episodes."""
    spec = ModelSpec(encoder, way, size, norm, **head)
    generator = torch.Generator().manual_seed(0)
    params = init_params(spec, generator, torch.float64)
    for name, value in params.items():
        if value.ndim == 1:  # leave the special point of unit scales and zero shifts
            params[name] = value + 0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype)

    def images(count):
        return torch.rand(episodes, way * count, 3, size, size, generator=generator, dtype=torch.float64)

    def labels(count):
        return torch.arange(way).repeat_interleave(count).expand(episodes, -1)

    batch = Episodes(images(shot), labels(shot), images(query), labels(query))
    return spec, params, init_stats(spec, params), batch


def episode(batch, index):
    return Episodes(*(array[index : index + 1] for array in batch))


def close(actual, expected, tolerance=1e-10):
    assert actual.keys() == expected.keys()
    scale = max(value.abs().max() for value in expected.values())
    assert max((actual[name] - expected[name]).abs().max() for name in expected) <= tolerance * scale


def slope(function, params, direction, step=1e-6):
    """Central difference of `function` along `direction`."""
    ahead = function({name: value + step * direction[name] for name, value in params.items()})
    behind = function({name: value - step * direction[name] for name, value in params.items()})
    return (ahead - behind).item() / (2 * step)


def random_direction(params):
    generator = torch.Generator().manual_seed(1)
    return {
        n: torch.randn(p.shape, generator=generator, dtype=p.dtype) * p.std(correction=0) for n, p in params.items()
    }


# Encoders and initialisation


@pytest.mark.parametrize(
    ("encoder", "count"),
    [("convnet4", 32_901), ("wide-convnet4", 121_093), ("resnet12", 7_999_365), ("wide-resnet12", 12_427_525)],
)
def test_parameter_counts_are_the_originals(encoder, count):
    params = init_params(ModelSpec(encoder), torch.Generator())
    assert sum(value.numel() for value in params.values()) == count


@pytest.mark.parametrize(
    ("encoder", "size"),
    [("wide-convnet4", 35), ("resnet12", 17), ("resnet18", 17), ("wide-resnet18", 16), ("resnet18-standard", 15)],
)
def test_every_encoder_runs_at_any_size_and_uses_every_parameter(encoder, size):
    spec = ModelSpec(encoder, 3, size, temp=2, learn_temp=True)
    params = start(InnerSpec(), init_params(spec, torch.Generator().manual_seed(0)))
    logits, _ = forward(spec, params, {}, torch.rand(4, 3, size, size), support=True, training=True)
    assert logits.shape == (4, 3)
    grads = torch.autograd.grad(logits.square().sum(), list(params.values()))
    zero = [name for name, grad in zip(params, grads, strict=True) if not grad.any()]
    assert all(name.endswith("conv.bias") for name in zero)  # which batch moments may cancel exactly


def test_resnet18_has_one_block_per_stage_and_the_standard_one_two():
    def convolutions(encoder):
        params = init_params(ModelSpec(encoder, image_size=16), torch.Generator())
        return [name for name, value in params.items() if value.ndim == 4]

    # The stem; two per block; a shortcut in each of the three blocks that halve the map.
    assert len(convolutions("resnet18")) == 1 + 4 * 2 + 3
    assert len(convolutions("resnet18-standard")) == 1 + 8 * 2 + 3
    assert "encoder.layer2.res_conv.conv.weight" in convolutions("resnet18")
    assert "encoder.layer2.block1.res_conv.conv.weight" in convolutions("resnet18-standard")


def test_resnet_convolutions_start_at_the_fan_out_scale():
    params = init_params(ModelSpec("resnet12", image_size=16), torch.Generator().manual_seed(0))
    weight = params["encoder.layer2.conv1.weight"]
    assert weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.01)
    assert torch.equal(params["encoder.layer2.bn1.weight"], torch.ones(128))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"encoder": "resnet50"}, "resnet50"),
        ({"norm": "layer"}, "layer"),
        ({"norm": {"conv1": "instance"}}, "instance"),
    ],
)
def test_a_wrong_spec_is_refused(fields, word):
    with pytest.raises(ValueError, match=word):
        ModelSpec(**fields)


# Inner loop


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_meta_gradient_is_the_slope_of_the_meta_loss(momentum):
    spec, params, stats, batch = problem(temp=1.5, learn_temp=True)
    inner = InnerSpec(3, encoder_lr=0.1, classifier_lr=0.3, momentum=momentum, weight_decay=0.01, frozen=("bn",))
    direction = random_direction(params) | {TEMP: torch.tensor(0.7, dtype=torch.float64)}
    grads = meta_gradient(spec, inner, params, stats, batch).grads
    expected = slope(lambda p: meta_loss(spec, inner, start(inner, p), stats, batch), params, direction)
    assert sum((grads[name] * direction[name]).sum() for name in params).item() == pytest.approx(expected, rel=1e-6)
    assert abs(grads[TEMP]) > 1e-3


def test_no_gradient_flows_through_running_statistics():
    spec, params, stats, batch = problem(norm="episodic", episodes=1)
    inner = InnerSpec(2, encoder_lr=0.1, classifier_lr=0.1)
    support_x, support_y, query_x, query_y = (array[0] for array in batch)
    _, held = adapt(spec, inner, start(inner, params), stats, support_x, support_y)

    def loss_at_held_statistics(params):
        adapted, _ = adapt(spec, inner, start(inner, params), stats, support_x, support_y)
        return F.cross_entropy(forward(spec, adapted, held, query_x, support=False, training=True)[0], query_y)

    direction = random_direction(params)
    grads = meta_gradient(spec, inner, params, stats, batch).grads
    along = sum((grads[name] * direction[name]).sum() for name in params).item()
    assert along == pytest.approx(slope(loss_at_held_statistics, params, direction), rel=1e-6)
    total = slope(lambda p: meta_loss(spec, inner, start(inner, p), stats, batch), params, direction)
    assert along != pytest.approx(total, rel=1e-2)


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.05)])
def test_first_order_keeps_what_decay_and_momentum_contribute(momentum, weight_decay):
    """With constant gradients every adapted weight is linear in its start, by a factor that the recursion gives."""
    spec, params, stats, batch = problem(episodes=1)
    inner = InnerSpec(4, 0.1, 0.1, momentum, weight_decay, first_order=True)
    support_x, support_y, query_x, query_y = (array[0] for array in batch)
    adapted, after = adapt(spec, inner, start(inner, params), stats, support_x, support_y)
    leaves = start(inner, adapted)
    loss = F.cross_entropy(forward(spec, leaves, after, query_x, support=False, training=True)[0], query_y)
    factor, velocity = 1.0, 0.0
    for _ in range(inner.n_step):
        velocity = weight_decay * factor + momentum * velocity
        factor -= 0.1 * velocity
    at_adapted = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    grads = meta_gradient(spec, inner, params, stats, batch).grads
    close(grads, {name: factor * grad for name, grad in at_adapted.items()})
    second_order = meta_gradient(spec, replace(inner, first_order=False), params, stats, batch).grads
    with pytest.raises(AssertionError):
        close(grads, second_order, 1e-2)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_zero_head_leaves_the_first_encoder_step_to_weight_decay(weight_decay):
    spec, params, stats, batch = problem()
    inner = InnerSpec(1, 0.5, 0.5, weight_decay=weight_decay, reset_classifier=True)
    point = start(inner, params)
    adapted, _ = adapt(spec, inner, point, stats, batch.support_x[0], batch.support_y[0])
    for name, value in point.items():
        if name in HEAD:
            assert not value.any()
        else:
            assert torch.equal(adapted[name], value - 0.5 * (weight_decay * value) if weight_decay else value)
    assert adapted[HEAD[0]].any()  # its bias stays zero, as the classes are equally frequent


def test_frozen_parameters_and_temperature_are_meta_learned_but_not_adapted():
    spec, params, stats, batch = problem(learn_temp=True)
    inner = InnerSpec(2, 0.1, 0.1, weight_decay=0.1, frozen=("conv1", "bn", "linear.bias"))
    point = start(inner, params)
    adapted, _ = adapt(spec, inner, point, stats, batch.support_x[0], batch.support_y[0])
    still = {name for name in params if adapted[name] is point[name]}
    assert still == {n for n in params if "conv1" in n or "bn" in n or n in ("classifier.linear.bias", TEMP)}
    grads = meta_gradient(spec, inner, params, stats, batch).grads
    assert all(grads[name].any() for name in still if not name.endswith("conv.bias"))


def test_rates_of_zero_and_no_steps_mean_what_they_say():
    spec, params, stats, batch = problem()
    for inner in (InnerSpec(0), InnerSpec(2, 0.0, 0.0), InnerSpec(2, frozen=("",))):
        adapted, _ = adapt(spec, inner, start(inner, params), stats, batch.support_x[0], batch.support_y[0])
        assert all(torch.equal(adapted[name], params[name]) for name in params)
    head_only, _ = adapt(spec, InnerSpec(2, 0.0, 0.1), start(inner, params), stats, *(a[0] for a in batch[:2]))
    assert {name for name in params if not torch.equal(head_only[name], params[name])} == set(HEAD)


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


def replay(case):
    """What this reference outputs for a golden case, under the names of the recorded arrays."""
    spec = ModelSpec(case.encoder, case.n_way, case.image_size, case.norm, case.temp, case.learn_temp)
    inner = InnerSpec(**asdict(case.inner))
    params = {name: torch.from_numpy(value) for name, value in case.params.items()}
    stats = init_stats(spec, params)
    labels = (torch.from_numpy(y).expand(case.n_episode, -1) for y in (case.support_y, case.query_y))
    images = (torch.from_numpy(x) for x in (case.support_x, case.query_x))
    batch = Episodes(*(array for pair in zip(images, labels, strict=True) for array in pair))
    result = meta_gradient(spec, inner, params, stats, batch)
    outputs = {"logits_train": result.logits, "loss_train": result.loss}
    outputs["logits_eval"] = evaluate(spec, replace(inner, n_step=case.eval_n_step), params, stats, batch)
    outputs |= {f"grad/{name}": grad for name, grad in result.grads.items()}
    outputs |= {f"buffer/{name}": value for name, value in result.stats.items()}
    for i, after in enumerate(result.episode_stats):
        outputs |= {f"buffer/{name}_{i}": value for name, value in after.items() if spec.mode(name) == "episodic"}
    if case.outer is not None:
        optimiser = OPTIMISERS[case.outer.name](params.values(), lr=case.outer.lr, weight_decay=case.outer.weight_decay)
        losses = []
        for _ in range(case.outer.steps):
            step = outer_step(spec, inner, optimiser, params, stats, batch)
            stats = step.stats
            losses.append(step.loss)
        outputs["outer_losses"] = torch.stack(losses)
        outputs |= {f"outer_final/{name}": value for name, value in params.items()}
    return {name: value.numpy() for name, value in outputs.items()}


FOLDER = os.environ.get("MAML_JAX_GOLDEN")
CASES = sorted(Path(FOLDER).glob("*.npz")) if FOLDER else []


@pytest.mark.skipif(not FOLDER, reason="MAML_JAX_GOLDEN names no folder of golden cases")
def test_there_are_golden_cases():
    assert CASES


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_originals_outputs_are_reproduced(path):
    case = golden.read_case(path)
    errors = golden.compare(case, replay(case))
    print(case.name, {quantity: f"{error:.1e}" for quantity, error in errors.items()})
    tolerance = golden.TOLERANCE[case.dtype]
    assert all(error <= tolerance.get(quantity, tolerance["default"]) for quantity, error in errors.items()), errors
    assert {"logits_train", "loss_train", "logits_eval", "grad", "gradnorm"} <= errors.keys()
    assert np.isfinite(list(errors.values())).all()
