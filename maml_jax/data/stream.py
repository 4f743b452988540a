"""Tasks where their images are: in the device's memory, or read ahead from disk.

Images on the device (`ImageTasks`) are drawn from inside the compiled call. Those on the host (`HostTasks`, a file
mapped into memory) are drawn from by the same function of (seed, split, index) on the host's CPU, in threads and ahead
of time; what goes to the device is a `TaskChunk`, the uint8 images of the tasks of some meta-steps. All else, from
augmentation on, happens in the compiled call with the same keys: the tasks are the same bit for bit.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from maml_jax.data.sampler import ImageTasks, TaskDraw, TaskSpec, draw_task, finish_task
from maml_jax.data.store import ClassStore
from maml_jax.episode import Episode, Tasks
from maml_jax.errors import ConfigError
from maml_jax.parallel import device_memory, replicate
from maml_jax.progress import say

_CHUNK_BYTES = 32 * 2**20  # more chunks in flight rather than larger ones: the first is there sooner
_THREADS = 4  # that read ahead, a chunk each


@dataclasses.dataclass(frozen=True, eq=False)
class HostTasks:
    """The tasks of a split whose images stay on the host; `Feed` makes `Tasks` of them, some at a time.

    Attributes:
      spec: how they are drawn.
      store: the images.
    """

    spec: TaskSpec
    store: ClassStore

    def sample(self, index: jax.Array) -> Episode:
        """Draws task `index` outside of any compiled program."""
        (rows, *rest) = _draw_tasks(self.spec, self.store.offsets.astype(np.int32), index[None])
        return finish_task(self.spec, self.store.images[np.asarray(rows[0])], *(part[0] for part in rest), index)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["pixels", "turns", "labels"], meta_fields=["spec"])
@dataclasses.dataclass(frozen=True)
class TaskChunk:
    """The `Tasks` of some meta-steps, the first a multiple of how many there are.

    Attributes:
      spec: how they are drawn.
      pixels: uint8 `[tasks, way, shot + query, height, width, channels]`.
      turns: int32 `[tasks, way]`, see `TaskDraw`.
      labels: likewise.
    """

    spec: TaskSpec
    pixels: jax.Array
    turns: jax.Array
    labels: jax.Array

    def sample(self, index: jax.Array) -> Episode:
        """Task `index`, which must be one of the chunk's."""
        at = index % self.pixels.shape[0]
        return finish_task(self.spec, self.pixels[at], self.turns[at], self.labels[at], index)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Constant:
    """Tasks of a user's own class, which is no pytree, as one without arrays."""

    tasks: Tasks

    def sample(self, index: jax.Array) -> Episode:
        return self.tasks.sample(index)


def as_pytree(tasks: Tasks) -> Tasks:
    """The tasks in a form that can be an argument of a compiled program."""
    leaves = jax.tree.leaves(tasks)
    return _Constant(tasks) if len(leaves) == 1 and leaves[0] is tasks else tasks


def resident(tasks: Tasks, devices: Sequence[jax.Device]) -> Tasks:
    """The tasks with their arrays on all devices; those whose images stay on the host as they are."""
    return tasks if isinstance(tasks, HostTasks) else replicate(as_pytree(tasks), devices)


def example(tasks: Tasks) -> Episode:
    """Shapes and types of a task."""
    if isinstance(tasks, HostTasks):
        tasks = ImageTasks(tasks.spec, tasks.store.images, tasks.store.offsets.astype(np.int32))
    index = jax.ShapeDtypeStruct((), np.int32)
    return jax.eval_shape(lambda tasks, index: tasks.sample(index), as_pytree(tasks), index)


def sample_batch(tasks: Tasks, indices: jax.Array) -> Episode:
    """The tasks `indices`, int32 `[tasks]`: a batch of episodes."""
    return jax.vmap(tasks.sample)(indices)


def place(
    stores: Mapping[str, ClassStore], specs: Mapping[str, TaskSpec], placement: str, device_share: float
) -> dict[str, ImageTasks | HostTasks]:
    """Decides whether the images of splits go onto the device, which `Feed` then does, or stay on the host.

    Args:
      stores: the splits that are used together.
      specs: how their tasks are drawn.
      placement: 'device'; 'host'; or 'auto', on the device if they fit all together.
      device_share: the largest share of the device's memory that they may take to fit.

    Raises:
      ConfigError: they are to be on the device, and are larger than its memory.
    """
    size, memory = sum(store.nbytes for store in stores.values()), device_memory()
    if placement == "device" and size > memory:
        raise ConfigError(
            f"data.placement='device', but the {' and '.join(stores)} images take {size / 2**30:.1f} GiB and the "
            f"device has {memory / 2**30:.1f} GiB",
            {"data.placement": "host"},
        )
    if placement == "device" or (placement == "auto" and size <= device_share * memory):
        return {
            split: ImageTasks(specs[split], store.images, store.offsets.astype(np.int32))
            for split, store in stores.items()
        }
    say(f"the {' and '.join(stores)} images ({size / 2**30:.2f} GiB) stay on the host and are streamed")
    return {split: HostTasks(specs[split], store) for split, store in stores.items()}


class Feed:
    """Hands out, meta-step after meta-step, tasks as arguments of a compiled program; reads ahead in threads.

    Meta-step s consists of the tasks s · per_step .. (s + 1) · per_step - 1. To be used as a context manager, which
    ends the reading.

    Args:
      tasks: of a split.
      devices: to hand them to.
      per_step: tasks of a meta-step.
      first: the first meta-step.
      last: the meta-step to stop before.
      most: meta-steps that a chunk may hold.

    Raises:
      ConfigError: the images are on the host, and JAX was told not to use its CPU.
    """

    def __init__(self, tasks: Tasks, devices: Sequence[jax.Device], per_step: int, first: int, last: int, most: int):
        self._devices = devices
        self._resident = None if isinstance(tasks, HostTasks) else resident(tasks, devices)
        if self._resident is not None:
            return
        import grain  # takes a second to load, and images on the device do not need it

        self._steps = _chunk_steps(tasks, per_step, most)
        self._next, end = first // self._steps, -(-last // self._steps)
        chunks = grain.MapDataset.range(self._next, end).map(_Loader(tasks, per_step * self._steps))
        options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_THREADS)
        self._chunks = iter(chunks.to_iter_dataset(options))

    def between(self, first: int, last: int) -> Iterator[tuple[Tasks, int]]:
        """Yields tasks for the meta-steps from `first` to `last` - 1, and for how many of them each is.

        Each call goes on where the last one ended.
        """
        if self._resident is not None:
            yield self._resident, last - first
            return
        while first < last:
            if first // self._steps == self._next:
                self._chunk = replicate(next(self._chunks), self._devices)
                self._next += 1
            stop = min(last, self._next * self._steps)
            yield self._chunk, stop - first
            first = stop

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *exception) -> None:
        if self._resident is None:
            self._chunks.close()


def _chunk_steps(tasks: HostTasks, per_step: int, most: int) -> int:
    """How many meta-steps a chunk holds, at least one."""
    spec = tasks.spec
    step_bytes = per_step * spec.way * (spec.shot + spec.query) * math.prod(tasks.store.image_shape)
    return max(1, min(most, _CHUNK_BYTES // step_bytes))


@functools.partial(jax.jit, static_argnums=0)
def _draw_tasks(spec: TaskSpec, offsets: jax.Array, indices: jax.Array) -> TaskDraw:
    return jax.vmap(lambda index: draw_task(spec, offsets, index))(indices)


def drawn_classes(tasks: Tasks, count: int) -> np.ndarray | None:
    """The classes of tasks 0 .. count - 1, as numbers of the store's, int `[count, way]`; None if they are of no store.

    Labels stand for them in this order.
    """
    if not isinstance(tasks, ImageTasks | HostTasks):
        return None
    offsets = np.asarray(tasks.store.offsets if isinstance(tasks, HostTasks) else tasks.offsets, np.int32)
    drawn = jax.device_get(_draw_tasks(tasks.spec, offsets, np.arange(count, dtype=np.int32)))
    return np.searchsorted(offsets, drawn.rows[..., 0], side="right") - 1


class _Loader:
    """Makes chunk number `n` of a split on the host: the tasks n · count .. (n + 1) · count - 1."""

    def __init__(self, tasks: HostTasks, count: int):
        try:
            self._cpu = jax.local_devices(backend="cpu")[0]
        except RuntimeError as error:
            raise ConfigError(
                "data.placement='host' draws tasks on the CPU, which JAX_PLATFORMS leaves out; add it as in "
                "JAX_PLATFORMS=cuda,cpu",
                {"data.placement": "device"},
            ) from error
        self._pixels = np.asarray(tasks.store.images)
        self._offsets = jax.device_put(tasks.store.offsets.astype(np.int32), self._cpu)
        self._spec, self._count = tasks.spec, count
        self._draw(0)  # compiles, which the threads would otherwise do one each

    def __call__(self, number: int) -> TaskChunk:
        drawn = self._draw(number)
        return TaskChunk(self._spec, self._pixels.take(drawn.rows, 0), drawn.turns, drawn.labels)

    def _draw(self, number: int) -> TaskDraw:
        indices = np.arange(number * self._count, (number + 1) * self._count, dtype=np.int32)
        return jax.device_get(_draw_tasks(self._spec, self._offsets, jax.device_put(indices, self._cpu)))
