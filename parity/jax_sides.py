"""Our sides of the benchmark: meta-steps as in training, their variants, the training loop, and evaluation."""

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from parity.bench import Row
from parity.turns import Side, images, peak_above_now

CLIP = 10.0  # as `parity.reference.CLIP`, which would load PyTorch


class _Ours(NamedTuple):
    """What every kind of our sides starts from.

    Attributes:
      devices: that share the tasks.
      peak: `Side.peak_mib`.
      parts: arguments that `meta_step` and `run_steps` have in common, by name.
      state: on all devices.
    """

    devices: list
    peak: Callable[[], float]
    parts: dict[str, Any]
    state: Any


def _start_ours(row: Row, piece: int | None = None, conv: Callable | None = None, **how) -> _Ours:
    """Starts JAX and draws a state.

    Args:
      row: of the benchmark.
      piece: the classifier's; by default as in training.
      conv: the encoder's; by default its own.
      **how: fields of `InnerLoop`.
    """
    import jax
    import optax

    from maml_jax import train  # and all that it imports, which is not to count
    from maml_jax.meta.inner import InnerLoop, all_but, sgd
    from maml_jax.meta.outer import Maml
    from maml_jax.meta.step import init_state
    from maml_jax.nn.classifier import Classifier
    from maml_jax.nn.encoders import encoder
    from maml_jax.nn.head import LinearHead
    from maml_jax.nn.kernels.budget import default_piece
    from maml_jax.nn.model import learner
    from maml_jax.parallel import choose_devices, replicate

    del train
    with contextlib.suppress(RuntimeError):  # JAX has started
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    devices = choose_devices(row.tasks, row.devices)
    peak = peak_above_now()
    if devices[0].platform != "cpu":
        peak = lambda: sum(d.memory_stats()["peak_bytes_in_use"] for d in devices) / 2**20  # noqa: E731
    network = encoder(row.encoder.replace("-", "_"), row.width)
    network = network.clone(conv=conv) if conv else network
    if piece is None:
        piece = default_piece(network, (row.way * row.query, row.side, row.side, row.channels))
    classifier = Classifier(network, LinearHead(row.way), piece)
    inner = InnerLoop(sgd(0.01), all_but("norm" if row.frozen else ""), row.first_order, **how)
    method = Maml(learner(classifier), inner, row.steps)
    optimizer = optax.chain(optax.clip(CLIP), optax.adam(1e-3))
    at_once = 1 if jax.default_backend() == "cpu" else row.tasks // len(devices)
    parts = {"method": method, "optimizer": optimizer, "tasks_at_once": at_once}
    task = jax.tree.map(lambda x: x[0], _episodes(row))
    return _Ours(devices, peak, parts, replicate(init_state(method, optimizer, jax.random.key(0), task), devices))


def _episodes(row: Row):
    from maml_jax.episode import Episode

    narrow = {np.dtype(np.int64): np.int32}  # the labels: JAX has no more
    return Episode(*(a.astype(narrow.get(a.dtype, a.dtype)) for a in images(row, channels_first=False)))


def steps(row: Row, **how) -> Side:
    """Our meta-steps on fixed episodes, all of a turn in one call."""
    import jax
    from jax import lax
    from jax.sharding import Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    from maml_jax.meta.step import meta_step
    from maml_jax.parallel import AXIS

    devices, peak, parts, state = _start_ours(row, **how)
    mesh = Mesh(np.asarray(devices), (AXIS,))
    episodes = jax.device_put(_episodes(row), NamedSharding(mesh, P(AXIS)))

    def run(state, episodes):
        one = lambda _, state: meta_step(state=state, episodes=episodes, axis=AXIS, **parts)[0]  # noqa: E731
        return lax.fori_loop(0, row.turn, one, state)

    run = jax.shard_map(run, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P(), check_vma=False)
    traced = jax.jit(run, donate_argnums=0).trace(state, episodes)
    compiled = traced.lower().compile()

    def turn():
        nonlocal state
        state = jax.block_until_ready(compiled(state, episodes))

    temporary = compiled.memory_analysis().temp_size_in_bytes * len(devices) / 2**20
    return Side(turn, peak, temporary, traced.jaxpr, len(devices))


def plain_conv(row: Row, **how) -> Side:
    """Our meta-steps with the convolution, and so the derivatives, that `nn.Conv` has."""
    from jax import lax

    def conv(x, kernel, stride):
        return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return steps(row, conv=conv, **how)


def without_winograd(row: Row) -> Side:
    """Our meta-steps with all convolutions as plain sums of products."""
    from maml_jax.nn.kernels.conv import conv_same

    return steps(row, conv=functools.partial(conv_same, winograd=False))


def training_loop(row: Row, on_host: bool = False) -> Side:
    """Our meta-steps as in training: on tasks drawn and measured along the way, from images on the device or not."""
    import jax

    from maml_jax.data.stream import Feed
    from maml_jax.parallel import spread
    from maml_jax.train import run_steps

    devices, peak, parts, state = _start_ours(row)
    run = functools.partial(run_steps, per_step=row.tasks, report_every=row.turn, **parts)
    advance = spread(run, devices, "shard_map", donate=(0,))
    feed, step = Feed(_tasks(row, on_host), devices, row.tasks, 0, 10**6, row.turn), 0

    def turn():
        nonlocal state, step
        for some, count in feed.between(step, step + row.turn):
            state, log = advance(state, some, np.int32(count))
        step += row.turn
        jax.block_until_ready((state, log))

    return Side(turn, peak, devices=len(devices))


def _tasks(row: Row, on_host: bool):
    """Tasks of 64 classes of 600 random images each."""
    from maml_jax.data.sampler import TaskSpec
    from maml_jax.data.store import ClassStore
    from maml_jax.data.stream import place

    classes, per_class = 64, 600
    shape = (classes * per_class, row.side, row.side, row.channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    store = ClassStore(pixels, np.arange(classes + 1) * per_class, tuple(map(str, range(classes))), "train")
    spec = TaskSpec(0, "train", row.way, row.shot, row.query, size=row.side)
    return place({"train": store}, {"train": spec}, "host" if on_host else "device", 1.0)["train"]


def evaluation(row: Row) -> Side:
    """The `Evaluator` on as many tasks as the meta-steps of a turn have, with as many inner steps."""
    import jax

    from maml_jax.evaluate import Evaluator
    from maml_jax.experiment import Experiment, Testing

    devices, peak, parts, state = _start_ours(row)
    method, count = parts["method"], row.turn * row.tasks
    experiment = Experiment(
        seed=0,
        method=method,
        tested=method,
        optimizer=parts["optimizer"],
        tasks=None,
        eval_tasks={"test": _tasks(row, on_host=False)},
        training=None,
        testing=Testing("test", count, row.steps, "latest", by_step=False, facts={}, data={}),
        devices=devices,
        backend="shard_map",
        stores={},
    )
    evaluator = Evaluator(experiment, "test")
    return Side(lambda: evaluator(state.params, state.stats, count), peak, devices=len(jax.devices()))
