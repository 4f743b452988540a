"""Meta-training: many meta-steps per compiled call, validation, checkpoints."""

import functools
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import lax

from maml_jax import experiment, tree
from maml_jax.checkpoint import Checkpoints
from maml_jax.data.sampler import DeviceImages, TaskSpec
from maml_jax.data.sinusoid import SinusoidSpec
from maml_jax.data.stream import Feed, Images, TaskChunk, episodes
from maml_jax.errors import ConfigError
from maml_jax.evaluate import Evaluator
from maml_jax.files import MetricsWriter, NoMetrics
from maml_jax.meta.inner import InnerLoop
from maml_jax.meta.parallel import AXIS, agreed, my_share, replicate, spread
from maml_jax.meta.step import Annealing, MetaState, init_state, meta_step
from maml_jax.nn.model import Model
from maml_jax.progress import duration, say


class Interrupted(Exception):
    """Training was asked to stop, and has written a checkpoint."""


def run_steps(
    state: MetaState,
    images: DeviceImages | TaskChunk,
    count: jax.Array,
    *,
    model: Model,
    inner: InnerLoop,
    optimizer: optax.GradientTransformation,
    annealing: Annealing,
    spec: TaskSpec | SinusoidSpec,
    tasks: int,
    steps: int,
    tasks_at_once: int,
    report_every: int,
) -> tuple[MetaState, dict[str, jax.Array]]:
    """Takes `count` meta-steps, at most `report_every`, on tasks drawn inside, as one of the devices.

    Returns:
      The state, and the query loss and (but for regression) accuracy of each step, `[report_every]`, of which the first
      `count` count.
    """
    measures = ("loss",) if isinstance(spec, SinusoidSpec) else ("loss", "accuracy")

    def one(i, carry):
        state, log = carry
        batch = episodes(spec, images, state.step, tasks, my_share(tasks))
        state, results = meta_step(model, inner, optimizer, state, batch, steps, tasks_at_once, AXIS, annealing)
        measured = {name: getattr(results, name).mean() for name in measures}
        return state, jax.tree.map(lambda row, value: row.at[i].set(value), log, measured)

    log = {name: jnp.zeros(report_every) for name in measures}
    state, log = lax.fori_loop(0, count, one, (state, log))
    return state, lax.pmean(log, AXIS)


def fresh_state(config: ml_collections.ConfigDict, image_shape: tuple[int, int, int]) -> MetaState:
    """The state that training under `config` starts from."""
    model = experiment.build_model(config, config.task.way, image_shape)
    key = jax.random.key(config.seed)
    return init_state(model, experiment.build_outer(config), key, experiment.build_inner(config))


def renormalized(state: MetaState, fresh: MetaState) -> MetaState:
    """A trained state for a model that differs in its normalisation modes only.

    Args:
      state: trained.
      fresh: as `fresh_state` gives it for the other modes; its parameters stand where the trained state has none.

    Raises:
      ConfigError: the other modes need statistics that training did not gather, or parameters of other shapes.
    """
    trained = {name: leaf for part in (state.params, state.stats) for name, leaf in _named(part)}
    lacking = [name for name, _ in _named(fresh.stats) if name not in trained]
    reshaped = [name for name, leaf in _named(fresh.params) if trained.get(name, leaf).shape != leaf.shape]
    if lacking or reshaped:
        raise ConfigError(
            f"model.norm differs from that of the training, which leaves no usable {(lacking + reshaped)[0]}; "
            "evaluate with the trained modes, or change batch, metabn and tasknorm for each other"
        )
    params, stats = (tree.map_named(lambda n, leaf: trained.get(n, leaf), part) for part in (fresh.params, fresh.stats))
    return state.replace(params=params, stats=stats)


def _named(part):
    return zip(tree.names(part), jax.tree.leaves(part), strict=True)


def train(config: ml_collections.ConfigDict, images: Mapping[str, Images], workdir: Path) -> None:
    """Trains until `train.steps`, from the latest checkpoint in the work directory if there is one.

    Writes `metrics.jsonl`, TensorBoard events and checkpoints. The result is the same whether or not it was
    interrupted.

    Args:
      config: the configuration, checked.
      images: by split; 'train', and 'val' if `train.validate_every` is set.
      workdir: an existing folder.

    Raises:
      Interrupted: SIGINT or SIGTERM came; the steps taken are in the latest checkpoint.
    """
    state = fresh_state(config, experiment.image_shape(config, images["train"]))
    with Checkpoints(workdir / "checkpoints") as checkpoints, _StopSignal() as stop:
        resumed = checkpoints.latest_step("latest")
        if resumed is not None:
            state = checkpoints.restore("latest", state)
            say(f"continuing at meta-step {resumed} of {config.train.steps}")
        c, devices = config.train, experiment.devices(config)
        tasks, start = experiment.train_tasks(config), resumed or 0
        feed = Feed(tasks, images["train"], devices, c.tasks, start, c.steps, c.report_every)
        with MetricsWriter(workdir, start) if jax.process_index() == 0 else NoMetrics() as metrics, feed:
            _loop(config, images, feed, state, checkpoints, metrics, stop)


def _loop(config, images, feed, state, checkpoints, metrics, stop):
    c = config.train
    devices = experiment.devices(config)
    run = functools.partial(
        run_steps,
        model=experiment.build_model(config, config.task.way, experiment.image_shape(config, images["train"])),
        inner=experiment.build_inner(config),
        optimizer=experiment.build_outer(config),
        annealing=experiment.build_annealing(config),
        spec=experiment.train_tasks(config),
        tasks=c.tasks,
        steps=config.inner.steps,
        tasks_at_once=experiment.tasks_at_once(config),
        report_every=c.report_every,
    )
    advance = spread(run, devices, config.parallel.backend, donate=(0,))
    state = replicate(state, devices)
    validator = Evaluator(config, images["val"], "val") if c.validate_every else None
    step = int(state.step)
    report = _Report(config, metrics, step)
    if step < c.steps:
        say("compiling the meta-step; this takes a moment the first time")
    while step < c.steps:
        until = min(c.steps, *(_next(step, every) for every in (c.report_every, c.checkpoint_every, c.validate_every)))
        logs = []
        for tasks, count in feed.between(step, until):
            state, log = advance(state, tasks, np.int32(count))
            jax.block_until_ready(logs[-1:])  # two calls under way at most, since each may hold its tasks' images
            logs.append((count, log))
        report.show_last()  # while the device computes the next ones
        report.add(step, until, logs)
        step = until
        at_end = step == c.steps
        if validator and (step % c.validate_every == 0 or at_end):
            report.show_last()
            _validate(validator, c.validation_tasks, state, checkpoints, metrics)
        stopping = agreed(stop.requested)
        if step % c.checkpoint_every == 0 or at_end or stopping:
            report.show_last()
            checkpoints.save("latest", step, state)
        if stopping:
            raise Interrupted(f"stopped after meta-step {step} of {c.steps}; run the same command to go on")


def _next(step: int, every: int) -> float:
    return (step // every + 1) * every if every else float("inf")


def _validate(validator, tasks, state, checkpoints, metrics):
    """Scores the state on the validation tasks and keeps it if it is the best so far."""
    step = int(state.step)
    result = validator(state.params, state.stats, tasks)
    best = checkpoints.facts("best").get("accuracy", -1.0)
    metrics.write(step, "val", loss=result.loss, accuracy=result.accuracy, ci95=result.ci95)
    mark = ""
    if result.accuracy > best:
        checkpoints.save("best", step, state, accuracy=result.accuracy)
        mark = ", the best so far"
    say(f"step {step:>6}  validation accuracy {result.accuracy:.2%} ± {result.ci95:.2%}{mark}")


class _Report:
    """Writes what a call measured, one call late, so that the host does not wait for the device."""

    def __init__(self, config, metrics, step):
        self._config, self._metrics, self._first = config, metrics, step
        self._pending = None
        self._clock = time.perf_counter()
        self._started = None  # set after the first call, which includes compilation

    def add(self, start, end, logs):
        self._pending = (start, end, logs)

    def show_last(self):
        if self._pending is None:
            return
        start, end, logs = self._pending
        self._pending = None
        logs = [{name: values[:count] for name, values in log.items()} for count, log in jax.device_get(logs)]
        means = {name: float(np.concatenate([log[name] for log in logs]).mean()) for name in logs[0]}
        now = time.perf_counter()
        rate = (end - start) * self._config.train.tasks / (now - self._clock)
        self._clock = now
        self._metrics.write(end, "train", **means, tasks_per_second=rate)
        left = ""
        if self._started:
            since, at = self._started
            left = f"  {duration((self._config.train.steps - end) * (now - since) / (end - at))} left"
        else:
            self._started = (now, end)
        total = self._config.train.steps
        accuracy = f"  accuracy {means['accuracy']:.2%}" if "accuracy" in means else ""
        say(f"step {end:>6} / {total}  loss {means['loss']:.4f}{accuracy}  {rate:.1f} tasks/s{left}")


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
