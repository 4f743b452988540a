"""A run in pictures: how it learned, how good it is, and what it says of a few tasks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maml_jax import results
from maml_jax.config.fields import BY_NAME, default_of
from maml_jax.experiment import Experiment
from maml_jax.files import make_folder, write_whole
from maml_jax.meta.step import MetaState
from maml_jax.metrics import read_metrics
from maml_jax.report.curves import draw_curves, is_curve
from maml_jax.report.episode import draw_episode, judged
from maml_jax.report.learning import draw_learning

__all__ = ["FOLDER", "write"]

FOLDER = "report"
_ALWAYS = ("data.name", "task.way", "task.shot", "inner.steps", "model.encoder", "model.norm", "train.steps", "seed")
"""Settings that are told even where they are the defaults."""


def write(workdir: Path, experiment: Experiment, state: MetaState, settings: Mapping[str, Any]) -> Path:
    """Writes `report/README.md` and its pictures, from what a run has left in its work directory.

    Args:
      workdir: of the run.
      experiment: with the tasks it is tested on.
      state: what it has learned.
      settings: by the names of their fields.

    Returns:
      The path of `report/README.md`.

    Raises:
      DataError: `metrics.jsonl` is damaged.
    """
    folder, step = workdir / FOLDER, int(state.step)
    make_folder(folder)
    found = results.latest_of(workdir, experiment, step)
    parts = [f"# {workdir.resolve().name}", _headline(found[0] if found else None)]
    if rows := read_metrics(workdir):
        draw_learning(rows, step, folder / "learning.png")
        parts.append("\n\n".join(["## Learning", "![loss and accuracy](learning.png)", _LEARNING]))
    if is_curve(experiment):
        draw_curves(experiment, state, folder / "curves.png")
        parts.append("\n\n".join(["## Tasks", "![functions and what is predicted of them](curves.png)", _CURVES]))
    elif found and "classes" in found[1]:
        parts.append("\n\n".join(["## Tasks", *_tasks(experiment, found[1], folder)]))
    reports = results.of_step(workdir, step).values()
    if classified := [report for report in reports if report.get("accuracy") is not None]:
        parts.append("\n\n".join(["## Evaluations", "\n".join(results.table(classified)), _EVALUATIONS]))
    parts.append("\n\n".join(["## Settings", _settings(settings)]))
    path = folder / "README.md"
    write_whole(path, lambda file: file.write(("\n\n".join(parts) + "\n").encode()))
    return path


_LEARNING = (
    "Training: mean over the query sets of the meta-steps since the point before, after the inner steps of training. "
    "Validation: classes of the validation split, with the 95 % Student-t interval over tasks."
)
_CURVES = "The first three tasks, after so many inner steps."
_EVALUATIONS = (
    "Each is a file of `eval/`, with every task in the `.npz` beside it. Inductive: a prediction depends on the "
    "support set and its own image alone. Transductive: query images are normalised together."
)


def _headline(report):
    """What the run's own protocol gave, in a sentence."""
    if report is None:
        return "Not evaluated under its own protocol; `maml-jax evaluate --workdir DIR` does it."
    p, accuracy = report["protocol"], report.get("accuracy")
    ci95 = report["ci95"] or 0
    value = f"Loss {report['loss']:.4f} ± {ci95:.4f}" if accuracy is None else f"{accuracy:.2%} ± {ci95:.2%}"
    kind = "" if accuracy is None else f", {'transductive' if p['transductive'] else 'inductive'} (`{p['norm']}`)"
    steps = f"{p['inner_steps']} inner step{'s' * (p['inner_steps'] != 1)}"
    return (
        f"**{value}** on the {p['split']} split of {p['data']}: {p['way']}-way {p['shot']}-shot, {p['query']} queries "
        f"per class, {steps}, {report['n_tasks']:,} tasks{kind}; meta-step {p['step']:,} ({p['checkpoint']}). "
        f"Median task {_score(report, 'median')}, mean of the worst 5 % {_score(report, 'worst_5_mean')}."
    )


def _score(report, name):
    return f"{report[name]:.4f}" if report.get("accuracy") is None else f"{report[name]:.1%}"


def _tasks(experiment: Experiment, arrays: Mapping[str, np.ndarray], folder: Path) -> list[str]:
    """Draws the task of median accuracy and the worst one of an evaluation; paragraphs that show them."""
    t, accuracies = experiment.testing, arrays["accuracies"]
    order = np.argsort(accuracies, kind="stable")
    paragraphs = []
    for name, index in (("median", int(order[(len(order) - 1) // 2])), ("worst", int(order[0]))):
        task = judged(experiment.eval_tasks[t.split], t.data["normalization"], arrays, index)
        what = "the task of median accuracy" if name == "median" else "the worst task"
        title = f"{what[0].upper()}{what[1:]} of {len(order)}: {task.accuracy:.1%} (task {index})"
        draw_episode(task, title, folder / f"task_{name}.png")
        paragraphs.append(f"![{what}](task_{name}.png)")
    paragraphs.append(
        "A row for each class: its support images in grey frames, then its queries, in thin blue frames where the "
        "model is right, with the probability that it gives the class; in thick orange ones where it is wrong, with "
        "the letter of the class that it takes them for."
    )
    return paragraphs


def _settings(settings: Mapping[str, Any]) -> str:
    """A table of what differs from the defaults, and of a few settings that one always wants to know."""
    lines = ["| field | value | default |", "| --- | --- | --- |"]
    for name in BY_NAME:
        default, value = default_of(name), settings[name]
        if name in _ALWAYS or value != default:
            lines.append(f"| `{name}` | {_cell(value)} | {_cell(default) if value != default else ''} |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"`{value!r}`".replace("|", r"\|")
