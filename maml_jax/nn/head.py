"""The classifier on top of an encoder."""

import flax.linen as nn
import jax

# PyTorch's default for a linear layer: uniform in +-1/sqrt(features).
_KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class LinearHead(nn.Module):
    """A linear layer from features to one logit per class.

    Attributes:
      way: number of classes.
    """

    way: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Maps `[batch, features]` to logits `[batch, way]`."""
        kernel = self.param("kernel", _KERNEL_INIT, (features.shape[-1], self.way), features.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.way,), features.dtype)
        return features @ kernel + bias
