"""What is measured, task by task: each measurement is one compiled program on the tasks that all share."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from maml_jax.audit import dealing, passes
from maml_jax.audit.subject import Subject
from maml_jax.data.sampler import TaskSpec
from maml_jax.data.store import ClassStore
from maml_jax.data.stream import TaskChunk
from maml_jax.evaluate import EachTask
from maml_jax.parallel import replicate

Arrays = dict[str, np.ndarray]

ALPHAS = {"0.5": 0.5, "2": 2.0, "inf": math.inf}
"""Concentrations of the classes of a query set."""

_MOST_DISJOINT = 300  # tasks that share no image


class Measurement(NamedTuple):
    """Something to measure.

    Attributes:
      name: of its file.
      title: what the user is told.
      run: does it; tells how far it is under the label it is given.
    """

    name: str
    title: str
    run: Callable[[str], Arrays]


def measurements(subject: Subject, store: ClassStore | None) -> list[Measurement]:
    """All that apply to a model, in order.

    Args:
      subject: the model.
      store: the images of the split; None if there are none.
    """
    many = subject.counts.many
    rows = subject.counts.rows
    if not subject.classified:
        run = Protocol(subject)
        return [
            Measurement("many_tasks", "many tasks", lambda label: run(label, subject.tasks, many)),
            Measurement("adaptation", "adaptation", lambda label: _adaptation(subject, label)),
        ]
    run = Protocol(subject)
    found = []
    for norm in subject.methods:
        name = file_name(norm)
        found += [
            Measurement(f"rows_{name}", f"query sets, {norm}", lambda label, norm=norm: _rows(subject, norm, label)),
            Measurement(f"leaks_{name}", f"leaks, {norm}", lambda label, norm=norm: _leaks(subject, norm, label)),
        ]
    found += [
        Measurement("adaptation", "adaptation", lambda label: _adaptation(subject, label)),
        Measurement("random", "random initialisation", lambda label: run(label, subject.tasks, rows, *subject.fresh)),
        Measurement("label_orders", "label orders", lambda label: _label_orders(subject, label)),
        Measurement("many_tasks", "many tasks", lambda label: run(label, subject.tasks, many)),
    ]
    if store is not None:
        found.append(Measurement("disjoint", "disjoint tasks", lambda label: _disjoint(subject, run, store, label)))
    if subject.train_tasks is not None:
        found.append(
            Measurement("train_split", "training classes", lambda label: run(label, subject.train_tasks, rows))
        )
    return found


def file_name(norm: str) -> str:
    """A normalisation as part of a file's name."""
    return "".join(c if c.isalnum() else "_" for c in norm)


class Protocol:
    """The protocol that the model is tested by, compiled once for all that go by it."""

    def __init__(self, subject: Subject):
        self._subject = subject
        method = subject.methods[subject.own]
        function = passes.protocol(method, subject.steps, subject.way, subject.query)
        if not subject.classified:
            function = passes.losses(method, subject.steps)
        self.each = EachTask(function, subject.backend)

    def __call__(self, label: str, tasks, count: int, params=None, stats=None) -> Arrays:
        """The figures of tasks 0 .. count - 1; of the trained parameters unless given others."""
        if params is None:
            params, stats = self._subject.params, self._subject.stats
        return self.each(params, stats, tasks, count, label)


def _rows(subject, norm, label):
    count = subject.counts.rows
    function = passes.rows(subject.methods[norm], subject.steps, subject.way, subject.sizes, tuple(ALPHAS))
    drawn = {name: dealing.imbalanced(subject.seed, count, subject.way, subject.pool, a) for name, a in ALPHAS.items()}
    each = EachTask(function, subject.backend)
    figures = each(subject.params, subject.stats, subject.tasks, count, label, tuple(drawn.values()))
    return figures | {f"asked_{name}": rows for name, rows in drawn.items()}


def _leaks(subject, norm, label):
    count = subject.counts.leak
    each = EachTask(passes.leaks(subject.methods[norm], subject.steps), subject.backend, at_least=1)
    drawn = dealing.others(subject.seed, count, subject.way * subject.pool)
    return each(subject.params, subject.stats, subject.tasks, count, label, drawn)


def _label_orders(subject, label):
    orders = dealing.orders(subject.seed, subject.way)
    function = passes.label_orders(subject.methods[subject.own], subject.steps, orders)
    each = EachTask(function, subject.backend, at_least=1)
    figures = each(subject.params, subject.stats, subject.tasks, subject.counts.ordered, label)
    return figures | {"orders": orders}


def _adaptation(subject, label):
    method = subject.methods[subject.own]
    each = EachTask(passes.adaptation(method, subject.steps, subject.way, subject.query), subject.backend)
    return each(subject.params, subject.stats, subject.tasks, subject.counts.rows, label)


def _disjoint(subject, run, store, label):
    images = subject.shot + subject.query
    places = dealing.disjoint(subject.seed, store.counts, subject.way, images, _MOST_DISJOINT)
    used = np.float64(places.size / len(store.images))
    if len(places) < 2:
        return {"places": places, "used": used}
    feed = _Dealt(subject.tasks.spec, store, places, run.each.per_call)
    return run(label, feed, len(places)) | {"places": places, "used": used}


class _Dealt:
    """Feeds tasks made of given images, so many at a time; stands in for a `Feed`."""

    def __init__(self, spec: TaskSpec, store: ClassStore, places: np.ndarray, per_call: int):
        self._spec, self._store, self._places, self._per_call = spec, store, places, per_call

    def between(self, first: int, last: int) -> Iterator[tuple[TaskChunk, int]]:
        """Yields the tasks of calls `first` to `last` - 1, one call at a time; surplus ones repeat others."""
        for call in range(first, last):
            chosen = np.arange(call * self._per_call, (call + 1) * self._per_call) % len(self._places)
            pixels = np.asarray(self._store.images)[self._places[chosen]]
            turns = np.zeros(self._places[chosen].shape[:2], np.int32)
            labels = np.broadcast_to(np.arange(turns.shape[1], dtype=np.int32), turns.shape)
            yield replicate(TaskChunk(self._spec, pixels, turns, labels), jax.devices()), 1

    def __enter__(self) -> "_Dealt":
        return self

    def __exit__(self, *exception) -> None:
        pass
