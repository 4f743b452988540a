"""Meta-test: accuracy over many tasks of classes never seen in training."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from maml_jax.data.stream import Feed
from maml_jax.episode import Episode
from maml_jax.experiment import Experiment
from maml_jax.files import to_json, write_whole
from maml_jax.meta.outer import Method, accuracy, evaluate_task, query_pass
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
    """

    losses: np.ndarray
    accuracies: np.ndarray | None = None
    losses_by_step: np.ndarray | None = None
    accuracies_by_step: np.ndarray | None = None

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
        return _present(losses=result.loss, accuracies=result.accuracy)

    def judge(params, stats, k):
        loss, outputs, _ = query_pass(method.learner, params, stats, episode, k)
        return _present(losses=loss, accuracies=accuracy(outputs, episode.query_y))

    def watch(_, params, stats, k):
        return judge(params, stats, k)

    support = episode.support_x, episode.support_y
    start, start_stats, _ = method.adapted(params, stats, *support, 0)
    _, _, after = method.adapted(params, stats, *support, steps, watch)
    every = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), judge(start, start_stats, 0), after)
    return {name: rows[-1] for name, rows in every.items()} | {f"{name}_by_step": r for name, r in every.items()}


def _present(**values):
    return {name: value for name, value in values.items() if value is not None}


class Evaluator:
    """Scores meta-parameters on tasks of one split, by the experiment's protocol; compiles once.

    Args:
      experiment: with tasks of the split.
      split: its name.
    """

    def __init__(self, experiment: Experiment, split: str):
        self._tasks, self._devices = experiment.eval_tasks[split], jax.devices()
        per_call = self._per_call = -(-_TASKS_PER_CALL // len(self._devices)) * len(self._devices)
        testing, method = experiment.testing, experiment.tested
        on_cpu = jax.default_backend() == "cpu"
        at_once = None if on_cpu else per_call // len(self._devices)  # launches set the time on an accelerator

        def run(params, stats, tasks, call):
            def one(slot):
                task = tasks.sample(call * per_call + slot)
                return measure_task(method, params, stats, task, testing.steps, testing.by_step)

            share = jax.lax.map(one, my_share(per_call), batch_size=at_once)
            return jax.lax.all_gather(share, AXIS, tiled=True)

        self._run = spread(run, self._devices, experiment.backend)

    def __call__(self, params: PyTree, stats: PyTree, tasks: int, show: bool = False) -> Evaluation:
        """Adapts to tasks 0 .. tasks - 1 and scores their queries.

        Args:
          params: meta-parameters.
          stats: the statistics that outlive an episode.
          tasks: how many.
          show: tell how far it is.
        """
        outcomes = []
        params, stats = replicate((params, stats), self._devices)
        calls = math.ceil(tasks / self._per_call)  # a surplus at the end is cut off
        feed = Feed(self._tasks, self._devices, self._per_call, 0, calls, most=1)
        with feed, Meter("evaluating", tasks, "tasks", show=show) as meter:
            for call in range(calls):
                ((images, _),) = feed.between(call, call + 1)
                outcome = self._run(params, stats, images, np.int32(call))
                meter.start()  # the first call returns when the program is compiled
                outcomes.append(jax.device_get(outcome))
                meter.advance(min((call + 1) * self._per_call, tasks))
        return Evaluation(**jax.tree.map(lambda *rows: np.concatenate(rows)[:tasks], *outcomes))


def write(folder: Path, experiment: Experiment, evaluation: Evaluation, step: int) -> None:
    """Writes `eval.json` (the figures and their protocol) and `eval_tasks.npz` (the tasks) into a folder.

    Args:
      folder: of the run.
      experiment: what the evaluation ran under.
      evaluation: its outcome.
      step: meta-steps of the checkpoint evaluated.
    """
    t = experiment.testing
    protocol = {**t.facts, "split": t.split, "inner_steps": t.steps, "checkpoint": t.checkpoint, "step": step}
    report = {**evaluation.means, "n_tasks": len(evaluation.losses), "protocol": protocol}
    if evaluation.by_step:
        report["by_step"] = evaluation.by_step
    write_whole(folder / "eval_tasks.npz", lambda file: np.savez(file, **evaluation.arrays()))
    write_whole(folder / "eval.json", lambda file: file.write(to_json(report).encode()))
