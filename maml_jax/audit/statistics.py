"""What means of tasks are worth: intervals, paired differences, calibration. NumPy only."""

import math
from typing import Any

import numpy as np
import scipy.stats

from maml_jax.evaluate import interval95

BINS = 15
_POINT = 0.01  # of accuracy
_RESAMPLES = 200
_NOTHING = 1e-9  # a difference that is rounding
_COUNTED = 10**6  # tasks, beyond which t is as good as normal


def estimate(values: np.ndarray) -> dict[str, Any]:
    """The mean over tasks `[tasks]` and half the width of its 95 % Student-t interval."""
    values = np.asarray(values, np.float64)
    ci95 = float(interval95(values)) if len(values) > 1 else None
    return {"value": float(values.mean()), "ci95": ci95, "n_tasks": len(values)}


def paired(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """The mean difference first - second of two measures `[tasks]` of the same tasks: d ± t s_d / √T.

    Beside it stand the correlation of the two, None if one of them is constant, and how many tasks it takes for a
    difference of one point, and of the size found, to lie outside its interval.
    """
    first, second = (np.asarray(values, np.float64) for values in (first, second))
    difference = first - second
    found = estimate(difference)
    varied = len(difference) > 1 and first.std() > 0 and second.std() > 0
    deviation = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    return {
        **found,
        "correlation": float(np.corrcoef(first, second)[0, 1]) if varied else None,
        "tasks_for_one_point": tasks_needed(deviation, _POINT),
        "tasks_for_this_gap": tasks_needed(deviation, found["value"]),
    }


def tasks_needed(deviation: float, gap: float) -> int | None:
    """The fewest tasks T with t s / √T < |gap|, t of T - 1 degrees of freedom; None if there is no gap to be seen.

    Args:
      deviation: s, of a task's difference.
      gap: the size of difference that is to be seen.
    """
    gap = abs(gap)
    if gap < _NOTHING:
        return None
    tasks = max(2, math.ceil((scipy.stats.norm.ppf(0.975) * deviation / gap) ** 2))  # too few, as t is larger
    while tasks < _COUNTED and scipy.stats.t.ppf(0.975, tasks - 1) * deviation >= gap * math.sqrt(tasks):
        tasks += 1
    return tasks


def jackknife(values: np.ndarray, classes: np.ndarray, count: int) -> dict[str, Any] | None:
    """The mean over tasks with an interval for other classes: each class in turn is left out, with its tasks.

    Var = (C - 1) / C Σ (m_c - m̄)², where m_c is the mean over tasks without class c (Efron & Stein 1981).

    Args:
      values: of each task, `[tasks]`.
      classes: which classes it is made of, int `[tasks, way]`, each once.
      count: C, classes of the split.

    Returns:
      None if fewer than two classes can be left out with tasks remaining.
    """
    values = np.asarray(values, np.float64)
    left_out, sums = np.zeros(count), np.zeros(count)
    np.add.at(left_out, classes, 1.0)
    np.add.at(sums, classes, values[:, None])
    drawn = left_out > 0
    if drawn.sum() < 2 or left_out.max() >= len(values):
        return None
    means = (values.sum() - sums[drawn]) / (len(values) - left_out[drawn])
    n = len(means)
    deviation = math.sqrt((n - 1) / n * np.square(means - means.mean()).sum())
    ci95 = float(scipy.stats.t.ppf(0.975, n - 1) * deviation)
    return {"value": float(values.mean()), "ci95": ci95, "n_tasks": len(values), "n_classes": n}


def running(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many tasks, the mean over the first so many, and half the width of its 95 % interval: each `[tasks - 1]`."""
    values = np.asarray(values, np.float64)
    n = np.arange(1, len(values) + 1)
    mean = np.cumsum(values) / n
    squares = np.cumsum(np.square(values - values.mean()))  # taken about the mean: few digits are lost
    shifted = mean - values.mean()
    variance = np.maximum(squares - n * np.square(shifted), 0)[1:] / (n[1:] - 1)
    return n[1:], mean[1:], scipy.stats.t.ppf(0.975, n[1:] - 1) * np.sqrt(variance / n[1:])


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """The expected calibration error: Σ_b n_b / n |accuracy_b - confidence_b| (Guo et al. 2017, arXiv:1706.04599).

    Args:
      confidence: the probability of the predicted class, `[queries]`.
      right: whether the prediction is right, `[queries]`.
      bins: of equal width, in (0, 1].
    """
    of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(of, np.asarray(right, np.float64) - confidence, bins)
    return float(np.abs(gaps).sum() / len(confidence))


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> dict[str, Any]:
    """The expected calibration error of `[tasks, queries]` with an interval from resampled tasks (fixed seed)."""
    rng, tasks = np.random.default_rng(0), len(confidence)
    value = calibration_error(confidence.ravel(), right.ravel(), bins)
    draws = []
    for _ in range(_RESAMPLES):
        chosen = rng.integers(0, tasks, tasks)
        draws.append(calibration_error(confidence[chosen].ravel(), right[chosen].ravel(), bins))
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"value": value, "ci95": float((high - low) / 2), "n_tasks": tasks}


def unpaired(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """The difference of the means of two measures of different tasks, with Welch's interval; `n_tasks` of the first."""
    a, b = (np.asarray(values, np.float64) for values in (first, second))
    parts = [values.var(ddof=1) / len(values) for values in (a, b)]
    total = sum(parts)
    freedom = total**2 / sum(p**2 / (len(v) - 1) for p, v in zip(parts, (a, b), strict=True)) if total else 1.0
    ci95 = float(scipy.stats.t.ppf(0.975, freedom) * math.sqrt(total))
    return {"value": float(a.mean() - b.mean()), "ci95": ci95, "n_tasks": len(a)}
