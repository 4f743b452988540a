"""Speed and memory of our meta-step against the plain PyTorch one of `parity.reference`, side by side.

Each side lives in a process of its own, so that memory can be told apart (it is read from Linux's /proc), and the two
take their turns one after the other, so that a noisy machine is noisy to both. `python -m parity bench` prints medians;
every speed in the README comes from it.
"""

import ctypes
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parity.reference import CLIP


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the benchmark: meta-steps with Adam, on random images, five ways.

    Attributes:
      encoder: the reference's name of it.
      width: its channels; 0 for its own.
      side: of the images, in pixels.
      channels: of the images.
      shot: support images per class.
      query: query images per class.
      tasks: per meta-step.
      steps: of the inner loop.
      first_order: FOMAML.
      frozen: BatchNorm does not adapt.
      devices: that ours uses; 0 for as many as there are.
      turn: meta-steps per turn, ours in one compiled call as in training.
      ours: what stands on our side, a key of `SIDES`.
      against: what stands on the other.
    """

    encoder: str = "convnet4"
    width: int = 32
    side: int = 84
    channels: int = 3
    shot: int = 1
    query: int = 15
    tasks: int = 4
    steps: int = 5
    first_order: bool = False
    frozen: bool = True
    devices: int = 0
    turn: int = 3
    ours: str = "ours"
    against: str = "reference"

    @property
    def way(self) -> int:
        """Classes per task."""
        return 5


ROWS = {
    "convnet4_84_1shot": Row(),
    "convnet4_84_5shot": Row(shot=5),
    "convnet4_84_first_order": Row(first_order=True),
    "convnet4_84_1shot_one_device": Row(devices=1),
    "omniglot": Row("wide-convnet4", 64, 28, 1, query=5, tasks=16, steps=1, frozen=False),
    "resnet12_84": Row("resnet12", 0, tasks=2, turn=1),
    **{f"memory_steps_{n}": Row(tasks=1, steps=n, turn=1) for n in (1, 5, 10, 20, 100)},
    "memory_steps_100_nested": Row(tasks=1, steps=100, turn=1, ours="nested", against="ours"),
    "plain_conv": Row(tasks=1, steps=1, turn=1, against="plain_conv"),
    "training_loop": Row(turn=10, ours="training_loop", against="ours"),
    "forward_over_reverse": Row(tasks=1, turn=1, ours="forward_over_reverse", against="ours"),
    "resnet12_forward_over_reverse": Row(
        "resnet12", 0, tasks=1, turn=1, steps=2, query=1, ours="forward_over_reverse", against="ours"
    ),
}


def bench(names: Sequence[str], repeats: int) -> list[dict[str, float | str]]:
    """Measures rows one after the other.

    Args:
      names: keys of `ROWS`.
      repeats: turns timed on each side, after one that is not.

    Returns:
      For each row its `name`, `ours_seconds` and `reference_seconds` per meta-step (medians over turns), `speedup` (of
      the medians), and `ours_peak_mib` and `reference_peak_mib`: the most memory resident during those turns, above
      what it was after the imports. `reference` is what the row's `against` says. `ours_temporary_mib` is XLA's own
      figure for the temporary memory of our program, over all its devices.
    """
    return [_measure(name, repeats) for name in names]


def machine() -> str:
    """The processor, the number of cores, and the versions at work."""
    import jax
    import torch

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    device = jax.devices()[0].device_kind
    return f"{model}, {os.cpu_count()} cores; jax {jax.__version__} on {device}, torch {torch.__version__}"


def _measure(name: str, repeats: int) -> dict[str, float | str]:
    row = ROWS[name]
    with tempfile.TemporaryDirectory() as cache:
        for side in {row.ours, row.against} - {"reference"}:  # compiles, which leaves memory in use, for the others
            worker = _Worker(side, name, cache)
            worker.finish()
            worker.kill()
        sides = {"ours": _Worker(row.ours, name, cache), "reference": _Worker(row.against, name, cache)}
        return _take_turns(row, name, sides, repeats)


def _take_turns(row: Row, name: str, sides: dict[str, "_Worker"], repeats: int) -> dict[str, float | str]:
    try:
        for worker in sides.values():
            worker.turn()
        times = {side: [] for side in sides}
        for _ in range(repeats):
            for side, worker in sides.items():
                times[side].append(worker.turn() / row.turn)
        memory = {side: worker.finish() for side, worker in sides.items()}
    finally:
        for worker in sides.values():
            worker.kill()
    medians = {side: statistics.median(t) for side, t in times.items()}
    return {
        "name": name,
        "ours_seconds": medians["ours"],
        "reference_seconds": medians["reference"],
        "speedup": medians["reference"] / medians["ours"],
        "ours_peak_mib": memory["ours"]["peak_mib"],
        "reference_peak_mib": memory["reference"]["peak_mib"],
        "ours_temporary_mib": memory["ours"]["temporary_mib"],
    }


class _Worker:
    """One side in a process of its own, which takes a turn for every line it is sent."""

    def __init__(self, side: str, name: str, cache: str):
        environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "parity.bench", side, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def _ask(self, word: str):
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the benchmark's process {self._process.args} ended early; its error stands above")
        return json.loads(answer)

    def turn(self) -> float:
        return self._ask("turn")

    def finish(self) -> dict[str, float]:
        return self._ask("finish")

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a row, ready to run.

    Attributes:
      turn: takes the meta-steps of a turn.
      peak_mib: the most memory in use so far, above what the imports took.
      temporary_mib: XLA's figure for temporary memory, or NaN.
      jaxpr: of a turn, as one device computes it, if it is ours.
      devices: how many take part.
    """

    turn: Callable[[], None]
    peak_mib: Callable[[], float]
    temporary_mib: float = float("nan")
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


def _jax(row: Row, loop: bool = False, plain_conv: bool = False, **how) -> Side:
    """Our meta-steps, on fixed episodes or, as a `loop`, on tasks drawn and reported on as in training."""
    import jax
    import jax.numpy as jnp
    import optax
    from jax import lax

    from maml_jax.data.sampler import DeviceImages, TaskSpec
    from maml_jax.episode import Episode
    from maml_jax.meta.inner import InnerLoop, all_but, sgd
    from maml_jax.meta.parallel import AXIS, choose_devices, my_share, replicate, spread
    from maml_jax.meta.step import CONSTANT, init_state, meta_step
    from maml_jax.nn import layers
    from maml_jax.nn import model as models
    from maml_jax.train import run_steps

    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    if plain_conv:
        layers.conv_same = lambda x, kernel, stride: lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    devices = choose_devices(row.tasks, row.devices)
    peak = _peak_above_now()
    if devices[0].platform != "cpu":
        peak = lambda: sum(d.memory_stats()["peak_bytes_in_use"] for d in devices) / 2**20  # noqa: E731
    encoder = row.encoder.replace("-", "_")
    model = models.build(encoder, row.width, "batch", "meta", row.way, (row.side, row.side, row.channels))
    inner = InnerLoop(sgd(0.01, 0.01, 0.0, 0.0), all_but("norm" if row.frozen else ""), row.first_order, **how)
    optimizer = optax.chain(optax.clip(CLIP), optax.adam(1e-3))
    at_once = 1 if jax.default_backend() == "cpu" else row.tasks // len(devices)
    state = replicate(init_state(model, optimizer, jax.random.key(0)), devices)

    if loop:
        spec = TaskSpec(0, "train", row.way, row.shot, row.query, size=row.side)
        pixels = np.random.default_rng(0).integers(0, 256, (64 * 30, row.side, row.side, row.channels), np.uint8)
        data = DeviceImages(pixels, np.arange(65, dtype=np.int32) * 30)

        def run(state, images):
            return run_steps(
                state,
                images,
                row.turn,
                model=model,
                inner=inner,
                optimizer=optimizer,
                annealing=CONSTANT,
                spec=spec,
                tasks=row.tasks,
                steps=row.steps,
                tasks_at_once=at_once,
                report_every=row.turn,
            )
    else:
        data = Episode(*(jnp.asarray(a) for a in _images(row, channels_first=False)))

        def run(state, episodes):
            share = jax.tree.map(lambda x: x[my_share(row.tasks)], episodes)

            def one(_, state):
                return meta_step(model, inner, optimizer, state, share, row.steps, at_once, AXIS)[0]

            return lax.fori_loop(0, row.turn, one, state), None

    data = replicate(data, devices)
    traced = spread(run, devices, "shard_map", donate=(0,)).trace(state, data)
    compiled = traced.lower().compile()

    def turn():
        nonlocal state
        state, _ = jax.block_until_ready(compiled(state, data))

    temporary = compiled.memory_analysis().temp_size_in_bytes * len(devices) / 2**20
    return Side(turn, peak, temporary, traced.jaxpr, len(devices))


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
    "ours": _jax,
    "reference": _torch,
    "nested": lambda row: _jax(row, checkpoint="nested"),
    "forward_over_reverse": lambda row: _jax(row, forward_over_reverse=True),
    "plain_conv": lambda row: _jax(row, plain_conv=True),
    "training_loop": lambda row: _jax(row, loop=True),
}


if __name__ == "__main__":
    serve(*sys.argv[1:])
