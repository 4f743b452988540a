"""Sinusoid regression, the first experiment of the MAML paper (Finn et al. 2017, section 5.1): tasks without images."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax.data.source import SPLITS
from maml_jax.data.store import ClassStore
from maml_jax.episode import Episode

NAME = "sinusoid"
AMPLITUDES = (0.1, 5.0)
PHASES = (0.0, float(np.pi))
INPUTS = (-5.0, 5.0)


@dataclasses.dataclass(frozen=True)
class SinusoidSpec:
    """How the tasks of one split are drawn. Hashable: a static argument.

    Attributes:
      seed: of the run.
      split: 'train', 'val' or 'test'.
      shot: support points.
      query: query points.
    """

    seed: int
    split: str
    shot: int
    query: int


def sample_task(spec: SinusoidSpec, index: jax.Array) -> Episode:
    """Draws task `index`: y = a sin(x - b), with amplitude a, phase b and every x uniform in the ranges above.

    Args:
      spec: how.
      index: which task, int32 scalar.

    Returns:
      The episode; x and y are float32 `[shot, 1]` and `[query, 1]`.
    """
    key = jax.random.fold_in(jax.random.key(spec.seed), SPLITS.index(spec.split))
    wave_key, point_key = jax.random.split(jax.random.fold_in(key, index))
    ranges = jnp.asarray([AMPLITUDES, PHASES])
    amplitude, phase = jax.random.uniform(wave_key, (2,), minval=ranges[:, 0], maxval=ranges[:, 1])
    x = jax.random.uniform(point_key, (spec.shot + spec.query, 1), minval=INPUTS[0], maxval=INPUTS[1])
    y = amplitude * jnp.sin(x - phase)
    return Episode(x[: spec.shot], y[: spec.shot], x[spec.shot :], y[spec.shot :])


def stores() -> dict[str, ClassStore]:
    """What stands in for the images of each split: none, of shape (1,), which is that of an input."""
    return {split: ClassStore(np.zeros((0, 1), np.uint8), np.zeros(1, np.int64), (), split) for split in SPLITS}
