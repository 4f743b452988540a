"""The PyTorch yardstick held against calculus and against its own definitions: encoders and inner loop."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from parity.reference import (
    HEAD,
    TEMP,
    InnerSpec,
    ModelSpec,
    adapt,
    forward,
    init_params,
    meta_gradient,
    meta_loss,
    start,
)
from tests.parity.problem import close, problem, random_direction, slope

pytestmark = pytest.mark.usefixtures("one_thread")

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
