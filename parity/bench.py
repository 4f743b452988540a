"""Speed and memory of our meta-step against the plain PyTorch one of `parity.reference`, side by side.

Each side lives in a process of its own, so that memory can be told apart (it is read from Linux's /proc), and the two
take their steps in turn, so that a noisy machine is noisy to both. `python -m parity bench` prints medians; every speed
in the README comes from it.
"""

import ctypes
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from parity.reference import CLIP


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the benchmark: a second-order meta-step with Adam, on random images, five ways.

    Attributes:
      encoder: the reference's name of it.
      width: its channels.
      side: of the images, in pixels.
      channels: of the images.
      shot: support images per class.
      query: query images per class.
      tasks: per meta-step.
      steps: of the inner loop.
      first_order: FOMAML.
      frozen: what does not adapt.
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

    @property
    def way(self) -> int:
        """Classes per task."""
        return 5


ROWS = {
    "convnet4_84_1shot": Row(),
    "convnet4_84_5shot": Row(shot=5),
    "convnet4_84_first_order": Row(first_order=True),
    "omniglot": Row("wide-convnet4", 64, 28, 1, query=5, tasks=16, steps=1, frozen=False),
}


def bench(names: Sequence[str], repeats: int) -> list[dict[str, float | str]]:
    """Measures rows one after the other.

    Args:
      names: keys of `ROWS`.
      repeats: steps timed on each side, after one that is not.

    Returns:
      For each row its `name`, `ours_seconds` and `reference_seconds` (medians), `speedup` (of the medians), and
      `ours_peak_mib` and `reference_peak_mib`: the most memory resident during those steps, above what it was after
      the imports.
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
    sides = {side: _Worker(side, name) for side in ("ours", "reference")}
    try:
        for worker in sides.values():
            worker.step()
        times = {side: [] for side in sides}
        for _ in range(repeats):
            for side, worker in sides.items():
                times[side].append(worker.step())
        peaks = {side: worker.finish() for side, worker in sides.items()}
    finally:
        for worker in sides.values():
            worker.kill()
    medians = {side: statistics.median(t) for side, t in times.items()}
    return {
        "name": name,
        "ours_seconds": medians["ours"],
        "reference_seconds": medians["reference"],
        "speedup": medians["reference"] / medians["ours"],
        "ours_peak_mib": peaks["ours"],
        "reference_peak_mib": peaks["reference"],
    }


class _Worker:
    """One side in a process of its own, which takes a step for every line it is sent."""

    def __init__(self, side: str, name: str):
        command = [sys.executable, "-m", "parity.bench", side, name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _ask(self, word: str) -> float:
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the benchmark's process {self._process.args} ended early; its error stands above")
        return json.loads(answer)

    def step(self) -> float:
        return self._ask("step")

    def finish(self) -> float:
        return self._ask("finish")

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


def serve(side: str, name: str) -> None:
    """The worker: reads 'step' or 'finish' from standard input, answers with seconds or with MiB."""
    make: Callable[[Row], tuple[Callable[[], None], float]] = {"ours": _ours, "reference": _reference}[side]
    step, baseline = make(ROWS[name])
    first = True
    for line in sys.stdin:
        if line.strip() == "finish":
            print(json.dumps(_memory("VmHWM") - baseline), flush=True)
            continue
        began = time.perf_counter()
        step()
        print(json.dumps(time.perf_counter() - began), flush=True)
        if first:  # what compilation and warm-up needed does not count: give it back, and let the peak start anew
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            first = False


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


def _ours(row: Row) -> tuple[Callable[[], None], float]:
    import jax
    import jax.numpy as jnp
    import optax

    from maml_jax.episode import Episode
    from maml_jax.meta.inner import InnerLoop, all_but, sgd
    from maml_jax.meta.step import init_state, meta_step
    from maml_jax.nn import model as models

    jax.devices()
    baseline = _memory("VmRSS")
    model = models.build("convnet4", row.width, "batch", "meta", row.way, (row.side, row.side, row.channels))
    inner = InnerLoop(sgd(0.01, 0.01, 0.0, 0.0), all_but("norm" if row.frozen else ""), row.first_order)
    optimizer = optax.chain(optax.clip(CLIP), optax.adam(1e-3))
    at_once = 1 if jax.default_backend() == "cpu" else row.tasks
    update = jax.jit(
        lambda state, episodes: meta_step(model, inner, optimizer, state, episodes, row.steps, at_once)[0],
        donate_argnums=0,
    )
    state = init_state(model, optimizer, jax.random.key(0))
    episodes = Episode(*(jnp.asarray(a) for a in _images(row, channels_first=False)))

    def step():
        nonlocal state
        state = jax.block_until_ready(update(state, episodes))

    return step, baseline


def _reference(row: Row) -> tuple[Callable[[], None], float]:
    import torch

    from parity import reference

    device = "cuda" if torch.cuda.is_available() else "cpu"
    baseline = _memory("VmRSS")
    spec = reference.ModelSpec(row.encoder, row.way, row.side, channels=row.channels)
    inner = reference.InnerSpec(row.steps, first_order=row.first_order, frozen=("bn",) if row.frozen else ())
    params = reference.init_params(spec, torch.Generator().manual_seed(0))
    params = {name: p.to(device) for name, p in params.items()}
    optimiser = reference.OPTIMISERS["adam"](params.values(), lr=1e-3)
    episodes = reference.Episodes(*(torch.as_tensor(a, device=device) for a in _images(row, channels_first=True)))

    def step():
        reference.outer_step(spec, inner, optimiser, params, {}, episodes)
        if device == "cuda":
            torch.cuda.synchronize()

    return step, baseline


if __name__ == "__main__":
    serve(*sys.argv[1:])
