"""What an evaluation leaves in a work directory: the figures, every task, and what they belong to."""

import importlib.metadata
import io
import itertools
import json
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

import maml_jax
from maml_jax.data.stream import drawn_classes
from maml_jax.evaluate import Evaluation
from maml_jax.experiment import Experiment
from maml_jax.files import make_folder, to_json, write_whole

FOLDER = "eval"
QUANTILES = (0.01, 0.05, 0.25)
_OF_THE_RUN: Mapping[str, Any] = MappingProxyType({})
_PACKAGES = ("jax", "jaxlib", "flax", "numpy")


def write(
    folder: Path, experiment: Experiment, evaluation: Evaluation, step: int, origin: Mapping[str, Any] = _OF_THE_RUN
) -> Path:
    """Writes the figures of an evaluation with their protocol, and its tasks, into the folder of a run.

    They go to `eval/NAME.json` and `eval/NAME.npz`, under a name that says the protocol. What another evaluation left
    there stays: if its figures differ, NAME gets a number. `eval.json` and `eval_tasks.npz` are copies of the latest.

    Args:
      folder: of the run.
      experiment: what the evaluation ran under.
      evaluation: its outcome.
      step: meta-steps of the checkpoint evaluated.
      origin: what else tells the model from others, such as the name of its weights, if it is not that of the run.

    Returns:
      The path of `eval/NAME.json`.
    """
    arrays = task_arrays(experiment, evaluation)
    report = to_json({**describe(experiment, evaluation, step, arrays), **origin}).encode()
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    make_folder(folder / FOLDER)
    path = _free(folder / FOLDER, name_of(experiment), report, packed.getvalue())
    places = {path: path.with_suffix(".npz"), folder / "eval.json": folder / "eval_tasks.npz"}
    for figures, tasks in places.items():  # a name is taken once its figures are there
        write_whole(tasks, lambda file: file.write(packed.getvalue()))
        write_whole(figures, lambda file: file.write(report))
    return path


def _free(folder: Path, name: str, report: bytes, tasks: bytes) -> Path:
    """Where a result may go: a name that is not taken, or is by the same figures."""

    def may_go(path):
        packed = path.with_suffix(".npz")
        return not path.exists() or (path.read_bytes() == report and packed.exists() and packed.read_bytes() == tasks)

    named = (folder / (f"{name}-{number}.json" if number > 1 else f"{name}.json") for number in itertools.count(1))
    return next(filter(may_go, named))


def name_of(experiment: Experiment) -> str:
    """The protocol as the name of a file, such as 'test-5w1s-15q-5steps-batch-best-600'."""
    t = experiment.testing
    facts = t.facts
    parts = [
        t.split,
        f"{facts['way']}w{facts['shot']}s",
        f"{facts['query']}q",
        f"{t.steps}steps",
        facts["norm"],
        t.checkpoint,
        str(t.tasks),
    ]
    if facts["head"] != facts["trained_head"]:
        parts.append(f"head_{facts['head']}")
    if facts["rate_factor"] != 1:
        parts.append(f"rates_x{facts['rate_factor']:g}")
    if facts["data"] != t.data["trained_on"]:
        parts.insert(0, facts["data"])
    return re.sub(r"[^\w.-]+", "_", "-".join(parts))


def describe(
    experiment: Experiment, evaluation: Evaluation, step: int, arrays: dict[str, np.ndarray]
) -> dict[str, Any]:
    """All that is to be known of an evaluation beside its single tasks.

    Args:
      experiment: what it ran under.
      evaluation: its outcome.
      step: meta-steps of the checkpoint evaluated.
      arrays: what `task_arrays` gives.
    """
    t = experiment.testing
    measured = evaluation.losses if evaluation.accuracies is None else evaluation.accuracies
    report = {
        **evaluation.means,
        **tail(measured, best=min if evaluation.accuracies is None else max),
        "n_tasks": len(evaluation.losses),
        "protocol": {**t.facts, "split": t.split, "inner_steps": t.steps, "checkpoint": t.checkpoint, "step": step},
        "data": t.data,
        **surroundings(),
    }
    if evaluation.by_step:
        report["by_step"] = evaluation.by_step
    if "classes" in arrays:
        names = experiment.stores[t.split].class_names
        report["by_class"] = by_class(arrays["classes"], evaluation.labels, evaluation.predictions, names)
    return report


def task_arrays(experiment: Experiment, evaluation: Evaluation) -> dict[str, np.ndarray]:
    """What was measured of each task, and which classes of the split its labels stand for, `[tasks, way]`."""
    t, arrays = experiment.testing, evaluation.arrays()
    classes = drawn_classes(experiment.eval_tasks[t.split], len(evaluation.losses))
    if classes is None or evaluation.predictions is None:
        return arrays
    return {**arrays, "classes": classes, "class_names": np.array(experiment.stores[t.split].class_names)}


def of_step(folder: Path, step: int) -> dict[Path, dict[str, Any]]:
    """The evaluations in a run's folder of the model as it was after `step` meta-steps, by their files."""
    found = {}
    for path in [folder / "eval.json", *sorted((folder / FOLDER).glob("*.json"))]:
        try:
            report = json.loads(path.read_text())
            fits = report["protocol"]["step"] == step and report["n_tasks"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if fits and report not in found.values():
            found[path] = report
    return found


def latest_of(folder: Path, experiment: Experiment, step: int) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """What the latest evaluation under an experiment's own protocol found, and each of its tasks; None if none did."""
    t, found = experiment.testing, None
    asked = {**t.facts, "split": t.split, "inner_steps": t.steps, "checkpoint": t.checkpoint, "step": step}
    for path in sorted((folder / FOLDER).glob("*.json"), key=lambda path: path.stat().st_mtime):
        try:
            report = json.loads(path.read_text())
            if report["protocol"] == asked and report["data"]["name"] == t.data["name"]:
                with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
                    found = report, dict(arrays)
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            continue
    return found


def table(reports: Iterable[Mapping[str, Any]]) -> list[str]:
    """Lines of a table in Markdown: the protocol of each evaluation of a classifier, and its accuracy."""
    lines = ["| protocol | data | task | accuracy | tasks |", "| --- | --- | --- | --- | --- |"]
    for report in reports:
        p = report["protocol"]
        kind = "transductive" if p.get("transductive") else "inductive"
        counts = f"{p.get('way')}-way {p.get('shot')}-shot, {p.get('query')} queries per class"
        accuracy = f"{report['accuracy']:.2%} ± {report.get('ci95') or 0:.2%}"
        data = f"{p.get('data')} {p.get('split')}"
        lines.append(
            f"| {kind} ({p.get('norm')}) | {data} | {counts}, {p.get('inner_steps')} steps | {accuracy} "
            f"| {report['n_tasks']} |"
        )
    return lines


def tail(values: np.ndarray, best=max) -> dict[str, float]:
    """How the tasks lie: the median, low quantiles and the mean of the worst twentieth.

    Args:
      values: of each task, `[tasks]`.
      best: `max` if a large value is a good one, `min` if a small one is: then quantiles are counted from above.
    """
    ordered = np.sort(values) if best is max else -np.sort(-values)
    worst = ordered[: max(1, round(len(ordered) / 20))]
    sign = 1 if best is max else -1
    levels = {f"quantile_{level:.0%}".rstrip("%"): sign * np.quantile(sign * ordered, level) for level in QUANTILES}
    figures = {"median": np.median(ordered), **levels, "worst_5_mean": worst.mean()}
    return {name: float(value) for name, value in figures.items()}


def by_class(
    classes: np.ndarray, labels: np.ndarray, predictions: np.ndarray, names: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """Accuracy on the queries of each class that was drawn, the worst first.

    Args:
      classes: int `[tasks, way]`, what the labels of a task stand for.
      labels: int `[tasks, queries]`.
      predictions: int `[tasks, queries]`.
      names: of the classes.
    """
    of = np.take_along_axis(classes, labels, 1).ravel()
    queries = np.bincount(of, minlength=len(names))
    right = np.bincount(of, (labels == predictions).ravel(), len(names))
    tasks = np.bincount(classes.ravel(), minlength=len(names))
    figures = {
        name: {"accuracy": float(right[c] / queries[c]), "queries": int(queries[c]), "tasks": int(tasks[c])}
        for c, name in enumerate(names)
        if queries[c]
    }
    return dict(sorted(figures.items(), key=lambda item: item[1]["accuracy"]))


def surroundings() -> dict[str, Any]:
    """Versions of what the figures were made with, and the kind of device."""
    versions = {"maml-jax": maml_jax.__version__, "python": platform.python_version()}
    versions |= {package: importlib.metadata.version(package) for package in _PACKAGES}
    devices = jax.devices()
    return {"versions": versions, "device": {"kind": devices[0].device_kind, "count": len(devices)}}
