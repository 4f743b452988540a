"""The regression network of the MAML paper (Finn et al. 2017, section 5.1)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from maml_jax.meta.learner import Phase

_KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class MLP(nn.Module):
    """Fully connected layers with ReLU, not normalised; initialised as PyTorch does.

    Biases start at random, unlike the paper's: with one input and biases of zero, every kink would start at x = 0.

    Attributes:
      width: units of every layer.
      layers: how many.
    """

    width: int = 40
    layers: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, phase: Phase) -> jax.Array:
        """Maps `[batch, inputs]` to features `[batch, self.width]`."""
        del phase
        for i in range(1, self.layers + 1):
            bias_init = _uniform(x.shape[-1] ** -0.5)
            x = nn.relu(nn.Dense(self.width, kernel_init=_KERNEL_INIT, bias_init=bias_init, name=f"dense{i}")(x))
        return x


def _uniform(bound):
    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
