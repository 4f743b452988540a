"""Sinusoid tasks: their distribution, and that a task is a function of (seed, split, index)."""

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax.data.sinusoid import SinusoidTasks
from maml_jax.data.stream import as_pytree, example, sample_batch
from tests.helpers import assert_same


def test_tasks_are_sinusoids_in_the_papers_ranges():
    tasks = sample_batch(SinusoidTasks(seed=0, split="train", shot=10, query=30), jnp.arange(500))
    assert tasks.support_x.shape == tasks.support_y.shape == (500, 10, 1)
    assert tasks.query_y.shape == (500, 30, 1)
    x = np.concatenate([tasks.support_x, tasks.query_x], 1)[..., 0]
    y = np.concatenate([tasks.support_y, tasks.query_y], 1)[..., 0]
    assert -5 <= x.min() < -4.99
    assert 4.99 < x.max() <= 5
    waves = []
    for points, values in zip(x, y, strict=True):  # y = a sin(x) + b cos(x), exactly
        basis = np.stack([np.sin(points), np.cos(points)], 1)
        (a, b), residual, _, _ = np.linalg.lstsq(basis, values, rcond=None)
        assert residual < 1e-6
        waves.append((np.hypot(a, b), np.arctan2(-b, a)))
    amplitudes, phases = np.array(waves).T
    assert 0.099 < amplitudes.min() < 0.2
    assert 4.9 < amplitudes.max() < 5.001
    assert -1e-3 < phases.min() < 0.05
    assert 3.09 < phases.max() < np.pi + 1e-3


def test_a_task_depends_on_seed_split_and_index_alone():
    tasks = SinusoidTasks(seed=0, split="train", shot=2, query=2)
    one = tasks.sample(jnp.int32(7))
    many = sample_batch(tasks, jnp.arange(10))
    assert_same(one, jax.tree.map(lambda x: x[7], many), 0)
    others = [tasks.sample(jnp.int32(8))]
    elsewhere = [SinusoidTasks(1, "train", 2, 2), SinusoidTasks(0, "test", 2, 2)]
    others += [other.sample(jnp.int32(7)) for other in elsewhere]
    assert all(jnp.all(other.support_y != one.support_y) for other in others)
    assert all(other.key != one.key for other in others)


def test_they_are_a_pytree_without_arrays():
    tasks = SinusoidTasks(seed=0, split="train", shot=2, query=3)
    assert jax.tree.leaves(tasks) == []
    assert as_pytree(tasks) is tasks
    assert example(tasks).query_x.shape == (3, 1)
