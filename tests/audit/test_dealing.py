"""What the audit draws by itself."""

import itertools

import numpy as np
import pytest

from maml_jax.audit import dealing, measures
from maml_jax.data.sampler import ImageTasks, TaskSpec
from maml_jax.data.store import ClassStore
from maml_jax.evaluate import EachTask


def test_imbalanced_query_sets():
    for alpha in (0.5, 2.0, np.inf):
        rows = dealing.imbalanced(3, 200, 5, 15, alpha)
        assert rows.shape == (200, 15)
        assert all(len(set(row)) == 15 for row in rows)
        assert rows.min() >= 0
        assert rows.max() < 75
        counts = np.stack([np.bincount(row // 15, minlength=5) for row in rows])
        if np.isinf(alpha):
            assert (counts == 3).all()
        else:  # of Dirichlet shares: variance (w - 1) / (w² (wα + 1)), and what rounding adds
            expected = 15**2 * 4 / (25 * (5 * alpha + 1))
            assert abs(counts.var() - expected) < 0.15 * expected + 0.2


def test_others_never_meet():
    one, two = dealing.others(0, 3, 40)
    for t, query in itertools.product(range(3), range(40)):
        company = [*one[t, query], *two[t, query]]
        assert len({query, *company}) == 19
        assert 0 <= min(company) <= max(company) < 40
    assert dealing.others(0, 1, 6)[0].shape == (1, 6, 2)


def test_label_orders_that_are_taken():
    assert len({tuple(order) for order in dealing.orders(0, 5)}) == 120
    many = dealing.orders(0, 20)
    assert many.shape == (24, 20)
    assert (np.sort(many) == np.arange(20)).all()
    assert (many[0] == np.arange(20)).all()


@pytest.mark.parametrize("counts", [[20] * 12, [7, 30, 12, 5, 50, 9], [3, 3]])
def test_disjoint_tasks(counts):
    places = dealing.disjoint(0, np.array(counts), 3, 4, 100)
    assert len(set(places.ravel())) == places.size  # no image twice
    offsets = np.concatenate([[0], np.cumsum(counts)])
    of = np.searchsorted(offsets, places, side="right") - 1
    assert (of == of[..., :1]).all()
    assert all(len(set(row)) == 3 for row in of[..., 0])
    left = np.array(counts) - np.bincount(of.ravel(), minlength=len(counts))
    assert (left >= 4).sum() < 3  # until classes run out
    assert len(dealing.disjoint(0, np.array(counts), 3, 4, 1)) <= 1


def test_the_disjoint_tasks_that_are_fed_are_those_that_were_dealt():
    rng = np.random.default_rng(0)
    store = ClassStore(rng.integers(0, 256, (40, 2, 2, 1), np.uint8), np.arange(5) * 10, tuple("abcd"), "test")
    spec = TaskSpec(0, "test", 3, 1, 4)
    places = dealing.disjoint(0, store.counts, 3, 3, 100)  # two queries
    seen = lambda params, stats, e: {"support": e.support_x, "query": e.query_x, "y": e.query_y}  # noqa: E731
    run = EachTask(seen, at_least=1)
    tasks = ImageTasks(spec, store.images, store.offsets)
    feed = measures._Dealt(tasks.spec, store, places, run.per_call)
    found = run({}, {}, feed, len(places))
    images = store.images[places] / np.float32(255)
    np.testing.assert_allclose(found["support"], images[:, :, 0], rtol=1e-6)
    np.testing.assert_allclose(found["query"].reshape(len(places), 3, 2, 2, 2, 1), images[:, :, 1:], rtol=1e-6)
    np.testing.assert_array_equal(found["y"][0], [0, 0, 1, 1, 2, 2])
