"""The sides of the benchmark's rows: ours, its variants, and the PyTorch reference, each ready to take its turns."""

import contextlib
import ctypes
import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from parity.bench import ROWS, Row
from parity.reference import CLIP

PIECE = 5 * 2**20  # bytes of a layer's images at once, of the rows in pieces


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a row, ready to run.

    Attributes:
      turn: takes the meta-steps of a turn.
      peak_mib: the most memory in use so far, above what the imports took.
      temporary_mib: XLA's figure for temporary memory, where it is known.
      jaxpr: of a turn, as one device computes it, if it is ours.
      devices: how many take part.
    """

    turn: Callable[[], None]
    peak_mib: Callable[[], float]
    temporary_mib: float | None = None
    jaxpr: Any = None
    devices: int = 1


def serve(side: str, name: str) -> None:
    """The worker: reads 'turn' or 'finish' from standard input, answers with seconds or with MiB."""
    chosen = SIDES[side](ROWS[name])
    first = True
    for line in sys.stdin:
        if line.strip() == "finish":
            print(json.dumps({"peak_mib": chosen.peak_mib(), "temporary_mib": chosen.temporary_mib}), flush=True)
            continue
        began = time.perf_counter()
        chosen.turn()
        print(json.dumps(time.perf_counter() - began), flush=True)
        if first:  # what compilation and warm-up needed does not count: give it back, and let the peak start anew
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            first = False


def _peak_above_now() -> Callable[[], float]:
    """Tells, when called later, how many MiB more than now this process has had resident at most."""
    now = _memory("VmRSS")
    return lambda: _memory("VmHWM") - now


def _memory(field: str) -> float:
    """MiB that the kernel gives for this process: VmRSS, resident now, or VmHWM, the most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def _images(row: Row, channels_first: bool) -> tuple[np.ndarray, ...]:
    """Random support and query images and their labels."""
    rng = np.random.default_rng(0)
    space = (row.channels, row.side, row.side) if channels_first else (row.side, row.side, row.channels)
    arrays = []
    for count in (row.shot, row.query):
        arrays.append(rng.random((row.tasks, row.way * count, *space), np.float32))
        arrays.append(np.tile(np.repeat(np.arange(row.way), count), (row.tasks, 1)))
    return tuple(arrays)


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
    peak = _peak_above_now()
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

    return Episode(*_images(row, channels_first=False))


def _steps(row: Row, **how) -> Side:
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


def _plain_conv(row: Row, **how) -> Side:
    """Our meta-steps with the convolution, and so the derivatives, that `nn.Conv` has."""
    from jax import lax

    def conv(x, kernel, stride):
        return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return _steps(row, conv=conv, **how)


def _training_loop(row: Row, on_host: bool = False) -> Side:
    """Our meta-steps as in training: on tasks drawn and measured along the way, from images on the device or not."""
    import jax

    from maml_jax.data.sampler import TaskSpec
    from maml_jax.data.store import ClassStore
    from maml_jax.data.stream import Feed, place
    from maml_jax.parallel import spread
    from maml_jax.train import run_steps

    devices, peak, parts, state = _start_ours(row)
    classes, per_class = 64, 600
    images = np.random.default_rng(0).integers(
        0, 256, (classes * per_class, row.side, row.side, row.channels), np.uint8
    )
    store = ClassStore(images, np.arange(classes + 1) * per_class, tuple(map(str, range(classes))), "train")
    spec = TaskSpec(0, "train", row.way, row.shot, row.query, size=row.side)
    tasks = place({"train": store}, {"train": spec}, "host" if on_host else "device", 1.0)["train"]
    run = functools.partial(run_steps, per_step=row.tasks, report_every=row.turn, **parts)
    advance = spread(run, devices, "shard_map", donate=(0,))
    feed, step = Feed(tasks, devices, row.tasks, 0, 10**6, row.turn), 0

    def turn():
        nonlocal state, step
        for some, count in feed.between(step, step + row.turn):
            state, log = advance(state, some, np.int32(count))
        step += row.turn
        jax.block_until_ready((state, log))

    return Side(turn, peak, devices=len(devices))


def _torch(row: Row) -> Side:
    """The PyTorch reference's meta-steps."""
    import torch

    from parity import reference

    device = "cuda" if torch.cuda.is_available() else "cpu"
    peak = _peak_above_now() if device == "cpu" else lambda: torch.cuda.max_memory_allocated() / 2**20
    spec = reference.ModelSpec(row.encoder, row.way, row.side, channels=row.channels)
    inner = reference.InnerSpec(row.steps, first_order=row.first_order, frozen=("bn",) if row.frozen else ())
    params = reference.init_params(spec, torch.Generator().manual_seed(0))
    params = {name: p.to(device) for name, p in params.items()}
    optimiser = reference.OPTIMISERS["adam"](params.values(), lr=1e-3)
    episodes = reference.Episodes(*(torch.as_tensor(a, device=device) for a in _images(row, channels_first=True)))

    def turn():
        for _ in range(row.turn):
            reference.outer_step(spec, inner, optimiser, params, {}, episodes)
        if device == "cuda":
            torch.cuda.synchronize()

    return Side(turn, peak)


SIDES: dict[str, Callable[[Row], Side]] = {
    "ours": _steps,
    "reference": _torch,
    "nested": lambda row: _steps(row, checkpoint="nested"),
    "forward_over_reverse": lambda row: _steps(row, forward_over_reverse=True),
    "pieces": lambda row: _steps(row, piece=PIECE),
    "plain_conv": _plain_conv,
    "plain_conv_pieces": lambda row: _plain_conv(row, piece=PIECE),
    "training_loop": _training_loop,
    "training_loop_host": lambda row: _training_loop(row, on_host=True),
}


if __name__ == "__main__":
    serve(*sys.argv[1:])
