"""Speed and memory of our meta-step against PyTorch's, side by side.

Each side lives in a process of its own, so that memory can be told apart (it is read from Linux's /proc), and they take
their turns one after the other, so that a noisy machine is noisy to all. Where there are several opponents, ours is
held against the fastest. `python -m parity bench` prints medians; every speed in the README comes from it.

Row `functorch_omniglot` is functorch's Omniglot example: 28 px, 5-way 5-shot, 15 queries, 32 tasks, 5 inner steps that
adapt all parameters, 64 filters in three unpadded blocks. Its public figures per iteration (pytorch/functorch, issue
1040 on GitHub, October 2022), quoted here and not measured: 169 to 316 ms on V100s, 107 to 111 ms on A100s.
"""

import contextlib
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PYTORCH = ("reference", "torch_func")
PYTORCH_TESTS = ("reference_evaluation", "torch_func_evaluation", "torch_vmap_evaluation")
# Sides that compile for no other:
_NOTHING_KEPT = {"reference", "torch_func", "torch_vmap", *PYTORCH_TESTS, "start_warm", "start_cold"}


class UnavailableError(Exception):
    """A side cannot run on this machine; the message says why in one line."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the benchmark: meta-steps with Adam, on random images, five ways.

    Attributes:
      encoder: the reference's name of it, or ours ('package.module:Class') if it has none.
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
      against: what stands on the other, of which the fastest counts.
      shows: what the row is for, where its shapes do not tell.
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
    against: tuple[str, ...] = PYTORCH
    shows: str = ""

    @property
    def way(self) -> int:
        """Classes per task."""
        return 5

    def __str__(self) -> str:
        network = f"{self.encoder.split(':')[-1]}{f'-{self.width}' * bool(self.width)}"
        counts = [(self.query, "query", "queries"), (self.tasks, "task", "tasks"), (self.steps, "step", "steps")]
        counted = ", ".join(f"{n} {one if n == 1 else many}" for n, one, many in counts)
        sides = f"{self.ours} against {', '.join(self.against)}{f' ({self.shows})' * bool(self.shows)}"
        return f"{network}, {self.side} px, {self.way}-way {self.shot}-shot, {counted}; {sides}"


def to_json(row: Row) -> str:
    """A row as text."""
    return json.dumps(dataclasses.asdict(row))


def from_json(text: str) -> Row:
    """The row that `to_json` made a text of."""
    fields = json.loads(text)
    return Row(**{**fields, "against": tuple(fields["against"])})


_ALONE = Row(tasks=1, turn=1)
_OMNIGLOT = Row("wide-convnet4", 64, 28, 1, query=5, tasks=16, steps=1, frozen=False)
_TESTED = dataclasses.replace(_OMNIGLOT, query=15, tasks=25, steps=3, turn=8, ours="evaluation", against=PYTORCH_TESTS)
_RESNET = Row("resnet12", 0, tasks=2, turn=1, devices=1, against=("reference",))
_PLAIN = ("reference",)

ROWS = {
    "convnet4_84_1shot": Row(),
    "convnet4_84_1shot_compiled": Row(against=("torch_compiled",), shows="torch.compile, which itself takes minutes"),
    "convnet4_84_5shot": Row(shot=5),
    "convnet4_84_first_order": Row(first_order=True, shows="FOMAML"),
    "convnet4_84_1shot_one_device": Row(devices=1, shows="without a device per core"),
    "pieces": Row(ours="pieces"),
    "pieces_against_whole": Row(ours="pieces", against=("ours",)),
    "omniglot": _OMNIGLOT,
    "functorch_omniglot": Row(
        "parity.functorch_net:ConvNet3",
        64,
        28,
        1,
        5,
        tasks=32,
        frozen=False,
        turn=1,
        against=("torch_func", "torch_vmap"),
        shows="functorch's example",
    ),
    "cifar_32": Row(side=32),
    "cifar_64": Row(width=64, side=32),
    "resnet12_84": dataclasses.replace(_RESNET, shows="the tasks one after the other, to save memory"),
    **{f"memory_steps_{n}": dataclasses.replace(_ALONE, steps=n, against=_PLAIN) for n in (1, 5, 10, 20, 100)},
    "memory_steps_100_nested": dataclasses.replace(_ALONE, steps=100, ours="nested", against=("ours",)),
    "winograd": dataclasses.replace(_OMNIGLOT, against=("without_winograd",)),
    "plain_conv": dataclasses.replace(_ALONE, against=("plain_conv",)),
    "plain_conv_pieces": dataclasses.replace(_ALONE, ours="pieces", against=("plain_conv_pieces",)),
    "training_loop": Row(turn=10, ours="training_loop", against=("ours",)),
    "training_loop_host": Row(turn=10, ours="training_loop_host", against=("training_loop",)),
    "evaluation": Row(
        turn=13,  # 52 tasks: on two devices, two calls of the evaluator's
        ours="evaluation",
        against=("training_loop",),
        shows="seconds per 4 tasks, tested and trained on",
    ),
    "evaluation_omniglot": dataclasses.replace(_TESTED, shows="seconds per 25 tasks tested"),
    "first_start": Row(
        turn=1,
        ours="start_warm",
        against=("start_cold",),
        shows="from a process's start to its first meta-step, with compiled programs kept and without",
    ),
    "forward_over_reverse": dataclasses.replace(_ALONE, ours="forward_over_reverse", against=("ours",)),
    "resnet12_forward_over_reverse": dataclasses.replace(
        _RESNET, tasks=1, devices=0, steps=2, query=1, ours="forward_over_reverse", against=("ours",)
    ),
}


def bench(names: Sequence[str], repeats: int) -> list[dict[str, Any]]:
    """Measures rows one after the other; `measure` says what."""
    return [measure(name, ROWS[name], repeats) for name in names]


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


def measure(name: str, row: Row, repeats: int) -> dict[str, Any]:
    """Measures a row.

    Args:
      name: that it goes by.
      row: of the benchmark.
      repeats: turns timed on each side, after one that is not.

    Returns:
      `name`; `ours_seconds` and `reference_seconds` per meta-step (medians over turns), and `speedup` (of the medians);
      `ours_peak_mib` and `reference_peak_mib`: the most memory resident during those turns, above what it was after the
      imports; `ours_temporary_mib`: XLA's own figure for the temporary memory of our program, over all its devices.
      `reference` is the fastest of the row's opponents: `fastest` is its name, `others` has the seconds of all that
      ran, by name, and `unavailable` says why others did not.

    Raises:
      UnavailableError: our side, or none of the others, runs here.
      RuntimeError: a side's process ended early.
    """
    with tempfile.TemporaryDirectory() as cache, contextlib.ExitStack() as stack:
        workers, unavailable = {}, {}
        for side in (*row.against, row.ours):
            try:
                workers[side] = stack.enter_context(_ready(side, row, cache))
            except UnavailableError as error:
                unavailable[side] = str(error)
        if row.ours not in workers or len(workers) == 1:
            raise UnavailableError("; ".join(f"{name}: {side}: {why}" for side, why in unavailable.items()))
        return _summary(name, row, _take_turns(row, workers, repeats), unavailable)


class _Measured(NamedTuple):
    """Of one side: the median of its seconds per meta-step, and what `Side` says of memory."""

    seconds: float
    peak_mib: float
    temporary_mib: float | None


def _take_turns(row: Row, workers: Mapping[str, "_Worker"], repeats: int) -> dict[str, _Measured]:
    times = {side: [] for side in workers}
    for _ in range(repeats):
        for side, worker in workers.items():
            times[side].append(worker.turn() / row.turn)
    return {side: _Measured(statistics.median(times[side]), **worker.finish()) for side, worker in workers.items()}


def _summary(name: str, row: Row, measured: Mapping[str, _Measured], unavailable: Mapping[str, str]) -> dict[str, Any]:
    ours = measured[row.ours]
    others = {side: measured[side].seconds for side in row.against if side in measured}
    fastest = min(others, key=others.get)
    return {
        "name": name,
        "ours_seconds": ours.seconds,
        "reference_seconds": others[fastest],
        "speedup": others[fastest] / ours.seconds,
        "ours_peak_mib": ours.peak_mib,
        "reference_peak_mib": measured[fastest].peak_mib,
        "ours_temporary_mib": ours.temporary_mib,
        "fastest": fastest,
        "others": others,
        "unavailable": dict(unavailable),
    }


@contextlib.contextmanager
def _ready(side: str, row: Row, cache: str) -> Iterator["_Worker"]:
    """A worker that has taken its first turn."""
    if side not in _NOTHING_KEPT:  # compiles, which leaves memory in use, for the one that is measured
        with _Worker(side, row, cache) as first:
            first.finish()
    with _Worker(side, row, cache) as worker:
        worker.turn()
        yield worker


class _Worker:
    """One side in a process of its own, which takes a turn for every line it is sent; as a context, it ends with it."""

    def __init__(self, side: str, row: Row, cache: str):
        environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self._side = side
        self._process = subprocess.Popen(
            [sys.executable, "-m", "parity.sides", side, to_json(row)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def _ask(self, word: str):
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what it had to say before it ended is yet to be read
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the benchmark's process for {self._side!r} ended early; its error stands above")
        answer = json.loads(answer)
        if isinstance(answer, dict) and "unavailable" in answer:
            raise UnavailableError(answer["unavailable"])
        return answer

    def turn(self) -> float:
        return self._ask("turn")

    def finish(self) -> dict[str, float | None]:
        return self._ask("finish")

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *exception) -> None:
        self._process.kill()
        self._process.communicate()
