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

from maml_jax.checkpoint import Checkpoints
from maml_jax.data.stream import Feed, example, sample_batch
from maml_jax.data.watch import Watch
from maml_jax.episode import Tasks
from maml_jax.evaluate import Evaluator
from maml_jax.experiment import Experiment, Training
from maml_jax.meta.method import Method
from maml_jax.meta.step import MetaState, meta_step
from maml_jax.metrics import MetricsWriter, NoMetrics
from maml_jax.nonfinite import NotFinite, explained
from maml_jax.pace import Pace
from maml_jax.parallel import AXIS, agreed, failures_explained, my_share, replicate, spread
from maml_jax.progress import Meter, say
from maml_jax.tree import PyTree


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
    on_nonfinite: str = "stop",
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
      on_nonfinite: at a meta-step that leads to parameters or statistics which are not finite, 'stop': take no more,
        so that the state stays that before it; or 'skip': go on as if its tasks had not been.

    Returns:
      The state, and the query loss and (but for regression) accuracy of each step, and whether it led to a finite
      state, `[report_every]`, of which the first `count` count.
    """
    labels = example(tasks).query_y.dtype
    measures = ("loss", "accuracy") if jnp.issubdtype(labels, jnp.integer) else ("loss",)

    def one(i, carry):
        state, log, sound = carry
        batch = sample_batch(tasks, state.step * per_step + my_share(per_step))
        after, results = meta_step(method, optimizer, state, batch, tasks_at_once, AXIS)
        finite = _all_finite((after.params, after.stats))  # the same on every device
        sound &= finite
        keep = finite if on_nonfinite == "skip" else sound
        before = state.replace(step=after.step) if on_nonfinite == "skip" else state
        state = jax.tree.map(lambda new, old: jnp.where(keep, new, old), after, before)
        measured = {name: getattr(results, name).mean() for name in measures} | {"finite": finite.astype(float)}
        return state, jax.tree.map(lambda row, value: row.at[i].set(value), log, measured), sound

    log = {name: jnp.zeros(report_every) for name in (*measures, "finite")}
    state, log, _ = lax.fori_loop(0, count, one, (state, log, jnp.bool(True)))
    return state, lax.pmean(log, AXIS)


def _all_finite(state: PyTree) -> jax.Array:
    return functools.reduce(jnp.logical_and, [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)])


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
      NotFinite: a number came out infinite or none; what led to it is kept in the folder 'nonfinite'.
      DiskError: the work directory cannot be written to.
      DataError: the images were changed, or checkpoints are damaged.
      DeviceError: a device or another process failed.
    """
    state, t = experiment.fresh_state() if start is None else start, experiment.training
    with Checkpoints(workdir / "checkpoints", t.keep) as checkpoints, _StopSignal() as stop:
        checkpoints.set_damaged_aside()
        resumed = checkpoints.latest_step("latest")
        if resumed is not None:
            state = checkpoints.restore("latest", state)
            say(f"continuing at meta-step {resumed} of {t.steps}")
        first = resumed or 0
        with (
            MetricsWriter(workdir, first) if jax.process_index() == 0 else NoMetrics() as metrics,
            Feed(experiment.tasks, experiment.devices, t.tasks, first, t.steps, t.report_every) as feed,
            Meter("training", t.steps, "meta-steps", first, lines=False) as meter,
            Watch(experiment.stores) as watch,
            failures_explained(),
        ):
            run = _Run(experiment, feed, checkpoints, metrics, meter, stop, watch)
            try:
                return run.take(state)
            except FloatingPointError as error:  # under jax_debug_nans
                found = NotFinite(int(run.state.step) + 1, str(error).split("\n")[0].rstrip("."))
                raise explained(found, experiment, run.state, workdir) from error
            except NotFinite as error:
                raise explained(error, experiment, run.state, workdir) from error


class _Run:
    """One start of a training run, until its end or a signal.

    Attributes:
      state: where it stands.
    """

    def __init__(self, experiment, feed, checkpoints, metrics, meter, stop, watch):
        t = self._training = experiment.training
        self._feed, self._checkpoints, self._metrics = feed, checkpoints, metrics
        self._meter, self._stop, self._devices, self._watch = meter, stop, experiment.devices, watch
        self._pace = Pace()
        run = functools.partial(
            run_steps,
            method=experiment.method,
            optimizer=experiment.optimizer,
            per_step=t.tasks,
            tasks_at_once=t.tasks_at_once,
            report_every=t.report_every,
            on_nonfinite=t.on_nonfinite,
        )
        donated = () if jax.config.jax_debug_nans else (0,)  # which takes a call again whose result is NaN
        self._advance = spread(run, experiment.devices, experiment.backend, donate=donated)
        self._validator = Evaluator(experiment, "val") if t.validate_every else None
        self._protocol = {**experiment.testing.facts, "steps": experiment.testing.steps}
        self._report = _Report(t, metrics, meter)

    def take(self, state: MetaState) -> MetaState:
        """Takes the meta-steps that are left."""
        t, step = self._training, int(state.step)
        self.state = replicate(state, self._devices)
        if not t.steps:  # what there is to evaluate is the start
            if self._validator:
                self._validate(step)
            self._save(step)
        if step < t.steps:
            say("compiling the meta-step; this takes a moment the first time")
        while step < t.steps:
            step, stopping = self._steps(step, self._next_stop(step))
            if self._validator and (step % t.validate_every == 0 or step == t.steps):
                self._validate(step)
            stopping = stopping or bool(agreed(np.array(self._stop.requested)))
            if step % t.checkpoint_every == 0 or step == t.steps or stopping:
                self._save(step)
            if stopping:
                raise Interrupted(f"stopped after meta-step {step} of {t.steps}; run the same command to go on")
        return self.state

    def _next_stop(self, step: int) -> int:
        """The meta-step before which nothing is to be reported, validated or kept."""
        t = self._training
        every = (t.report_every, t.checkpoint_every, t.validate_every)
        return min(t.steps, *((step // n + 1) * n for n in every if n))

    def _steps(self, step: int, until: int) -> tuple[int, bool]:
        """Takes meta-steps to `until`, or fewer if asked to stop; where that is, and whether it was asked."""
        logs, reached, stopping = [], step, False
        self._pace.begin()
        for tasks, count in self._feed.between(step, until):
            end = reached + count
            while reached < end and not stopping:
                part = min(end - reached, self._pace.steps)
                self.state, log = self._advance(self.state, tasks, np.int32(part))
                self._meter.start()  # the first call returns when the program is compiled
                self._report.show_last()  # while the device has this call to work on
                jax.block_until_ready(logs[-1:])  # two calls under way at most, since each may hold its tasks' images
                logs.append((part, log))
                reached += part
                stopping = reached < until and self._pace.call_taken(self._stop.requested)
            if stopping:
                break
        self._report.add(step, reached, logs)
        return reached, stopping

    def _save(self, step: int) -> None:
        self._report.show_last()
        self._watch.check()
        with self._meter.paused():
            self._checkpoints.save("latest", step, self.state)

    def _validate(self, step: int) -> None:
        """Scores the state on the validation tasks and keeps it if it is the best so far."""
        state = self.state
        self._report.show_last()
        with self._meter.paused():
            result = self._validator(state.params, state.stats, self._training.validation_tasks)
            self._watch.check()
            protocol = {**self._protocol, "tasks": self._training.validation_tasks}
            facts = self._checkpoints.facts("best")
            same = facts.get("protocol", protocol) == protocol  # else the scores cannot be compared
            best = facts.get("score", facts.get("accuracy", -math.inf)) if same else -math.inf
            self._metrics.write(step, "val", **result.means)
            mark = ""
            if result.score > best:  # which no number that is not one fulfils
                self._checkpoints.save("best", step, state, score=result.score, protocol=protocol)
                mark = ", the best so far"
        say(f"step {step:>6}  validation {result}{mark}")


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
        taken = values.pop("finite") == 1
        sound = taken & np.isfinite(values["loss"])
        skipping = self._training.on_nonfinite == "skip"
        if not (sound.any() if skipping else sound.all()):
            at, losses = int(sound.argmin()), values["loss"]
            leads = "it leads to parameters or statistics that are not finite"
            what = leads if np.isfinite(losses[at]) else f"the query loss is {losses[at]}"
            raise NotFinite(start + at + 1, what, all_of=len(sound) if skipping else 0)
        means = {name: float(rows[sound].mean()) for name, rows in values.items()}
        skipped = {} if taken.all() else {"skipped": int((~taken).sum())}
        before, self._seconds = self._seconds, self._meter.seconds
        rate = (end - start) * self._training.tasks / max(self._seconds - before, 1e-9)
        self._metrics.write(end, "train", **means, **skipped, tasks_per_second=rate)
        self._meter.advance(end)
        accuracy = f"  accuracy {means['accuracy']:.2%}" if "accuracy" in means else ""
        left = f"  {self._meter.left}" if self._meter.left else ""
        left_out = f"  {skipped['skipped']} not finite, left out" if skipped else ""
        say(
            f"step {end:>6} / {self._training.steps}  loss {means['loss']:.4f}{accuracy}  {rate:.1f} tasks/s{left_out}"
            f"{left}"
        )


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
