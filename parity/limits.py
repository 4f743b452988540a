"""What limits a meta-step: its arithmetic and its memory traffic, against what the machine can do.

The work is counted in the jaxpr of the meta-step, so it includes what checkpointing computes again; the machine's rates
are measured on the spot. `python -m parity limits` prints the floor that either sets, and the time a step takes.
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from parity.bench import Row
from parity.sides import SIDES


class Work(NamedTuple):
    """Of a computation.

    Attributes:
      flops: multiplications and additions in convolutions and matrix products, as their definitions have them; the
        Winograd form of a convolution does with fewer.
      bytes: what these read and write if each operand and result goes through memory once and all else is free.
    """

    flops: float
    bytes: float


def count(jaxpr: Jaxpr, times: int = 1) -> Work:
    """Counts the work in a jaxpr, the bodies of scans as often as they run."""
    flops = traffic = 0.0
    for equation in jaxpr.eqns:
        moved = sum(v.aval.size * v.aval.dtype.itemsize for v in (*equation.invars, *equation.outvars))
        match equation.primitive.name:
            case "closed_conv":
                _, kh, kw, *channels = equation.invars[1].aval.shape
                summed = kh * kw * channels[equation.params["flipped"]]
                flops += 2 * math.prod(equation.outvars[0].aval.shape) * summed
                traffic += moved
            case "closed_conv_wgrad":
                _, y = (v.aval.shape for v in equation.invars)
                flops += 2 * math.prod(equation.outvars[0].aval.shape[1:]) * math.prod(y[:4])
                traffic += moved
            case "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                depth = math.prod(equation.invars[0].aval.shape[i] for i in contracted)
                flops += 2 * math.prod(equation.outvars[0].aval.shape) * depth
                traffic += moved
            case _:
                repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
                for inner in _bodies(equation.params):
                    work = count(inner, repeats)
                    flops, traffic = flops + work.flops, traffic + work.bytes
    return Work(flops * times, traffic * times)


def _bodies(params):
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def limits(row: Row, repeats: int) -> dict[str, float]:
    """Counts and measures.

    Args:
      row: of the benchmark.
      repeats: timed runs of everything, of which the median counts.

    Returns:
      `gflop` and `gigabytes` per meta-step; the machine's `gflop_per_second` on matrices and `gigabytes_per_second` on
      copies, over all devices; `arithmetic_seconds` and `memory_seconds`, the floors they set; and `step_seconds`.
    """
    side = SIDES["ours"](row)
    work = Work(*(total * side.devices / row.turn for total in count(side.jaxpr.jaxpr)))
    matrix, long = jnp.ones((2048, 2048)), jnp.ones(2**26)
    rate = 2 * 2048**3 / _seconds(jax.jit(lambda a: a @ a), matrix, repeats)
    bandwidth = 2 * long.nbytes * 8 / _seconds(jax.jit(_copies), long, repeats)
    step = statistics.median(_timed(side.turn) for _ in range(repeats + 1)) / row.turn
    return {
        "gflop": work.flops / 1e9,
        "gigabytes": work.bytes / 1e9,
        "gflop_per_second": rate / 1e9,
        "gigabytes_per_second": bandwidth / 1e9,
        "arithmetic_seconds": work.flops / rate,
        "memory_seconds": work.bytes / bandwidth,
        "step_seconds": step,
    }


def _copies(x):
    """Writes an array anew eight times, in memory that the program already holds."""
    return jax.lax.fori_loop(0, 8, lambda i, x: x * 1.5 - 0.5, x)


def _seconds(function: Callable, argument: jax.Array, repeats: int) -> float:
    run = lambda: jax.block_until_ready(function(argument))  # noqa: E731
    run()
    return statistics.median(_timed(run) for _ in range(repeats))


def _timed(function: Callable) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began
