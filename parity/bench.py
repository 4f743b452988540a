"""Speed and memory of our meta-step against the plain PyTorch one of `parity.reference`, side by side.

Each side lives in a process of its own, so that memory can be told apart (it is read from Linux's /proc), and the two
take their turns one after the other, so that a noisy machine is noisy to both. `python -m parity bench` prints medians;
every speed in the README comes from it.
"""

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path


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
      ours: what stands on our side, a key of `parity.sides.SIDES`.
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
    "pieces": Row(ours="pieces"),
    "pieces_against_whole": Row(ours="pieces", against="ours"),
    "omniglot": Row("wide-convnet4", 64, 28, 1, query=5, tasks=16, steps=1, frozen=False),
    "resnet12_84": Row("resnet12", 0, tasks=2, turn=1, devices=1),  # the tasks one after the other, to save memory
    **{f"memory_steps_{n}": Row(tasks=1, steps=n, turn=1) for n in (1, 5, 10, 20, 100)},
    "memory_steps_100_nested": Row(tasks=1, steps=100, turn=1, ours="nested", against="ours"),
    "plain_conv": Row(tasks=1, turn=1, against="plain_conv"),
    "plain_conv_pieces": Row(tasks=1, turn=1, ours="pieces", against="plain_conv_pieces"),
    "training_loop": Row(turn=10, ours="training_loop", against="ours"),
    "training_loop_host": Row(turn=10, ours="training_loop_host", against="training_loop"),
    "forward_over_reverse": Row(tasks=1, turn=1, ours="forward_over_reverse", against="ours"),
    "resnet12_forward_over_reverse": Row(
        "resnet12", 0, tasks=1, turn=1, steps=2, query=1, ours="forward_over_reverse", against="ours"
    ),
}


def bench(names: Sequence[str], repeats: int) -> list[dict[str, float | str | None]]:
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


def _measure(name: str, repeats: int) -> dict[str, float | str | None]:
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
            [sys.executable, "-m", "parity.sides", side, name],
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
