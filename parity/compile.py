"""Meta-steps compiled for accelerators that are not there.

XLA compiles for a described chip. What it makes of a meta-step can then be read: the kernels it launches, the library's
convolutions that it recognised, the memory that it moves and takes. Nothing is timed, for which a chip would be needed,
and what XLA chooses by timing, such as the library's algorithms, may be another there.
"""

import collections
import dataclasses
import importlib.util
import time
from collections.abc import Sequence
from typing import Any

from parity import hlo
from parity.bench import Row
from parity.targets import Target

_LAUNCH = {"cuda": 3e-6, "tpu": 0.0}  # seconds; on a GPU 2 to 5 µs are usual, a TPU runs the program by itself


class NotInstalledError(Exception):
    """The compiler for a target is not there; the message says how to get it."""


def described(target: Target, devices: int) -> list[Any]:
    """Descriptions of that many chips, which arrays may be sharded over but not put on.

    Raises:
      NotInstalledError: the compiler is not there.
    """
    if not all(map(_is_there, target.packages)):
        raise NotInstalledError(f"to compile for {target.title}: pip install 'maml-jax[aot]'")
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")  # for what is computed here
    target.prepare(devices)
    topology = topologies.get_topology_desc(platform=target.platform, **target.describe(devices))
    return topology.devices[:devices]


def _is_there(package):
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # nor is what it is part of
        return False


def measure(row: Row, half: bool, target: Target, chips: Sequence[Any]) -> dict[str, Any]:
    """Compiles a row's meta-step for chips that share its tasks, and reads the result.

    Args:
      row: of the benchmark.
      half: in bfloat16.
      target: what the chips are.
      chips: from `described`; they share the row's tasks.

    Returns:
      Per meta-step and chip, what loops run as often as they do:
        launches: kernels, library calls and collectives.
        largest_window: side of the largest window of a forward convolution, in pixels.
        calls: convolutions by kind, window and groups.
        temporary_mib, argument_mib: XLA's figures for its temporary memory, and for the arguments.
        collectives: how many.
        reduced_mib: what these reduce or gather.
        moved_mib: what is read and written.
        shuffled_mib: of that, by transposes and copies, be it along with other work.
        estimate_ms: not measured; the floors that `memory` and `arithmetic` set by published rates, and `launches` at
          3 µs each on a GPU.
        compile_seconds: on this machine.
    """
    began = time.perf_counter()
    compiled, gflop = _compiled(row, half, target, chips)
    seconds = time.perf_counter() - began
    program, memory = hlo.parse(compiled.as_text()), compiled.memory_analysis()
    launched = list(hlo.launches(program))
    moved = [launch.times * hlo.moved(program, launch) for launch in launched]
    shuffled = sum(n for n, launch in zip(moved, launched, strict=True) if hlo.shuffles(program, launch))
    calls = collections.Counter()
    for launch in launched:
        for call in hlo.convolutions(program, launch):
            calls[call] += launch.times
    collective = [launch for launch in launched if launch.instruction.op.removesuffix("-start") in hlo.COLLECTIVES]
    count = sum(launch.times for launch in launched)
    return {
        "launches": count,
        "largest_window": max((max(call.window) for call in calls if call.is_forward), default=0),
        "calls": {str(call): n for call, n in sorted(calls.items())},
        "temporary_mib": memory.temp_size_in_bytes / 2**20,
        "argument_mib": memory.argument_size_in_bytes / 2**20,
        "collectives": sum(launch.times for launch in collective),
        "reduced_mib": sum(launch.times * hlo.received(launch) for launch in collective) / 2**20,
        "moved_mib": sum(moved) / 2**20,
        "shuffled_mib": shuffled / 2**20,
        "estimate_ms": {
            "memory": sum(moved) / target.bandwidth * 1e3,
            "arithmetic": gflop * 1e9 / target.rates["bfloat16" if half else "float32"] * 1e3,
            "launches": count * _LAUNCH[target.platform] * 1e3,
        },
        "compile_seconds": seconds,
    }


def _compiled(row, half, target, chips):
    """The executable of one meta-step, and the GFLOP of each chip."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    from maml_jax.parallel import AXIS
    from parity.limits import count

    step, state, episodes = _program(row, half, len(chips))
    mesh = Mesh(np.asarray(chips), (AXIS,))

    def on(tree, spec):
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)

    step = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P(), check_vma=False)
    traced = jax.jit(step, donate_argnums=0).trace(on(state, P()), on(episodes, P(AXIS)))
    return traced.lower().compile(compiler_options=target.options), count(traced.jaxpr.jaxpr).flops / 1e9


def _program(row, half, devices):
    """One meta-step as in training on an accelerator, all tasks of a chip at once; and shapes of its arguments."""
    import jax
    import jax.numpy as jnp
    import optax

    from maml_jax import InnerLoop, Maml, all_but, init_state, learner, meta_step, sgd
    from maml_jax.episode import Episode
    from maml_jax.nn.classifier import Classifier
    from maml_jax.nn.encoders import encoder
    from maml_jax.nn.head import LinearHead
    from maml_jax.parallel import AXIS
    from parity.reference import CLIP

    module = Classifier(encoder(row.encoder.replace("-", "_"), row.width, "batch"), LinearHead(row.way), half=half)
    inner = InnerLoop(sgd(0.01), all_but("norm" if row.frozen else ""), row.first_order)
    method = Maml(learner(module), inner, row.steps)
    optimizer = optax.chain(optax.clip(CLIP), optax.adam(1e-3))

    def images(*leading):
        shape = (*leading, row.side, row.side, row.channels)
        return jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(leading, jnp.int32)

    def episode(*leading):
        return Episode(*images(*leading, row.way * row.shot), *images(*leading, row.way * row.query))

    state = jax.eval_shape(lambda: init_state(method, optimizer, jax.random.key(0), episode()))
    at_once = row.tasks // devices
    return lambda s, e: meta_step(method, optimizer, s, e, at_once, AXIS)[0], state, episode(row.tasks)


def report(found: dict[str, Any]) -> str:
    """The lines for a person to read."""
    return "\n".join(
        [
            f"{found['name']}, {found['precision']}, {found['tasks']} tasks on {found['devices']} x {found['target']}: "
            f"compiled in {found['compile_seconds']:.0f} s",
            f"  {found['launches']} launches per meta-step, {found['collectives']} collectives "
            f"({found['reduced_mib']:.1f} MiB), largest window {found['largest_window']}",
            f"  memory {found['temporary_mib']:.0f} MiB temporary, {found['argument_mib']:.0f} MiB arguments; "
            f"moved {found['moved_mib']:.0f} MiB, of which {found['shuffled_mib']:.0f} MiB by transposes and copies",
            "  estimated floors, not measured: "
            + ", ".join(f"{what} {ms:.2f} ms" for what, ms in found["estimate_ms"].items()),
            *(f"  {count:6} {call}" for call, count in found["calls"].items()),
        ]
    )


def compile_rows(
    rows: dict[str, Row], target: Target, name: str, devices: int = 1, tasks: int = 0, half: bool = False
) -> list[dict[str, Any]]:
    """`measure` of rows by name, for `devices` chips; `tasks` in place of a row's, and at least one for each chip."""
    chips = described(target, devices)
    found = []
    for title, row in rows.items():
        row = dataclasses.replace(row, tasks=max(tasks or row.tasks, devices))
        facts = {"name": title, "target": name, "devices": devices, "tasks": row.tasks}
        precision = "bfloat16" if half else "float32"
        found.append({**facts, "precision": precision, **measure(row, half, target, chips)})
    return found
