"""The learning curve: training along the way, and validation with its interval."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maml_jax import drawing

_SMOOTHED = 40  # points of training from which on a running mean is drawn, too

Row = Mapping[str, Any]


def draw_learning(rows: Sequence[Row], kept: int, path: Path) -> None:
    """Draws loss and, but for regression, accuracy against meta-steps.

    Args:
      rows: lines of `metrics.jsonl`.
      kept: the meta-step of the checkpoint that is evaluated.
      path: of the PNG file.
    """
    measures = [name for name in ("accuracy", "loss") if any(name in row for row in rows)]
    with drawing.figure(path, 5.6 * len(measures), 3.6) as figure:
        for axes, name in zip(np.atleast_1d(figure.subplots(1, len(measures))), measures, strict=True):
            scale = 100 if name == "accuracy" else 1
            _training(axes, [row for row in rows if row["split"] == "train"], name, scale)
            _validation(axes, [row for row in rows if row["split"] == "val"], name, scale, name == measures[0])
            axes.axvline(kept, color=drawing.GREY, linewidth=1, linestyle="--", label=f"evaluated: step {kept:,}")
            axes.set(xlabel="meta-steps", title="accuracy, %" if scale == 100 else "loss")
            axes.set_xlim(left=0)
            axes.legend(loc="best")


def _training(axes, rows, name, scale):
    """Each point a mean over the meta-steps since the one before, and a running mean where there are many."""
    steps, values = (
        np.array([(row["step"], scale * row[name]) for row in rows if _number(row.get(name))]).reshape(-1, 2).T
    )
    many = len(steps) >= _SMOOTHED
    axes.plot(steps, values, color=drawing.OWN, alpha=0.35 if many else 1, label=None if many else "training")
    if many:
        axes.plot(steps, running_mean(values, len(values) // 20), color=drawing.OWN, label="training, running mean")


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """The mean over up to `width` values on either side of each, as many on one side as on the other; `[n]`."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    reach = np.minimum(width, np.minimum(at, at[::-1]))
    return (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)


def _validation(axes, rows, name, scale, has_interval):
    """Each validation, with the 95 % interval of what it is an interval of."""
    rows = [row for row in rows if _number(row.get(name))]
    if not rows:
        return
    steps, values = np.array([(row["step"], scale * row[name]) for row in rows]).T
    if has_interval:
        widths = [scale * row["ci95"] if _number(row.get("ci95")) else 0.0 for row in rows]
        axes.errorbar(
            steps, values, widths, color=drawing.OTHER, marker="o", markersize=4, capsize=3, label="validation, 95 %"
        )
    else:
        axes.plot(steps, values, color=drawing.OTHER, marker="o", markersize=4, label="validation")


def _number(value):
    return isinstance(value, int | float)
