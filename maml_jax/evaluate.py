"""Meta-test: accuracy over many tasks of classes never seen in training."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from maml_jax.data.stream import Feed, resident
from maml_jax.episode import Episode, Tasks
from maml_jax.experiment import Experiment
from maml_jax.meta.method import Method, accuracy, evaluate_task, query_pass
from maml_jax.parallel import AXIS, my_share, replicate, spread
from maml_jax.progress import Meter
from maml_jax.tree import PyTree

_TASKS_PER_CALL = 25


def interval95(values: np.ndarray) -> np.ndarray:
    """Half the width of the 95 % Student-t interval of the mean of `[n, ...]` over its first axis; NaN of one value."""
    n = len(values)
    if n < 2:
        return np.full(values.shape[1:], np.nan)
    return scipy.stats.t.ppf(0.975, n - 1) * values.std(0, ddof=1) / math.sqrt(n)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation.

    Attributes:
      losses: query loss of each task after adaptation, `[tasks]`.
      accuracies: of each task, `[tasks]`, in [0, 1]; None in regression.
      losses_by_step: query loss before adaptation and after each inner step, `[tasks, steps + 1]`, if asked for.
      accuracies_by_step: likewise.
      labels: of the queries, int32 `[tasks, way * query]`; None in regression.
      predictions: likewise, after adaptation.
      confidences: the probability of each prediction, float32 `[tasks, way * query]`; None in regression.
    """

    losses: np.ndarray
    accuracies: np.ndarray | None = None
    losses_by_step: np.ndarray | None = None
    accuracies_by_step: np.ndarray | None = None
    labels: np.ndarray | None = None
    predictions: np.ndarray | None = None
    confidences: np.ndarray | None = None

    @property
    def accuracy(self) -> float | None:
        """Mean accuracy over tasks, in [0, 1]; None in regression."""
        return None if self.accuracies is None else float(self.accuracies.mean())

    @property
    def loss(self) -> float:
        """Mean query loss over tasks."""
        return float(self.losses.mean())

    @property
    def ci95(self) -> float:
        """Half the width of the 95 % Student-t interval over tasks of the mean accuracy; of the loss in regression."""
        return float(interval95(self.losses if self.accuracies is None else self.accuracies))

    @property
    def score(self) -> float:
        """What is best when largest."""
        return -self.loss if self.accuracies is None else self.accuracy

    @property
    def means(self) -> dict[str, float]:
        """The figures, by name."""
        known = {"accuracy": self.accuracy, "ci95": self.ci95, "loss": self.loss}
        return {name: value for name, value in known.items() if value is not None}

    def __str__(self) -> str:
        if self.accuracies is None:
            return f"loss {self.loss:.4f} ± {self.ci95:.4f}"
        return f"accuracy {self.accuracy:.2%} ± {self.ci95:.2%}"

    @property
    def by_step(self) -> list[dict[str, float]]:
        """The figures before adaptation and after each inner step; empty if not asked for."""
        measured = {"loss": self.losses_by_step, "accuracy": self.accuracies_by_step}
        measured = {name: rows for name, rows in measured.items() if rows is not None}
        columns = {name: rows.mean(0).tolist() for name, rows in measured.items()}
        columns |= {f"{name}_ci95": interval95(rows).tolist() for name, rows in measured.items()}
        rows = zip(*columns.values(), strict=True)
        return [{"steps": k, **dict(zip(columns, row, strict=True))} for k, row in enumerate(rows)]

    def arrays(self) -> dict[str, np.ndarray]:
        """What was measured of each task."""
        named = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: rows for name, rows in named if rows is not None}


def measure_task(
    method: Method, params: PyTree, stats: PyTree, episode: Episode, steps: int, by_step: bool
) -> dict[str, jax.Array]:
    """One task's figures, by the names of `Evaluation`'s fields."""
    if not by_step:
        result = evaluate_task(method, params, stats, episode, steps)
        answers = _answers(result.logits, episode)
        return _present(losses=result.loss, accuracies=result.accuracy, **answers)

    def judge(params, stats, k):
        loss, outputs, _ = query_pass(method.learner, params, stats, episode, k)
        return _present(losses=loss, accuracies=accuracy(outputs, episode.query_y)), _answers(outputs, episode)

    def watch(_, params, stats, k):
        return judge(params, stats, k)

    support = episode.support_x, episode.support_y
    start, start_stats, _ = method.adapted(params, stats, *support, 0)
    _, _, after = method.adapted(params, stats, *support, steps, watch)
    every = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), judge(start, start_stats, 0), after)
    figures, answers = every
    last = {name: rows[-1] for name, rows in (figures | answers).items()}
    return last | {f"{name}_by_step": rows for name, rows in figures.items()}


def _answers(outputs, episode):
    """Labels, predictions and their probabilities; nothing in regression."""
    if not jnp.issubdtype(episode.query_y.dtype, jnp.integer):
        return {}
    return {
        "labels": episode.query_y,
        "predictions": jnp.argmax(outputs, -1).astype(jnp.int32),
        "confidences": jax.nn.softmax(outputs).max(-1),
    }


def _present(**values):
    return {name: value for name, value in values.items() if value is not None}


class EachTask:
    """A function of one task, compiled once, for any number of tasks on all devices.

    Args:
      function: of meta-parameters, lasting statistics, an episode, and what is given beside it, to a pytree of arrays.
      backend: 'shard_map' or 'pmap'.
      at_least: tasks of a call on a CPU; fewer tell more often how far it is.
    """

    def __init__(self, function: Callable[..., PyTree], backend: str = "shard_map", at_least: int = _TASKS_PER_CALL):
        self._devices = jax.devices()
        on_cpu = jax.default_backend() == "cpu"
        wanted = at_least if on_cpu else _TASKS_PER_CALL
        per_call = self.per_call = -(-wanted // len(self._devices)) * len(self._devices)
        at_once = None if on_cpu else per_call // len(self._devices)  # launches set the time on an accelerator

        def run(params, stats, tasks, beside, call):
            def one(slot):
                index = call * per_call + slot
                return function(params, stats, tasks.sample(index), *jax.tree.map(lambda rows: rows[index], beside))

            share = jax.lax.map(one, my_share(per_call), batch_size=at_once)
            return jax.lax.all_gather(share, AXIS, tiled=True)

        self._run = spread(run, self._devices, backend)

    def __call__(
        self,
        params: PyTree,
        stats: PyTree,
        tasks: Tasks | Feed,
        count: int,
        label: str = "",
        beside: tuple[np.ndarray, ...] = (),
    ) -> PyTree:
        """What the function makes of tasks 0 .. count - 1, with a leading `tasks` axis.

        Args:
          params: meta-parameters.
          stats: the statistics that outlive an episode.
          tasks: of a split; or what feeds them, `per_call` at a time.
          count: how many.
          label: tell under this name how far it is; '': do not.
          beside: arrays `[count, ...]`, of which the function gets the task's row.
        """
        outcomes = []
        params, stats, beside = replicate((params, stats, beside), self._devices)
        calls = math.ceil(count / self.per_call)  # a surplus at the end is cut off
        feed = tasks if hasattr(tasks, "between") else Feed(tasks, self._devices, self.per_call, 0, calls, most=1)
        with feed, Meter(label, count, "tasks", show=bool(label)) as meter:
            for call in range(calls):
                ((images, _),) = feed.between(call, call + 1)
                outcome = self._run(params, stats, images, beside, np.int32(call))
                meter.start()  # the first call returns when the program is compiled
                outcomes.append(jax.device_get(outcome))
                meter.advance(min((call + 1) * self.per_call, count))
        return jax.tree.map(lambda *rows: np.concatenate(rows)[:count], *outcomes)


class Evaluator:
    """Scores meta-parameters on tasks of one split, by the experiment's protocol; compiles once.

    Args:
      experiment: with tasks of the split.
      split: its name.
    """

    def __init__(self, experiment: Experiment, split: str):
        self._tasks = resident(experiment.eval_tasks[split], jax.devices())  # once, and not at every call
        testing, method = experiment.testing, experiment.tested

        def measure(params, stats, episode):
            return measure_task(method, params, stats, episode, testing.steps, testing.by_step)

        self._each = EachTask(measure, experiment.backend)

    def __call__(self, params: PyTree, stats: PyTree, tasks: int, show: bool = False) -> Evaluation:
        """Adapts to tasks 0 .. tasks - 1 and scores their queries.

        Args:
          params: meta-parameters.
          stats: the statistics that outlive an episode.
          tasks: how many.
          show: tell how far it is.
        """
        return Evaluation(**self._each(params, stats, self._tasks, tasks, "evaluating" if show else ""))
