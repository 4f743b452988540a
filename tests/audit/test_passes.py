"""What is computed of a task, against NumPy on a model whose answers are known."""

import itertools

import jax
import numpy as np
import pytest

from maml_jax.audit import dealing, passes, summary
from maml_jax.meta.inner import InnerLoop, all_but, sgd
from maml_jax.meta.method import evaluate_task
from maml_jax.meta.outer import Maml
from tests.audit.toy import POOL, STEPS, WAY, ask, descend, each, episode, first, method, softmax
from tests.helpers import image_tasks, small


@pytest.mark.parametrize("norm", ["batch", "metabn"])
def test_query_sets(norm):
    alphas = {"0.5": 0.5, "inf": np.inf}
    drawn = [dealing.imbalanced(0, 6, WAY, POOL, alpha) for alpha in alphas.values()]
    found = each(passes.rows(method(norm), STEPS, WAY, (1, 2, POOL), tuple(alphas)), 6, *drawn)
    for t in range(6):
        task = episode(t)
        p = descend(task, STEPS)
        for size in (1, 2, POOL):
            np.testing.assert_array_equal(found[f"predictions_{size}"][t], ask(p, task, norm, first(size)).argmax(1))
        for name, rows in zip(alphas, drawn, strict=True):
            np.testing.assert_array_equal(found[f"imbalanced_{name}"][t], ask(p, task, norm, rows[t]).argmax(1))
        probabilities = softmax(ask(p, task, norm, np.arange(WAY * POOL)))
        np.testing.assert_allclose(found["confidence"][t], probabilities.max(1), rtol=1e-4)
        true = probabilities[np.arange(WAY * POOL), task.query_y]
        np.testing.assert_allclose(found["nll"][t], -np.log(true), rtol=1e-3, atol=1e-5)


def test_protocol_and_nearest_neighbour():
    found = each(passes.protocol(method(), STEPS, WAY, 2), 5)
    for t in range(5):
        task = episode(t)
        outputs = ask(descend(task, STEPS), task, "batch", first(2))
        y = task.query_y[first(2)]
        np.testing.assert_array_equal(found["predictions"][t], outputs.argmax(1))
        np.testing.assert_allclose(found["losses"][t], -np.log(softmax(outputs)[range(len(y)), y]).mean(), rtol=1e-4)
        distance = np.linalg.norm(task.query_x[first(2)][:, None] - task.support_x[None], axis=-1)
        np.testing.assert_array_equal(found["nearest"][t], task.support_y[distance.argmin(1)])


@pytest.mark.parametrize(("norm", "leaks"), [("batch", True), ("metabn", False), ("leaky", True)])
def test_leaks(norm, leaks):
    """A query's answer is asked for among two sets of others; a leak that was planted is seen."""
    one, two = dealing.others(0, 8, WAY * POOL)
    found = each(passes.leaks(method(norm), STEPS), 8, one, two)
    assert found["changed"].shape == (8, WAY * POOL)
    assert found["changed"].any() == leaks
    assert (found["moved"] > 0).all() == leaks
    if not leaks:
        assert not found["moved"].any()
    for t, query in itertools.product(range(3), range(WAY * POOL)):
        task = episode(t)
        p = descend(task, STEPS)
        a, b = (ask(p, task, norm, [query, *rows[t, query]])[0] for rows in (one, two))
        assert found["changed"][t, query] == (a.argmax() != b.argmax())
        np.testing.assert_allclose(found["moved"][t, query], np.abs(a - b).max(), rtol=1e-3, atol=1e-5)


def test_label_orders():
    orders = dealing.orders(0, WAY)
    found = each(passes.label_orders(method(), STEPS, orders), 3)["accuracies"]
    assert found.shape == (3, 6)
    for t, (i, order) in itertools.product(range(3), enumerate(orders)):
        task = episode(t)
        outputs = ask(descend(task, STEPS, y=order[task.support_y]), task, "batch", np.arange(WAY * POOL))
        np.testing.assert_allclose(found[t, i], (outputs.argmax(1) == order[task.query_y]).mean(), rtol=1e-6)
    assert found.std(1).max() > 0
    made = summary.label_order({"accuracies": found, "orders": orders})
    np.testing.assert_allclose(made["value"], found.std(1).mean(), rtol=1e-6)
    np.testing.assert_allclose(made["best"]["value"], found.max(1).mean(), rtol=1e-6)
    assert made["all_orders"]


@pytest.mark.parametrize("starts", ["shared", "prototypes", "meta"])
def test_a_head_from_zero_is_that_of_a_model_which_has_it(starts):
    tasks = image_tasks(way=3, query=5)
    method, zero = (Maml(small(starts=s, way=3, blocks=1), InnerLoop(sgd(0.1)), steps=2) for s in (starts, "zero"))
    params, stats = method.init(jax.random.key(0), tasks.sample(0))
    found = jax.jit(passes.adaptation(method, 2, 3, 5))
    for t in range(4):
        task = tasks.sample(t)
        expected = evaluate_task(zero, params, stats, task, 2).accuracy
        np.testing.assert_allclose(found(params, stats, task)["head_from_zero"], expected, rtol=1e-6)


def test_no_head_from_zero_where_that_is_the_model_or_says_nothing():
    fixed = InnerLoop(sgd(0.1), all_but("head"))
    assert "head_from_zero" not in passes.variants(Maml(small(starts="zero"), InnerLoop(sgd(0.1)), steps=2))
    assert "head_from_zero" not in passes.variants(Maml(small(), fixed, steps=2))


@pytest.mark.parametrize("starts", ["zero", "shared", "prototypes", "meta"])
def test_the_order_of_labels_makes_a_difference_to_a_head_learned_by_label_only(starts):
    orders, tasks = dealing.orders(0, 3), image_tasks(way=3, query=5)
    learned = Maml(small(starts=starts, way=3, blocks=1), InnerLoop(sgd(0.1)), steps=2)
    params, stats = learned.init(jax.random.key(0), tasks.sample(0))
    figures = jax.jit(passes.label_orders(learned, 2, orders))
    spread = np.ptp([figures(params, stats, tasks.sample(i))["accuracies"] for i in range(8)], axis=1)
    assert (spread > 0).any() == (starts == "meta")


def test_the_order_of_labels_makes_no_difference_to_a_head_of_zeros():
    orders = dealing.orders(0, WAY)
    found = each(passes.label_orders(method(zero_head=True), STEPS, orders), 20)["accuracies"]
    assert summary.label_order({"accuracies": found, "orders": orders})["value"] == 0.0


def test_adaptation():
    found = each(passes.adaptation(method(), STEPS, WAY, POOL), 4)
    assert found["accuracies"].shape == (4, 2 * STEPS + 1)
    everything = np.arange(WAY * POOL)
    right = lambda p, task: (ask(p, task, "batch", everything).argmax(1) == task.query_y).mean()  # noqa: E731
    for t in range(4):
        task = episode(t)
        for k in range(2 * STEPS + 1):
            p = descend(task, k)
            np.testing.assert_allclose(found["accuracies"][t, k], right(p, task), rtol=1e-6)
            probabilities = softmax(ask(p, task, "batch", everything))[everything, task.query_y]
            np.testing.assert_allclose(found["losses"][t, k], -np.log(probabilities).mean(), rtol=1e-3)
        head, body = (descend(task, STEPS, adapts=which) for which in (("kernel", "bias"), ("scale",)))
        np.testing.assert_allclose(found["head_only"][t], right(head, task), rtol=1e-6)
        np.testing.assert_allclose(found["body_only"][t], right(body, task), rtol=1e-6)
        for name, steps in (("before", 0), ("after", STEPS)):
            scale = descend(task, steps)["scale"]
            support = (task.support_x - task.support_x.mean(0)) * scale
            query = (task.query_x - task.query_x.mean(0)) * scale
            means = np.stack([support[task.support_y == c].mean(0) for c in range(WAY)])
            nearest = np.linalg.norm(query[:, None] - means, axis=-1).argmin(1)
            np.testing.assert_allclose(found[f"means_{name}"][t], (nearest == task.query_y).mean(), rtol=1e-6)
