"""Tasks: what is in them, and that they depend on (seed, split, index) alone."""

import dataclasses
import functools
import shutil

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax.data import store as stores
from maml_jax.data.augment import enlarge
from maml_jax.data.sampler import ImageTasks, TaskSpec, check_fit, draw_task
from maml_jax.data.source import ClassImages, Source
from maml_jax.data.store import ClassStore
from maml_jax.data.stream import sample_batch
from maml_jax.errors import ConfigError
from tests.helpers import assert_same

COUNTS = (7, 5, 9, 6)  # images per class
SPEC = TaskSpec(seed=0, split="train", way=3, shot=2, query=3)


@pytest.fixture(scope="module")
def store():
    """Images that carry their own identity: the pixel at the corner is the row, the next one the class."""
    offsets = np.concatenate([[0], np.cumsum(COUNTS)])
    images = np.zeros((offsets[-1], 4, 4, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(images))
    images[:, 0, 1, 0] = np.repeat(np.arange(len(COUNTS)), COUNTS)
    return ClassStore(images, offsets, ("a", "b", "c", "d"), "train")


def tasks_of(spec, store):
    return ImageTasks(spec, store.images, store.offsets.astype(np.int32))


_sample = jax.jit(sample_batch)


def draw(spec, store, indices):
    batch = _sample(tasks_of(spec, store), jnp.asarray(indices, jnp.int32))
    return jax.tree.map(np.asarray, batch._replace(key=None))


def identity(x):
    """Rows and classes of the images of `store`."""
    return np.rint(x[..., 0, 0, 0] * 255).astype(int), np.rint(x[..., 0, 1, 0] * 255).astype(int)


def test_tasks_hold_what_they_should(store):
    tasks = draw(SPEC, store, range(200))
    np.testing.assert_array_equal(tasks.support_y, np.tile(np.repeat(np.arange(3), 2), (200, 1)))
    np.testing.assert_array_equal(tasks.query_y, np.tile(np.repeat(np.arange(3), 3), (200, 1)))
    (support, support_class), (query, query_class) = identity(tasks.support_x), identity(tasks.query_x)
    for t in range(200):
        rows = np.concatenate([support[t], query[t]])
        assert len(set(rows)) == len(rows), "an image twice in a task"
        classes = support_class[t].reshape(3, 2)
        assert len(set(classes[:, 0])) == 3, "a class twice in a task"
        np.testing.assert_array_equal(classes, np.repeat(classes[:, :1], 2, 1))
        np.testing.assert_array_equal(query_class[t].reshape(3, 3), np.repeat(classes[:, :1], 3, 1))


@functools.partial(jax.jit, static_argnums=0)
def rows_of(spec, offsets, index):
    return draw_task(spec, offsets, index)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    shape=st.sampled_from([(1, 1, 1, False), (5, 1, 15, False), (4, 3, 3, True)]),  # few, since each is compiled
    more=st.lists(st.integers(0, 5), min_size=5, max_size=5),
    index=st.integers(0, 2**31 - 1),
)
def test_support_and_query_never_share_an_image(shape, more, index):
    """Whatever the sizes of the classes, which may be just enough, and whichever the task."""
    way, shot, query, rotations = shape
    spec = TaskSpec(0, "train", way, shot, query, rotations)
    counts = np.array(more) + shot + query
    offsets = np.concatenate([[0], np.cumsum(counts)])
    drawn = rows_of(spec, jnp.asarray(offsets, jnp.int32), jnp.int32(index))
    rows, turns = np.asarray(drawn.rows), np.asarray(drawn.turns)
    classes = np.searchsorted(offsets, rows, side="right") - 1
    assert rows.min() >= 0
    assert rows.max() < offsets[-1]
    assert (classes == classes[:, :1]).all(), "of one class each"
    assert all(len(set(of_class)) == shot + query for of_class in rows.tolist())
    assert len(set(zip(classes[:, 0].tolist(), turns.tolist(), strict=True))) == way, "no class twice"


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(order=st.permutations(range(12)), counts=st.lists(st.integers(2, 6), min_size=12, max_size=12))
def test_classes_of_tasks_never_cross_splits(tmp_path_factory, order, counts):
    """From the source on: no class whose images a task of one split holds is in a task of another."""
    classes = [
        ClassImages(f"{c:02}", n, functools.partial(np.full, (n, 1, 1, 1), c, np.uint8)) for c, n in enumerate(counts)
    ]
    parts = {"train": order[:5], "val": order[5:8], "test": order[8:]}
    source = Source("crossing", {}, (1, 1, 1), {split: [classes[c] for c in part] for split, part in parts.items()})
    cache = tmp_path_factory.mktemp("crossing")
    path = stores.build(source, cache, progress=False)
    for split, part in parts.items():
        opened = stores.open_store(path, split)
        spec = TaskSpec(0, split, way=2, shot=1, query=1)
        drawn = [rows_of(spec, jnp.asarray(opened.offsets, jnp.int32), jnp.int32(i)).rows for i in range(10)]
        assert set(opened.images[np.asarray(drawn)].ravel().tolist()) <= set(part)
    del opened
    shutil.rmtree(cache)


def test_support_and_query_are_augmented_each_in_its_way():
    """Here the support is enlarged, and half of the query images are mirrored; nothing else."""
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    store = ClassStore(images, np.array([0, 10, 20]), ("a", "b"), "train")
    spec = TaskSpec(0, "train", way=2, shot=2, query=5, support_augment="enlarge", query_augment="flip")
    tasks = draw(spec, store, range(40))
    enlarged = np.asarray(enlarge(jnp.asarray(images, jnp.float32) / 255, 16))
    plain = (images / 255).astype(np.float32)
    near = lambda x, y: np.abs(x[:, None] - y).max((2, 3, 4)) < 1e-5  # noqa: E731
    assert near(tasks.support_x.reshape(-1, 16, 16, 3), enlarged).any(1).all()
    query = tasks.query_x.reshape(-1, 16, 16, 3)
    kept, mirrored = (near(query, x).any(1) for x in (plain, plain[:, :, ::-1]))
    assert (kept != mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(query))


def test_augmentations_of_support_and_query_are_drawn_apart(store):
    """Each image is mirrored or not by itself, in every task anew."""
    marked = dataclasses.replace(store, images=np.zeros_like(store.images))
    marked.images[:, :, 0] = 255
    spec = dataclasses.replace(SPEC, query=2, support_augment="flip", query_augment="flip")
    tasks = draw(spec, marked, range(1500))
    mirrored = np.concatenate([x[:, :, 0, -1, 0] for x in (tasks.support_x, tasks.query_x)], 1)
    assert set(np.unique(mirrored)) == {0, 1}
    apart = np.corrcoef(mirrored.T) - np.eye(mirrored.shape[1])
    assert np.abs(apart).max() < 5 / np.sqrt(1500)
    assert np.abs(np.corrcoef(mirrored[1:].ravel(), mirrored[:-1].ravel())[0, 1]) < 5 / np.sqrt(mirrored[1:].size)


def test_every_image_is_as_likely_as_another(store):
    """Each of a class's n images is in its support with chance shot / n, given the class; within five deviations."""
    tasks = draw(SPEC, store, range(4000))
    rows, classes = identity(tasks.support_x)
    appearances = np.bincount(classes.ravel(), minlength=4) / SPEC.shot
    np.testing.assert_allclose(appearances, 3000, atol=5 * np.sqrt(4000 * 0.75 * 0.25))
    for c, n in enumerate(COUNTS):
        counts = np.bincount(rows[classes == c], minlength=len(store.images))[store.offsets[c] : store.offsets[c + 1]]
        p = SPEC.shot / n
        np.testing.assert_allclose(counts, appearances[c] * p, atol=5 * np.sqrt(appearances[c] * p * (1 - p)))


def test_a_task_does_not_depend_on_its_company(store):
    """Its images, its labels, and the key that networks with dropout draw with."""
    tasks = tasks_of(SPEC, store)
    batch, alone = (_sample(tasks, jnp.asarray(indices, jnp.int32)) for indices in ([5, 6, 7], [6]))
    single = jax.jit(lambda tasks: tasks.sample(jnp.int32(6)))(tasks)
    assert_same(jax.tree.map(lambda x: x[1], batch), single, 0)
    assert_same(jax.tree.map(lambda x: x[0], alone), single, 0)
    assert len({tuple(key) for key in np.asarray(jax.random.key_data(batch.key)).tolist()}) == 3


@pytest.mark.parametrize("change", [{"seed": 1}, {"split": "val"}])
def test_tasks_differ_between_seeds_and_splits(store, change):
    here, there = (draw(spec, store, range(20)) for spec in (SPEC, dataclasses.replace(SPEC, **change)))
    assert np.any(here.support_x != there.support_x)


def test_all_images_of_a_class_can_be_asked_for(store):
    spec = dataclasses.replace(SPEC, way=4, shot=2, query=3)
    tasks = draw(spec, store, range(50))
    rows, classes = identity(np.concatenate([tasks.support_x, tasks.query_x], 1))
    for t in range(50):
        assert set(rows[t][classes[t] == 1]) == set(range(7, 12))


def test_rotations_are_classes_of_their_own():
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(6, 2, 2, 1)
    store = ClassStore(images, np.array([0, 3, 6]), ("a", "b"), "train")
    spec = TaskSpec(seed=0, split="train", way=8, shot=1, query=1, rotations=True)
    tasks = draw(spec, store, range(3))
    expected = {np.rot90(image, k).tobytes() for image in images for k in range(4)}
    for t in range(3):
        seen = set()
        for x_support, x_query in zip(tasks.support_x[t], tasks.query_x[t], strict=True):
            pair = [np.rint(x * 255).astype(np.uint8) for x in (x_support, x_query)]
            assert all(x.tobytes() in expected for x in pair)
            turns = [
                {(k, r) for k in range(4) for r in range(6) if np.array_equal(np.rot90(images[r], k), x)} for x in pair
            ]
            (k, row), (k_query, row_query) = turns[0].pop(), turns[1].pop()
            assert k == k_query, "support and query of a class are turned alike"
            assert row // 3 == row_query // 3
            assert row != row_query
            seen.add((row // 3, k))
        assert len(seen) == 8, "eight classes of two characters, each under four turns"


def test_what_does_not_fit_is_refused(store):
    """With the settings that would do, if there are any."""
    with pytest.raises(ConfigError, match=r"task\.way=5.*only 4 classes") as raised:
        check_fit(dataclasses.replace(SPEC, way=5), store, "task")
    assert raised.value.settings == {"task.way": 4}
    with pytest.raises(ConfigError, match=r"eval\.shot=2 and eval\.query=4 take 6.*'b'.*only 5") as raised:
        check_fit(dataclasses.replace(SPEC, query=4), store, "eval")
    assert raised.value.settings == {"eval.query": 3}
    with pytest.raises(ConfigError, match="leaves none to ask about") as raised:
        check_fit(dataclasses.replace(SPEC, shot=5), store, "eval")
    assert raised.value.settings == {}
    check_fit(dataclasses.replace(SPEC, way=16, rotations=True), store, "task")


def test_tasks_are_a_pytree(store):
    """Whose arrays are those of the store, and whose specification is part of a program."""
    tasks = tasks_of(SPEC, store)
    pixels, offsets = jax.tree.leaves(tasks)
    assert pixels.dtype == jnp.uint8
    assert offsets.dtype == jnp.int32
    other = tasks_of(dataclasses.replace(SPEC, seed=1), store)
    assert jax.tree.structure(tasks) != jax.tree.structure(other)
