"""Meta-training: many meta-steps per compiled call, validation, checkpoints."""

import functools
import math
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from maml_jax import tree
from maml_jax.checkpoint import Checkpoints
from maml_jax.data.stream import Feed, example, sample_batch
from maml_jax.episode import Tasks
from maml_jax.errors import UserError
from maml_jax.evaluate import Evaluator
from maml_jax.experiment import Experiment, Training
from maml_jax.files import MetricsWriter, NoMetrics
from maml_jax.meta.method import Method
from maml_jax.meta.step import MetaState, meta_step
from maml_jax.parallel import AXIS, agreed, my_share, replicate, spread
from maml_jax.progress import Meter, say


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop, and has written a checkpoint."""


def run_steps(
    state: MetaState,
    tasks: Tasks,
    count: jax.Array,
    *,
    method: Method,
    optimizer: optax.GradientTransformation,
    per_step: int,
    tasks_at_once: int,
    report_every: int,
) -> tuple[MetaState, dict[str, jax.Array]]:
    """Takes `count` meta-steps, at most `report_every`, on tasks drawn inside, as one of the devices.

    Args:
      state: where training stands.
      tasks: a pytree.
      count: int32 scalar.
      method: see `meta_step`.
      optimizer: see `meta_step`.
      per_step: tasks of a meta-step, over all devices.
      tasks_at_once: see `meta_gradient`.
      report_every: rows of what is returned.

    Returns:
      The state, and the query loss and (but for regression) accuracy of each step, `[report_every]`, of which the first
      `count` count.
    """
    labels = example(tasks).query_y.dtype
    measures = ("loss", "accuracy") if jnp.issubdtype(labels, jnp.integer) else ("loss",)

    def one(i, carry):
        state, log = carry
        batch = sample_batch(tasks, state.step * per_step + my_share(per_step))
        state, results = meta_step(method, optimizer, state, batch, tasks_at_once, AXIS)
        measured = {name: getattr(results, name).mean() for name in measures}
        return state, jax.tree.map(lambda row, value: row.at[i].set(value), log, measured)

    log = {name: jnp.zeros(report_every) for name in measures}
    state, log = lax.fori_loop(0, count, one, (state, log))
    return state, lax.pmean(log, AXIS)


def train(experiment: Experiment, workdir: Path, start: MetaState | None = None) -> MetaState:
    """Trains until `training.steps`, from the latest checkpoint in the work directory if there is one.

    Writes `metrics.jsonl`, TensorBoard events and checkpoints. The result is the same whether or not it was
    interrupted.

    Args:
      experiment: what to train, with tasks.
      workdir: an existing folder.
      start: what a training that has no checkpoint yet starts from; None for a fresh state.

    Returns:
      The state that training ended with.

    Raises:
      Interrupted: SIGINT or SIGTERM came; the steps taken are in the latest checkpoint.
    """
    state, t = experiment.fresh_state() if start is None else start, experiment.training
    with Checkpoints(workdir / "checkpoints") as checkpoints, _StopSignal() as stop:
        resumed = checkpoints.latest_step("latest")
        if resumed is not None:
            state = checkpoints.restore("latest", state)
            say(f"continuing at meta-step {resumed} of {t.steps}")
        first = resumed or 0
        with (
            MetricsWriter(workdir, first) if jax.process_index() == 0 else NoMetrics() as metrics,
            Feed(experiment.tasks, experiment.devices, t.tasks, first, t.steps, t.report_every) as feed,
            Meter("training", t.steps, "meta-steps", first, lines=False) as meter,
        ):
            return _Run(experiment, feed, checkpoints, metrics, meter, stop).take(state)


class _Run:
    """One start of a training run, until its end or a signal."""

    def __init__(self, experiment, feed, checkpoints, metrics, meter, stop):
        t = self._training = experiment.training
        self._feed, self._checkpoints, self._metrics = feed, checkpoints, metrics
        self._meter, self._stop, self._devices = meter, stop, experiment.devices
        run = functools.partial(
            run_steps,
            method=experiment.method,
            optimizer=experiment.optimizer,
            per_step=t.tasks,
            tasks_at_once=t.tasks_at_once,
            report_every=t.report_every,
        )
        self._advance = spread(run, experiment.devices, experiment.backend, donate=(0,))
        self._validator = Evaluator(experiment, "val") if t.validate_every else None
        self._protocol = {**experiment.testing.facts, "steps": experiment.testing.steps}
        self._report = _Report(t, metrics, meter)

    def take(self, state: MetaState) -> MetaState:
        """Takes the meta-steps that are left."""
        t, step = self._training, int(state.step)
        state = replicate(state, self._devices)
        if not t.steps:  # what there is to evaluate is the start
            if self._validator:
                self._validate(step, state)
            self._save(step, state)
        if step < t.steps:
            say("compiling the meta-step; this takes a moment the first time")
        while step < t.steps:
            until = self._next_stop(step)
            state = self._steps(state, step, until)
            step = until
            if self._validator and (step % t.validate_every == 0 or step == t.steps):
                self._validate(step, state)
            stopping = agreed(self._stop.requested)
            if step % t.checkpoint_every == 0 or step == t.steps or stopping:
                self._save(step, state)
            if stopping:
                raise Interrupted(f"stopped after meta-step {step} of {t.steps}; run the same command to go on")
        return state

    def _next_stop(self, step: int) -> int:
        """The meta-step before which nothing is to be reported, validated or kept."""
        t = self._training
        every = (t.report_every, t.checkpoint_every, t.validate_every)
        return min(t.steps, *((step // n + 1) * n for n in every if n))

    def _steps(self, state: MetaState, step: int, until: int) -> MetaState:
        logs = []
        for tasks, count in self._feed.between(step, until):
            state, log = self._advance(state, tasks, np.int32(count))
            self._meter.start()  # the first call returns when the program is compiled
            jax.block_until_ready(logs[-1:])  # two calls under way at most, since each may hold its tasks' images
            logs.append((count, log))
        self._report.show_last()  # while the device computes the next ones
        self._report.add(step, until, logs)
        return state

    def _save(self, step: int, state: MetaState) -> None:
        self._report.show_last()
        with self._meter.paused():
            _check_finite(step, state)
            self._checkpoints.save("latest", step, state)

    def _validate(self, step: int, state: MetaState) -> None:
        """Scores the state on the validation tasks and keeps it if it is the best so far."""
        self._report.show_last()
        with self._meter.paused():
            result = self._validator(state.params, state.stats, self._training.validation_tasks)
            protocol = {**self._protocol, "tasks": self._training.validation_tasks}
            facts = self._checkpoints.facts("best")
            same = facts.get("protocol", protocol) == protocol  # else the scores cannot be compared
            best = facts.get("score", facts.get("accuracy", -math.inf)) if same else -math.inf
            self._metrics.write(step, "val", **result.means)
            mark = ""
            if result.score > best:  # which no number that is not one fulfils
                _check_finite(step, state)
                self._checkpoints.save("best", step, state, score=result.score, protocol=protocol)
                mark = ", the best so far"
        say(f"step {step:>6}  validation {result}{mark}")


class NotFinite(UserError):
    """Training came to a number that is infinite or none."""


def _check_finite(step: int, state: MetaState) -> None:
    """Refuses to keep a state that no training can go on from."""
    for part in (state.params, state.stats):
        for name, leaf in tree.by_name(jax.device_get(part)).items():
            if not np.isfinite(leaf).all():
                raise _not_finite(step, f"{name} has an entry that is not finite")


def _not_finite(step: int, what: str) -> NotFinite:
    return NotFinite(
        f"meta-step {step}: {what}; a checkpoint from before stays. Lower inner.encoder_rate and inner.head_rate, or "
        "outer.rate, or clip with inner.clip or outer.clip, in a new work directory"
    )


class _Report:
    """Writes what a call measured, one call late, so that the host does not wait for the device."""

    def __init__(self, training: Training, metrics: MetricsWriter | NoMetrics, meter: Meter):
        self._training, self._metrics, self._meter = training, metrics, meter
        self._pending, self._seconds = None, 0.0

    def add(self, start: int, end: int, logs: list) -> None:
        """What is to be shown next: the logs of the meta-steps from `start` to `end`, on their way from the device."""
        self._pending = (start, end, logs)

    def show_last(self) -> None:
        """Waits for what was added, writes and shows it.

        Raises:
          NotFinite: a loss is infinite or no number.
        """
        if self._pending is None:
            return
        (start, end, logs), self._pending = self._pending, None
        logs = [{name: values[:count] for name, values in log.items()} for count, log in jax.device_get(logs)]
        values = {name: np.concatenate([log[name] for log in logs]) for name in logs[0]}
        finite = np.isfinite(values["loss"])
        if not finite.all():
            at = int(finite.argmin())
            raise _not_finite(start + at + 1, f"the query loss is {values['loss'][at]}")
        means = {name: float(rows.mean()) for name, rows in values.items()}
        before, self._seconds = self._seconds, self._meter.seconds
        rate = (end - start) * self._training.tasks / max(self._seconds - before, 1e-9)
        self._metrics.write(end, "train", **means, tasks_per_second=rate)
        self._meter.advance(end)
        accuracy = f"  accuracy {means['accuracy']:.2%}" if "accuracy" in means else ""
        left = f"  {self._meter.left}" if self._meter.left else ""
        say(f"step {end:>6} / {self._training.steps}  loss {means['loss']:.4f}{accuracy}  {rate:.1f} tasks/s{left}")


class _StopSignal:
    """Turns the first SIGINT or SIGTERM into a request to stop at the next chance; a second one acts at once."""

    def __init__(self):
        self.requested = False

    def _handle(self, number, frame):
        self.requested = True
        say("stopping after the meta-steps under way; press Ctrl-C again to stop at once")
        signal.signal(number, self._before[number])

    def __enter__(self):
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)
