"""Sinusoid regression, the first experiment of the MAML paper (Finn et al. 2017, section 5.1): tasks without images."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax.data.dataset import DataSet
from maml_jax.data.source import SPLITS
from maml_jax.episode import Episode

AMPLITUDES = (0.1, 5.0)
PHASES = (0.0, float(np.pi))
INPUTS = (-5.0, 5.0)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SinusoidTasks:
    """The tasks of one split: `Tasks` of a pytree without arrays.

    Task i is y = a sin(x - b), with amplitude a, phase b and every x uniform in the ranges above.

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

    def sample(self, index: jax.Array) -> Episode:
        """Draws task `index`, whose x and y are float32 `[shot, 1]` and `[query, 1]`."""
        key = jax.random.fold_in(jax.random.key(self.seed), SPLITS.index(self.split))
        key = jax.random.fold_in(key, index)
        wave_key, point_key = jax.random.split(key)
        ranges = jnp.asarray([AMPLITUDES, PHASES])
        amplitude, phase = jax.random.uniform(wave_key, (2,), minval=ranges[:, 0], maxval=ranges[:, 1])
        x = jax.random.uniform(point_key, (self.shot + self.query, 1), minval=INPUTS[0], maxval=INPUTS[1])
        y = amplitude * jnp.sin(x - phase)
        shot = self.shot
        return Episode(x[:shot], y[:shot], x[shot:], y[shot:], key=jax.random.fold_in(key, 2))


DATA_SET = DataSet("sinusoid", None, "Drawn by this program; no terms.", tasks=SinusoidTasks)
