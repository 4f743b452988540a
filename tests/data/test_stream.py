"""Images on the host: the same tasks as from the device, read ahead and in order."""

import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax.data import stream
from maml_jax.data.sampler import DeviceImages, TaskSpec, sample_tasks, to_device
from maml_jax.data.store import ClassStore
from maml_jax.data.stream import Feed, TaskChunk, episodes, place
from maml_jax.errors import ConfigError

COUNTS = (7, 5, 9, 6)
TASKS = 2  # per meta-step
PLAIN = TaskSpec(seed=3, split="train", way=3, shot=1, query=3)
AUGMENTED = TaskSpec(3, "val", 4, 2, 2, True, "color", "resize", ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)), size=10)
MOST = 3  # meta-steps of a chunk, the same everywhere so that little is compiled

jitted = jax.jit(episodes, static_argnums=(0, 3))


def draw(spec, images, step):
    return jitted(spec, images, jnp.int32(step), TASKS, jnp.arange(TASKS, dtype=jnp.int32))


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
    resident, seen = to_device(store), []
    with Feed(spec, store, jax.devices()[:1], TASKS, first, first + 12, MOST) as feed:
        for start, stop in ((first, first + 1), (first + 1, first + 10), (first + 10, first + 12)):
            step = start
            for chunk, count in feed.between(start, stop):
                assert isinstance(chunk, TaskChunk)
                assert 1 <= count <= MOST
                for s in range(step, step + count):
                    streamed, expected = (draw(spec, x, s) for x in (chunk, resident))
                    jax.tree.map(np.testing.assert_array_equal, streamed, expected)
                    seen.append(np.asarray(streamed.query_x).tobytes())
                step += count
            assert step == stop
    assert len(set(seen)) == 12, "every meta-step has tasks of its own"


def test_a_meta_step_has_the_tasks_of_its_number(store):
    batch = draw(PLAIN, to_device(store), 4)
    expected = jax.jit(sample_tasks, static_argnums=0)(PLAIN, to_device(store), jnp.arange(8, 10))
    jax.tree.map(np.testing.assert_array_equal, batch, expected)


def test_chunks_stay_small():
    image_shape = (84, 84, 3)
    mini = TaskSpec(0, "train", 5, 1, 15)
    assert stream._chunk_steps(mini, 4, image_shape, most=100) == 4
    assert stream._chunk_steps(mini, 4, image_shape, most=3) == 3
    assert stream._chunk_steps(mini, 400, image_shape, most=100) == 1


def test_reading_ahead_ends_with_the_feed(store):
    readers = lambda: [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]  # noqa: E731
    before = set(readers())
    with Feed(PLAIN, store, jax.devices()[:1], TASKS, 0, 10_000, MOST) as feed:
        next(feed.between(0, 1))
        started = set(readers()) - before
        assert started
    for thread in started:
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_placement(store, monkeypatch):
    stores = {"train": store, "val": dataclasses.replace(store, split="val")}
    size = 2 * store.nbytes
    monkeypatch.setattr(stream, "device_memory", lambda: 2 * size)
    kinds = lambda *args: {split: type(images) for split, images in place(stores, *args).items()}  # noqa: E731
    on_device, on_host = (dict.fromkeys(stores, kind) for kind in (DeviceImages, ClassStore))
    assert kinds("auto", 0.5) == on_device
    assert kinds("auto", 0.49) == on_host, "both splits together do not fit"
    assert kinds("device", 0.01) == on_device
    assert kinds("host", 1.0) == on_host
    monkeypatch.setattr(stream, "device_memory", lambda: size - 1)
    with pytest.raises(ConfigError, match=r"data\.placement='device'.*train and val.*placement=host"):
        place(stores, "device", 0.5)


def test_the_memory_of_a_device_is_known():
    assert stream.device_memory() > 2**28


def test_a_jax_without_cpu_is_refused(store, monkeypatch):
    def none(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    devices = jax.devices()
    monkeypatch.setattr(jax, "local_devices", none)
    with pytest.raises(ConfigError, match="JAX_PLATFORMS"):
        Feed(PLAIN, store, devices, TASKS, 0, 1, MOST)
