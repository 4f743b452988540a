"""Images on the host: the same tasks as from the device, read ahead and in order."""

import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax.data import stream
from maml_jax.data.sampler import ImageTasks, TaskSpec
from maml_jax.data.store import ClassStore
from maml_jax.data.stream import Feed, HostTasks, TaskChunk, as_pytree, example, place, sample_batch
from maml_jax.errors import ConfigError
from tests.helpers import assert_same

COUNTS = (7, 5, 9, 6)
TASKS = 2  # per meta-step
PLAIN = TaskSpec(seed=3, split="train", way=3, shot=1, query=3)
AUGMENTED = TaskSpec(3, "val", 4, 2, 2, True, "color", "resize", ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)), size=10)
MOST = 3  # meta-steps of a chunk, the same everywhere so that little is compiled

_sample = jax.jit(sample_batch)


def draw(tasks, step):
    """The tasks of a meta-step."""
    return _sample(tasks, step * TASKS + jnp.arange(TASKS, dtype=jnp.int32))


def on_device(spec, store):
    return ImageTasks(spec, store.images, store.offsets.astype(np.int32))


@pytest.fixture(scope="module")
def store():
    offsets = np.concatenate([[0], np.cumsum(COUNTS)])
    images = np.random.default_rng(0).integers(0, 256, (offsets[-1], 12, 12, 3), np.uint8)
    return ClassStore(images, offsets, ("a", "b", "c", "d"), "train")


@pytest.mark.parametrize(
    ("spec", "first"), [(PLAIN, 0), (PLAIN, 7), (AUGMENTED, 7)], ids=["plain", "resumed", "augmented"]
)
def test_host_and_device_give_the_same_bits(store, spec, first):
    """From any meta-step on, in spans of any length."""
    resident, seen = on_device(spec, store), []
    with Feed(HostTasks(spec, store), jax.devices()[:1], TASKS, first, first + 12, MOST) as feed:
        for start, stop in ((first, first + 1), (first + 1, first + 10), (first + 10, first + 12)):
            step = start
            for chunk, count in feed.between(start, stop):
                assert isinstance(chunk, TaskChunk)
                assert 1 <= count <= MOST
                for s in range(step, step + count):
                    streamed, expected = (draw(tasks, s) for tasks in (chunk, resident))
                    assert_same(streamed, expected, 0)
                    seen.append(np.asarray(streamed.query_x).tobytes())
                step += count
            assert step == stop
    assert len(set(seen)) == 12, "every meta-step has tasks of its own"


def test_resident_tasks_are_handed_out_as_they_are(store):
    """Once for any number of meta-steps, as arrays on every device."""
    with Feed(on_device(PLAIN, store), jax.devices()[:2], TASKS, 0, 9, MOST) as feed:
        ((tasks, count),) = feed.between(2, 9)
    assert count == 7
    assert tasks.pixels.devices() == set(jax.devices()[:2])
    assert_same(draw(tasks, 4), draw(on_device(PLAIN, store), 4), 0)


@dataclasses.dataclass(frozen=True)
class Own:
    """Tasks of a user's: no pytree."""

    tasks: ImageTasks

    def sample(self, index):
        return self.tasks.sample(index)

    def __hash__(self):
        return 0


def test_tasks_that_are_no_pytree_are_handed_out_as_one(store):
    tasks = as_pytree(Own(on_device(PLAIN, store)))
    assert jax.tree.leaves(tasks) == []
    assert_same(tasks.sample(jnp.int32(3)), on_device(PLAIN, store).sample(jnp.int32(3)), 0)


def test_a_task_on_the_host_by_itself(store):
    """As drawn from the device, and of the same shapes before any is drawn."""
    here, there = HostTasks(AUGMENTED, store), on_device(AUGMENTED, store)
    assert_same(here.sample(jnp.int32(5)), jax.jit(there.sample)(jnp.int32(5)), 1e-5)
    assert example(here) == example(there)
    assert example(here).support_x.shape == (8, 10, 10, 3)


def test_chunks_stay_small(store):
    shapes = dataclasses.replace(store, images=np.empty((1, 84, 84, 3), np.uint8))
    mini = HostTasks(TaskSpec(0, "train", 5, 1, 15), shapes)
    assert stream._chunk_steps(mini, 4, most=100) == 4
    assert stream._chunk_steps(mini, 4, most=3) == 3
    assert stream._chunk_steps(mini, 400, most=100) == 1


def test_reading_ahead_ends_with_the_feed(store):
    readers = lambda: [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]  # noqa: E731
    before = set(readers())
    with Feed(HostTasks(PLAIN, store), jax.devices()[:1], TASKS, 0, 10_000, MOST) as feed:
        next(feed.between(0, 1))
        started = set(readers()) - before
        assert started
    for thread in started:
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_placement(store, monkeypatch):
    stores = {"train": store, "val": dataclasses.replace(store, split="val")}
    specs = {split: dataclasses.replace(PLAIN, split=split) for split in stores}
    size = 2 * store.nbytes
    monkeypatch.setattr(stream, "device_memory", lambda: 2 * size)

    def kinds(*how):
        placed = place(stores, specs, *how)
        assert {split: tasks.spec for split, tasks in placed.items()} == specs
        return {type(tasks) for tasks in placed.values()}

    assert kinds("auto", 0.5) == {ImageTasks}
    assert kinds("auto", 0.49) == {HostTasks}, "both splits together do not fit"
    assert kinds("device", 0.01) == {ImageTasks}
    assert kinds("host", 1.0) == {HostTasks}
    monkeypatch.setattr(stream, "device_memory", lambda: size - 1)
    with pytest.raises(ConfigError, match=r"data\.placement='device'.*train and val") as raised:
        place(stores, specs, "device", 0.5)
    assert raised.value.settings == {"data.placement": "host"}


def test_a_jax_without_cpu_is_refused(store, monkeypatch):
    def none(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    devices = jax.devices()
    monkeypatch.setattr(jax, "local_devices", none)
    with pytest.raises(ConfigError, match="JAX_PLATFORMS"):
        Feed(HostTasks(PLAIN, store), devices, TASKS, 0, 1, MOST)


def test_images_that_are_on_the_devices_are_not_copied_again(store):
    devices = jax.devices()[:2]
    tasks = stream.resident(ImageTasks(PLAIN, store.images, store.offsets.astype(np.int32)), devices)
    assert tasks.pixels.sharding.device_set == set(devices)
    for _ in range(2):  # as an evaluator's calls do
        with Feed(tasks, devices, TASKS, 0, 1, MOST) as feed:
            ((handed, _),) = feed.between(0, 1)
        assert handed.pixels is tasks.pixels
    on_host = HostTasks(PLAIN, store)
    assert stream.resident(on_host, devices) is on_host
