"""DropBlock: dropout of connected squares of a map."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from maml_jax.meta.learner import Phase
from maml_jax.nn.kernels.pieces import Images, each


class DropBlock(nn.Module):
    """Sets squares of each channel's map to zero in training (Ghiasi, Lin & Le 2018, arXiv:1810.12890, algorithm 1).

    Squares have their centres where they fit into the map as a whole, and so many that about `rate` of the entries are
    dropped. What stays is scaled so that the sum of the mask is that of ones. The rate is the same from the first
    meta-step to the last, where the paper raises it slowly.

    Attributes:
      rate: share of entries that are dropped, in [0, 1).
      size: side of a square in pixels; the map's, if that is smaller.
    """

    rate: float
    size: int = 5

    def __call__(self, x: Images, phase: Phase) -> Images:
        """Maps `[batch, height, width, channels]` to the same shape, and unchanged at meta-test."""
        if not self.rate or not phase.train:
            return x
        mask = dropblock_mask(self.make_rng("dropout"), x.shape, self.rate, self.size)
        return each(lambda x, mask: x * mask.astype(x.dtype), x, mask)


def dropblock_mask(key: jax.Array, shape: tuple[int, int, int, int], rate: float, size: int) -> jax.Array:
    """What maps `[batch, height, width, channels]` are multiplied by: 0 in squares, elsewhere a factor of at least 1.

    Args:
      key: a random key.
      shape: of the maps.
      rate: see `DropBlock`.
      size: see `DropBlock`.
    """
    _, height, width, _ = shape
    size = min(size, height, width)
    centres = (height - size + 1) * (width - size + 1)
    share = rate * height * width / (size**2 * centres)
    fits = (shape[0], height - size + 1, width - size + 1, shape[3])
    corner = jax.random.bernoulli(key, min(share, 1.0), fits).astype(jnp.float32)
    padding = [(0, 0), (size - 1, size - 1), (size - 1, size - 1), (0, 0)]
    dropped = lax.reduce_window(corner, 0.0, lax.max, (1, size, size, 1), (1, 1, 1, 1), padding)
    kept = 1 - dropped
    return kept * (kept.size / jnp.maximum(kept.sum(), 1))
