"""Tasks for the compiled program, whether the images are on the device or too many for it.

Images on the device (`DeviceImages`) are drawn from inside the compiled call. Images on the host (`ClassStore`, a file
mapped into memory) are drawn from by the same function of (seed, split, index) on the host's CPU, in threads and ahead
of time; what goes to the device is a `TaskChunk`, the uint8 images of the tasks of some meta-steps. All else, from
augmentation on, happens in the compiled call with the same keys: the tasks are the same bit for bit.
"""

import functools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from maml_jax.data.sampler import DeviceImages, TaskDraw, TaskSpec, draw_task, finish_task, sample_task
from maml_jax.data.store import ClassStore
from maml_jax.episode import Episode
from maml_jax.errors import ConfigError
from maml_jax.meta.parallel import replicate

Images = DeviceImages | ClassStore
"""The images of a split, where they are to stay."""

_CHUNK_BYTES = 32 * 2**20  # more chunks in flight rather than larger ones: the first is there sooner
_THREADS = 4  # that read ahead, a chunk each


class TaskChunk(NamedTuple):
    """The images of the tasks of consecutive meta-steps, the first a multiple of `steps`.

    Attributes:
      pixels: uint8 `[steps, tasks, way, shot + query, height, width, channels]`.
      turns: int32 `[steps, tasks, way]`, see `TaskDraw`.
    """

    pixels: jax.Array
    turns: jax.Array


def place(stores: Mapping[str, ClassStore], placement: str, device_share: float) -> dict[str, Images]:
    """Decides whether splits go onto the device, which `Feed` then does, or stay on the host.

    Args:
      stores: the splits that are used together.
      placement: 'device'; 'host'; or 'auto', on the device if they fit all together.
      device_share: the largest share of the device's memory that they may take to fit.

    Raises:
      ConfigError: they are to be on the device, and are larger than its memory.
    """
    size, memory = sum(store.nbytes for store in stores.values()), _device_memory()
    if placement == "device" and size > memory:
        raise ConfigError(
            f"data.placement='device', but the {' and '.join(stores)} images take {size / 2**30:.1f} GiB and the "
            f"device has {memory / 2**30:.1f} GiB; use --config.data.placement=host"
        )
    if placement == "device" or (placement == "auto" and size <= device_share * memory):
        return {split: DeviceImages(store.images, store.offsets.astype(np.int32)) for split, store in stores.items()}
    return dict(stores)


def _device_memory() -> int:
    """Bytes that each device offers; those that a CPU is made of share the machine's."""
    devices = jax.local_devices()
    statistics = devices[0].memory_stats() or {}
    shared = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    return statistics.get("bytes_limit") or shared


def episode(spec: TaskSpec, images: DeviceImages | TaskChunk, step: jax.Array, slot: jax.Array, tasks: int) -> Episode:
    """Task step · tasks + slot of the split, inside the compiled call.

    Args:
      spec: how tasks are drawn.
      images: the split's images, or the chunk that meta-step `step` is in.
      step: the meta-step.
      slot: which of its tasks.
      tasks: per meta-step.
    """
    index = step * tasks + slot
    if isinstance(images, DeviceImages):
        return sample_task(spec, images, index)
    at = step % images.pixels.shape[0]
    return finish_task(spec, images.pixels[at, slot], images.turns[at, slot], index)


def episodes(
    spec: TaskSpec, images: DeviceImages | TaskChunk, step: jax.Array, tasks: int, slots: jax.Array
) -> Episode:
    """The batch of those of the `tasks` tasks of meta-step `step` that stand at `slots`, int32 `[batch]`."""
    return jax.vmap(lambda slot: episode(spec, images, step, slot, tasks))(slots)


class Feed:
    """Hands out, meta-step after meta-step, the images that `episodes` takes; reads ahead in threads.

    Meta-step s consists of the tasks s · tasks .. (s + 1) · tasks - 1. To be used as a context manager, which ends the
    reading.

    Args:
      spec: how tasks are drawn.
      images: of the split.
      devices: to hand them to.
      tasks: per meta-step.
      first: the first meta-step.
      last: the meta-step to stop before.
      most: meta-steps that a chunk may hold.

    Raises:
      ConfigError: the images are on the host, and JAX was told not to use its CPU.
    """

    def __init__(
        self,
        spec: TaskSpec,
        images: Images,
        devices: Sequence[jax.Device],
        tasks: int,
        first: int,
        last: int,
        most: int,
    ):
        self._devices = devices
        self._resident = replicate(images, devices) if isinstance(images, DeviceImages) else None
        if self._resident is not None:
            return
        import grain  # takes a second to load, and images on the device do not need it

        self._steps = _chunk_steps(spec, tasks, images.image_shape, most)
        self._next, end = first // self._steps, -(-last // self._steps)
        load = _Loader(spec, images, tasks, self._steps)
        chunks = grain.MapDataset.range(self._next, end).map(load)
        options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_THREADS)
        self._chunks = iter(chunks.to_iter_dataset(options))

    def between(self, first: int, last: int) -> Iterator[tuple[DeviceImages | TaskChunk, int]]:
        """Yields images for the meta-steps from `first` to `last` - 1, and for how many of them each is.

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


def _chunk_steps(spec: TaskSpec, tasks: int, image_shape: tuple[int, int, int], most: int) -> int:
    """How many meta-steps a chunk holds, at least one."""
    step_bytes = tasks * spec.way * (spec.shot + spec.query) * math.prod(image_shape)
    return max(1, min(most, _CHUNK_BYTES // step_bytes))


@functools.partial(jax.jit, static_argnums=0)
def _draw_tasks(spec: TaskSpec, offsets: jax.Array, indices: jax.Array) -> TaskDraw:
    return jax.vmap(lambda index: draw_task(spec, offsets, index))(indices)


class _Loader:
    """Makes chunk number `n` of a split on the host: meta-steps n · steps .. (n + 1) · steps - 1."""

    def __init__(self, spec: TaskSpec, store: ClassStore, tasks: int, steps: int):
        try:
            self._cpu = jax.local_devices(backend="cpu")[0]
        except RuntimeError as error:
            raise ConfigError(
                "data.placement='host' draws tasks on the CPU, which JAX_PLATFORMS leaves out; add it as in "
                "JAX_PLATFORMS=cuda,cpu, or use --config.data.placement=device"
            ) from error
        self._pixels = np.asarray(store.images)
        self._offsets = jax.device_put(store.offsets.astype(np.int32), self._cpu)
        self._spec, self._shape = spec, (steps, tasks)
        self._draw(0)  # compiles, which the threads would otherwise do one each

    def __call__(self, number: int) -> TaskChunk:
        rows, turns = self._draw(number)
        pixels = self._pixels.take(rows.reshape(*self._shape, *rows.shape[1:]), 0)
        return TaskChunk(pixels, turns.reshape(*self._shape, -1))

    def _draw(self, number: int) -> TaskDraw:
        count = math.prod(self._shape)
        indices = np.arange(number * count, (number + 1) * count, dtype=np.int32)
        return jax.device_get(_draw_tasks(self._spec, self._offsets, jax.device_put(indices, self._cpu)))
