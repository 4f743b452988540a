"""The sides of the benchmark's rows by name, each in a process of its own: `python -m parity.sides SIDE ROW`."""

import ctypes
import dataclasses
import functools
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from parity.bench import Row, UnavailableError, from_json, to_json
from parity.turns import Side

PIECE = 5 * 2**20  # bytes of a layer's images at once, of the rows in pieces


def serve(side: str, row: str) -> None:
    """The worker: reads 'turn' or 'finish' from standard input, answers with seconds or with MiB.

    A side that cannot run here answers so to its first question, and ends.

    Args:
      side: a key of `SIDES`.
      row: the row, by `to_json`.
    """
    try:
        chosen = SIDES[side](from_json(row))
    except UnavailableError as error:
        print(json.dumps({"unavailable": str(error)}), flush=True)
        return
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


def _first_start(row: Row, warm: bool) -> Side:
    """A turn is a fresh process, from its start to the end of its first meta-step.

    Args:
      row: of the benchmark.
      warm: an earlier process has left its compiled programs where JAX_COMPILATION_CACHE_DIR says; else there are none.

    Returns:
      A side whose `peak_mib` is all that such a process has had resident at most.
    """
    command = [sys.executable, "-m", "parity.sides", "ours", to_json(dataclasses.replace(row, turn=1))]

    def start(**environment):
        told = {**os.environ, **environment}
        subprocess.run(command, input="turn\n", env=told, stdout=subprocess.DEVNULL, text=True, check=True)

    def start_cold():
        with tempfile.TemporaryDirectory() as empty:
            start(JAX_COMPILATION_CACHE_DIR=empty)

    if warm:
        start()
    peak = lambda: resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # noqa: E731
    return Side(start if warm else start_cold, peak)


def _jax(name: str, **how) -> Callable[[Row], Side]:
    return functools.partial(_call, "parity.jax_sides", name, **how)


def _torch(name: str, **how) -> Callable[[Row], Side]:
    return functools.partial(_call, "parity.torch_sides", name, **how)


def _call(module: str, name: str, row: Row, **how) -> Side:
    """Calls a module's function; no process loads both JAX and PyTorch, whose memory would count for the other."""
    return getattr(importlib.import_module(module), name)(row, **how)


SIDES: dict[str, Callable[[Row], Side]] = {
    "ours": _jax("steps"),
    "nested": _jax("steps", checkpoint="nested"),
    "forward_over_reverse": _jax("steps", forward_over_reverse=True),
    "pieces": _jax("steps", piece=PIECE),
    "without_winograd": _jax("without_winograd"),
    "plain_conv": _jax("plain_conv"),
    "plain_conv_pieces": _jax("plain_conv", piece=PIECE),
    "training_loop": _jax("training_loop"),
    "training_loop_host": _jax("training_loop", on_host=True),
    "evaluation": _jax("evaluation"),
    "start_warm": lambda row: _first_start(row, warm=True),
    "start_cold": lambda row: _first_start(row, warm=False),
    "reference": _torch("plain"),
    "torch_func": _torch("functional"),
    "torch_vmap": _torch("functional", at_once=True),
    "reference_evaluation": _torch("plain_evaluation"),
    "torch_func_evaluation": _torch("functional_evaluation"),
    "torch_vmap_evaluation": _torch("functional_evaluation", at_once=True),
    "torch_compiled": _torch("functional", compiled=True),
}


if __name__ == "__main__":
    serve(*sys.argv[1:])
