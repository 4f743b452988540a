"""One function on every device, each with its share of the tasks."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maml_jax.errors import ConfigError, DeviceError, ProcessesApart
from maml_jax.tree import PyTree

AXIS = "tasks"  # over devices, for collectives
BACKENDS = ("shard_map", "pmap")
GOES_ON = "the same command goes on from the latest checkpoint, on fewer devices or processes, too"


def spread(
    function: Callable[..., PyTree], devices: Sequence[jax.Device], backend: str, donate: tuple[int, ...] = ()
) -> Callable[..., PyTree]:
    """Compiles `function` to run on all of `devices` at once, every one with the same arguments.

    Inside, `my_share` tells the tasks of a device, and collectives over `AXIS` bring together what the devices made of
    theirs: results must be the same on all.

    Args:
      function: of arrays, to arrays.
      devices: of all processes.
      backend: 'shard_map' or 'pmap', with the same result.
      donate: positions of arguments whose memory 'shard_map' may use again.
    """
    if backend == "pmap":  # which wants an argument that differs from device to device, and here donates none
        places = np.arange(sum(device.process_index == jax.process_index() for device in devices))
        mapped = jax.pmap(lambda _, args: function(*args), AXIS, in_axes=(0, None), out_axes=None, devices=devices)
        return lambda *args: mapped(places, args)
    mapped = jax.shard_map(function, mesh=_mesh(devices), in_specs=P(), out_specs=P(), check_vma=False)
    return jax.jit(mapped, donate_argnums=donate)


def replicate(tree: PyTree, devices: Sequence[jax.Device]) -> PyTree:
    """Copies arrays, the same in every process, to every device; those that are there already stay."""
    sharding = NamedSharding(_mesh(devices), P())

    def copy(x):
        if isinstance(x, jax.Array) and x.sharding == sharding:
            return x
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(copy, tree)


def my_share(tasks: int) -> jax.Array:
    """Which of `tasks` tasks, a multiple of the number of devices, are this device's; int32 `[tasks / devices]`."""
    share = tasks // lax.axis_size(AXIS)
    return lax.axis_index(AXIS) * share + jnp.arange(share, dtype=jnp.int32)


def mean_over(axis: str, tree: PyTree) -> PyTree:
    """The mean of float arrays over the devices of a mapped axis, all of them in one collective.

    A collective waits for the slowest device, and takes some microseconds however little it reduces.
    """
    leaves, structure = jax.tree.flatten(tree)
    if not leaves or lax.axis_size(axis) == 1:
        return tree
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    parts = jnp.split(lax.pmean(jnp.concatenate([jnp.ravel(leaf) for leaf in leaves]), axis), ends)
    same = [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, same)


def agreed(flags: np.ndarray) -> np.ndarray:
    """Which of `flags` are set in any process; bool, of any shape."""
    if jax.process_count() == 1:
        return flags
    return np.asarray(multihost_utils.process_allgather(flags)).any(0)


@contextlib.contextmanager
def failures_explained() -> Iterator[None]:
    """Gives what the machine is to blame for a message of its own; defects of programs stay as they are.

    Raises:
      DeviceError: within the context, memory was too small, a device failed, or another process ended.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        status, reason = re.match(r"([A-Z_]*):? *([^\n]*)", str(error)).groups()
        if status in ("INVALID_ARGUMENT", "UNIMPLEMENTED", "") or "callback" in str(error).lower():
            raise
        if status == "RESOURCE_EXHAUSTED":
            raise DeviceError(
                f"a device has too little memory ({reason}); fewer tasks side by side take less, so do more devices",
                {"train.tasks_at_once": 1},
            ) from error
        alone = jax.process_count() == 1
        what = "a device failed" if alone else "another process of the run has ended, or failed"
        raise (DeviceError if alone else ProcessesApart)(f"{what} ({status}: {reason}); {GOES_ON}") from error


def choose_devices(tasks: int, count: int) -> list[jax.Device]:
    """The first `count` devices, or where that is 0 the most that share `tasks` tasks evenly."""
    devices = jax.devices()
    return devices[: count or max(n for n in range(1, len(devices) + 1) if tasks % n == 0)]


def device_memory() -> int:
    """Bytes that each device offers; those that a CPU is made of share the machine's."""
    devices = jax.local_devices()
    statistics = devices[0].memory_stats() or {}
    shared = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    return statistics.get("bytes_limit") or shared


def check_devices(tasks: int, count: int, at_once: int) -> None:
    """Refuses a distribution over devices that does not come out even.

    Args:
      tasks: of a meta-step.
      count: devices that are to share them; 0 for as many as possible.
      at_once: tasks that a device is to take side by side; 0 for a choice.

    Raises:
      ConfigError: more devices than there are, or tasks that cannot be shared out evenly.
    """
    there = len(jax.devices())
    if count > there:
        raise ConfigError(f"parallel.devices={count}, but there are only {there}", {"parallel.devices": 0})
    if count and tasks % count:
        raise ConfigError(f"parallel.devices={count} does not divide train.tasks={tasks}", {"parallel.devices": 0})
    devices = len(choose_devices(tasks, count))
    if jax.process_count() > 1 and devices < there:
        raise ConfigError(
            f"the {jax.process_count()} processes have {there} devices, all of which must take part, so "
            f"train.tasks={tasks} must be a multiple of that, and parallel.devices 0"
        )
    share = tasks // devices
    if at_once and share % at_once:
        raise ConfigError(
            f"train.tasks_at_once={at_once} does not divide the {share} tasks of a device ({tasks} on {devices})",
            {"train.tasks_at_once": 0},
        )


def _mesh(devices):
    return Mesh(np.asarray(devices), (AXIS,))
