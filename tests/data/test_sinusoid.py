"""Sinusoid tasks: their distribution, and that a task is a function of (seed, split, index)."""

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax.data.sinusoid import SinusoidSpec, sample_task


def test_tasks_are_sinusoids_in_the_papers_ranges():
    spec = SinusoidSpec(seed=0, split="train", shot=10, query=30)
    tasks = jax.vmap(lambda i: sample_task(spec, i))(jnp.arange(500))
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
    spec = SinusoidSpec(seed=0, split="train", shot=2, query=2)
    one = sample_task(spec, jnp.int32(7))
    many = jax.vmap(lambda i: sample_task(spec, i))(jnp.arange(10))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[7]), one, many)
    others = [sample_task(spec, jnp.int32(8))]
    elsewhere = [SinusoidSpec(1, "train", 2, 2), SinusoidSpec(0, "test", 2, 2)]
    others += [sample_task(spec, jnp.int32(7)) for spec in elsewhere]
    assert all(jnp.all(other.support_y != one.support_y) for other in others)
