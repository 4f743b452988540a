"""The audit in pictures."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maml_jax import drawing
from maml_jax.audit import statistics, summary
from maml_jax.audit.subject import Subject
from maml_jax.drawing import GREY, OTHER, OWN, THIRD

_TICKS = [digit * 10**power for power in range(1, 6) for digit in (1, 2, 5)]


def draw(subject: Subject, figures: summary.Figures, measures: Mapping[str, Any], folder: Path) -> None:
    """Draws all that applies into PNG files of a folder.

    Args:
      subject: what was measured.
      figures: what came of it.
      measures: the objects of `report.json`.
      folder: where to.
    """
    pictures: dict[str, Callable] = {"steps": _steps, "running": _running}
    if subject.classified:
        pictures |= {"tasks": _tasks, "orders": _orders}
    if subject.classified and len(subject.sizes) > 1:
        pictures["queries"] = _queries
    for name, picture in pictures.items():
        with drawing.figure(folder / f"{name}.png") as figure:
            picture(figure.subplots(), subject, figures, measures)
    if subject.classified:
        panels = [_differences, *(pictures[name] for name in ("queries", "running", "steps") if name in pictures)]
        with drawing.figure(folder / "overview.png", 11, 7) as figure:
            for axes, picture in itertools.zip_longest(figure.subplots(2, 2).flat, panels):
                axes.set_axis_off() if picture is None else picture(axes, subject, figures, measures)


def _tasks(axes, subject, figures, measures):
    """How the accuracies of single tasks lie, under each kind of normalisation."""
    del measures
    kinds = ((subject.of_kind(False), OWN, "inductive"), (subject.of_kind(True), OTHER, "transductive"))
    for norm, colour, kind in kinds:
        if norm is None:
            continue
        values = 100 * summary.by_size(subject, figures, norm, subject.pool)
        edges = 100 * (np.arange(26) - 0.5) / 25
        axes.hist(values, edges, color=colour, alpha=0.45, label=f"{norm} ({kind})")
        axes.axvline(values.mean(), color=colour, linewidth=1.6)
        axes.axvline(np.quantile(values, 0.05), color=colour, linewidth=1.2, linestyle=":")
    axes.set(xlabel="accuracy of a task, %", ylabel="tasks", title="Tasks (line: mean, dots: 5 % quantile)")
    axes.set_xlim(0, 102)
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper left")


def _queries(axes, subject, figures, measures):
    """Accuracy against the number of queries that are asked together."""
    del measures
    kinds = {subject.of_kind(False): OWN, subject.of_kind(True): OTHER}  # as in the picture of tasks
    for norm in subject.methods:
        colour = kinds.get(norm, THIRD)
        found = [statistics.estimate(summary.by_size(subject, figures, norm, size)) for size in subject.sizes]
        kind = "transductive" if subject.transductive[norm] else "inductive"
        _line(axes, subject.sizes, found, colour, f"{norm} ({kind})")
    axes.set_xscale("log")
    axes.set_xticks(subject.sizes, [str(size) for size in subject.sizes])
    axes.minorticks_off()
    axes.set(xlabel="queries per class asked together", ylabel="accuracy, %", title="Query-set size")
    axes.legend()


def _line(axes, x, found, colour, label, scale=100):
    values, widths = (scale * np.array([f[name] for f in found], float) for name in ("value", "ci95"))
    axes.fill_between(x, values - widths, values + widths, color=colour, alpha=0.18, linewidth=0)
    axes.plot(x, values, color=colour, marker="o", markersize=4, label=label)


def _steps(axes, subject, figures, measures):
    """Accuracy and loss by the number of inner steps."""
    del figures
    rows = measures["adaptation"]["by_step"]
    steps = [row["steps"] for row in rows]
    axes.axvline(subject.steps, color=GREY, linewidth=1, linestyle="--")
    axes.set_title(f"Adaptation (dashed: the {subject.steps} steps of the protocol)")
    axes.set_xlabel("inner steps")
    axes.xaxis.get_major_locator().set_params(integer=True)
    loss = axes
    if subject.classified:
        _line(axes, steps, [row["accuracy"] for row in rows], OWN, "accuracy")
        axes.set_ylabel("accuracy, %", color=OWN)
        loss = axes.twinx()
        loss.grid(visible=False)
        loss.spines["right"].set_visible(True)
    _line(loss, steps, [row["loss"] for row in rows], OTHER, "loss", scale=1)
    loss.set_ylabel("query loss", color=OTHER)


def _running(axes, subject, figures, measures):
    """The mean over ever more tasks, with its interval."""
    scale, what = (100, "accuracy, %") if subject.classified else (1, "loss")
    n, mean, width = statistics.running(scale * summary.protocol_scores(subject, figures["many_tasks"]))
    seen = n >= min(20, n[-1])
    axes.fill_between(n[seen], (mean - width)[seen], (mean + width)[seen], color=OWN, alpha=0.18, linewidth=0)
    axes.plot(n[seen], mean[seen], color=OWN, label="mean, 95 % interval")
    axes.axhline(mean[-1], color=GREY, linewidth=1, linestyle="--", label=f"all {n[-1]} tasks")
    few = measures["600_against_6000_tasks"]["few"]
    axes.errorbar(
        few["n_tasks"], scale * few["value"], scale * few["ci95"], color=OTHER, marker="o", capsize=4,
        label=f"the first {few['n_tasks']}",
    )  # fmt: skip
    axes.set_xscale("log")
    shown = [tick for tick in _TICKS if n[seen][0] <= tick <= n[-1]] or [n[-1]]
    axes.set_xticks(shown, [f"{tick:,}" for tick in shown])
    axes.minorticks_off()
    axes.set(xlabel="tasks", ylabel=what, title="Running mean")
    axes.legend()


def _orders(axes, subject, figures, measures):
    """For each task the accuracies under all orders of its labels, tasks sorted by their mean."""
    del subject, measures
    accuracies = 100 * figures["label_orders"]["accuracies"]
    accuracies = accuracies[accuracies.mean(1).argsort()]
    x = np.arange(len(accuracies))
    low, high = np.quantile(accuracies, [0.25, 0.75], axis=1)
    axes.vlines(x, accuracies.min(1), accuracies.max(1), color=OWN, alpha=0.35, linewidth=1.5, label="worst to best")
    axes.vlines(x, low, high, color=OWN, linewidth=3, label="middle half")
    axes.plot(x, accuracies.mean(1), ".", color=OTHER, markersize=5, label="mean")
    axes.set(xlabel="tasks, by their mean", ylabel="accuracy, %", title=f"{accuracies.shape[1]} orders of the labels")
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper left")


def differences(measures: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The paired differences of accuracies that a report has, by what they are in words."""
    queries, gain, unequal = (measures[name] for name in ("query_set_size", "transductive_gain", "imbalance"))
    found = {}
    if "by_queries" in queries:
        least, *_, most = queries["by_queries"]
        found |= {f"{least} query per class less {most}": queries} if least != most else {}
    found |= {f"{gain['transductive']} less {gain['inductive']}": gain} if gain["value"] is not None else {}
    found |= {"unequal classes less equal": unequal} if unequal["value"] is not None else {}
    adapted, means = (measures["adaptation"].get(name, {}) for name in ("less_everything", "nearest_class_mean"))
    words = {
        "nothing": "nothing adapts",
        "head_only": "only the head adapts",
        "body_only": "only the body adapts",
        "head_from_zero": "the head from zero",
    }
    found |= {f"{said}, less all": adapted[name] for name, said in words.items() if name in adapted}
    return found | {f"class means {name}, less all": of["less_adapted"] for name, of in means.items()}


def _differences(axes, subject, figures, measures):
    """What each choice adds to the accuracy, or takes from it."""
    del subject, figures
    found = differences(measures)
    y = np.arange(len(found))[::-1]
    values, widths = (100 * np.array([f[name] for f in found.values()], float) for name in ("value", "ci95"))
    axes.axvline(0, color=GREY, linewidth=1, linestyle="--")
    axes.errorbar(values, y, xerr=widths, color=OWN, fmt="o", markersize=5, capsize=4)
    axes.set_yticks(y, list(found))
    axes.set(xlabel="difference, points", title="Paired differences, 95 % intervals")
    axes.grid(axis="y", visible=False)
