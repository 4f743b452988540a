"""Intervals that hold what they say, and the rest of the audit's arithmetic, against the plain way to do it."""

import itertools

import numpy as np
import pytest
import scipy.stats

from maml_jax.audit import dealing, statistics

DRAWS = 2000


def covered(intervals, truth):
    """Share of (mean, half width) that hold the truth."""
    return np.mean([abs(mean - truth) <= width for mean, width in intervals])


def test_estimate():
    found = statistics.estimate(np.array([0.2, 0.4, 0.6]))
    assert found == {"value": pytest.approx(0.4), "ci95": pytest.approx(4.302653 * 0.2 / np.sqrt(3)), "n_tasks": 3}
    assert statistics.estimate(np.array([0.5]))["ci95"] is None


def test_paired():
    rng = np.random.default_rng(0)
    a = rng.random(50)
    b = a - 0.1 + 0.05 * rng.standard_normal(50)
    found = statistics.paired(a, b)
    d = a - b
    assert found["value"] == pytest.approx(d.mean())
    reference = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
    assert found["ci95"] == pytest.approx((reference.high - reference.low) / 2)
    assert found["correlation"] == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert statistics.paired(a, np.ones(50))["correlation"] is None
    assert statistics.paired(a, a)["tasks_for_this_gap"] is None


@pytest.mark.parametrize(("deviation", "gap"), [(0.1, 0.01), (0.1, 0.09), (0.05, 0.2), (0.0, 0.1), (1.0, -0.05)])
def test_tasks_needed(deviation, gap):
    width = lambda n: scipy.stats.t.ppf(0.975, n - 1) * deviation / np.sqrt(n)  # noqa: E731
    expected = next(n for n in itertools.count(2) if width(n) < abs(gap))
    assert statistics.tasks_needed(deviation, gap) == expected
    assert statistics.tasks_needed(deviation, 0.0) is None
    assert statistics.tasks_needed(0.1, 1e-7) > 10**10


def test_running():
    values = np.random.default_rng(0).random(40)
    n, mean, width = statistics.running(values)
    for i, count in enumerate(n):
        found = statistics.estimate(values[:count])
        assert (mean[i], width[i]) == (pytest.approx(found["value"]), pytest.approx(found["ci95"]))
    assert list(n) == list(range(2, 41))


def test_calibration_error():
    rng = np.random.default_rng(0)
    confidence = rng.random(1000)
    confidence[:3] = 1.0, 1 / 15, 0.2  # edges belong to the bin below
    right = rng.random(1000) < confidence**2
    expected = 0.0
    for low in range(15):
        chosen = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if chosen.any():
            expected += chosen.mean() * abs(right[chosen].mean() - confidence[chosen].mean())
    assert statistics.calibration_error(confidence, right) == pytest.approx(expected, rel=1e-9)
    assert statistics.calibration_error(np.ones(10), np.ones(10, bool)) == 0
    assert statistics.calibration_error(np.full(10, 0.75), np.arange(10) % 2 == 0) == pytest.approx(0.25)
    found = statistics.calibration(confidence.reshape(100, 10), right.reshape(100, 10))
    assert found["value"] == pytest.approx(expected)
    assert 0 < found["ci95"] < 0.1


def test_jackknife():
    rng = np.random.default_rng(0)
    classes = np.stack([rng.permutation(8)[:3] for _ in range(30)])
    values = rng.random(30)
    found = statistics.jackknife(values, classes, 10)  # two classes were never drawn
    means = [values[~(classes == c).any(1)].mean() for c in range(8)]
    deviation = np.sqrt(7 / 8 * np.square(np.array(means) - np.mean(means)).sum())
    assert found["ci95"] == pytest.approx(scipy.stats.t.ppf(0.975, 7) * deviation)
    assert (found["value"], found["n_classes"], found["n_tasks"]) == (pytest.approx(values.mean()), 8, 30)
    assert statistics.jackknife(values, np.zeros((30, 1), int), 1) is None
    assert statistics.jackknife(values, np.tile(np.arange(3), (30, 1)), 3) is None  # all classes in every task


def test_unpaired():
    rng = np.random.default_rng(0)
    a, b = rng.random(40), rng.random(70) ** 2
    found = statistics.unpaired(a, b)
    reference = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert found["value"] == pytest.approx(a.mean() - b.mean())
    assert found["ci95"] == pytest.approx((reference.high - reference.low) / 2)
    assert statistics.unpaired(np.ones(3), np.ones(4))["ci95"] == 0


SHAPES = {"even": (4, 4), "high": (18, 2), "near one": (10, 0.5)}  # the last: skewness of -3


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("tasks", [60, 600])
def test_the_interval_over_tasks_covers(shape, tasks):
    """Closed: tasks drawn anew from the same classes, accuracies of 75 queries each."""
    rng = np.random.default_rng(1)
    truth = shape[0] / sum(shape)
    accuracies = rng.binomial(75, rng.beta(*shape, (DRAWS, tasks))) / 75
    found = [statistics.estimate(row) for row in accuracies]
    assert 0.93 <= covered(((f["value"], f["ci95"]) for f in found), truth) <= 0.97


def test_the_interval_of_disjoint_tasks_covers_where_that_of_the_usual_ones_does_not():
    """Open: images differ in difficulty, and the split has few; the truth is of all images there could be."""
    rng = np.random.default_rng(2)
    classes, per_class, way, images = 30, 8, 5, 4
    truth, counts = 0.9, np.full(classes, per_class)
    offsets = np.arange(classes) * per_class
    disjoint = np.stack([dealing.disjoint(i, counts, way, images, 100) for i in range(20)])
    usual, open_ = [], []
    for draw in range(DRAWS):
        skill = rng.beta(9, 1, classes * per_class)  # of an image, skewed
        fixed = disjoint[draw % len(disjoint)]
        own = skill[fixed].mean((1, 2))
        open_.append(statistics.estimate(own))
        chosen = rng.random((200, classes)).argsort(1)[:, :way]
        within = rng.random((200, way, per_class)).argsort(2)[..., :images]
        usual.append(statistics.estimate(skill[offsets[chosen][..., None] + within].mean((1, 2))))
    share = [covered(((f["value"], f["ci95"]) for f in found), truth) for found in (open_, usual)]
    assert 0.93 <= share[0] <= 0.97
    assert share[1] < 0.8  # images come again and again


def test_the_jackknife_covers_other_classes():
    rng = np.random.default_rng(3)
    count, way, tasks = 60, 5, 3000
    classes = rng.random((tasks, count)).argsort(1)[:, :way]
    truth, found = 18 / 20, []
    for _ in range(DRAWS):
        skill = rng.beta(18, 2, count)  # of a class
        found.append(statistics.jackknife(skill[classes].mean(1) + rng.normal(0, 0.02, tasks), classes, count))
    assert 0.93 <= covered(((f["value"], f["ci95"]) for f in found), truth) <= 0.97
