"""What all sides of the benchmark's rows have in common: how they take turns, on which images, in how much memory."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from parity.bench import Row


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


def peak_above_now() -> Callable[[], float]:
    """Tells, when called later, how many MiB more than now this process has had resident at most."""
    now = _memory("VmRSS")
    return lambda: _memory("VmHWM") - now


def _memory(field: str) -> float:
    """MiB that the kernel gives for this process: VmRSS, resident now, or VmHWM, the most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def images(row: Row, channels_first: bool) -> tuple[np.ndarray, ...]:
    """Random support and query images and their labels.

    Returns:
      Support images float32 `[tasks, way * shot, height, width, channels]`, or `[..., channels, height, width]`;
      their labels int64 `[tasks, way * shot]`; and both of the queries.
    """
    rng = np.random.default_rng(0)
    space = (row.channels, row.side, row.side) if channels_first else (row.side, row.side, row.channels)
    arrays = []
    for count in (row.shot, row.query):
        arrays.append(rng.random((row.tasks, row.way * count, *space), np.float32))
        arrays.append(np.tile(np.repeat(np.arange(row.way), count), (row.tasks, 1)))
    return tuple(arrays)
