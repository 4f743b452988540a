"""The classifier on top of an encoder."""

import flax.linen as nn
import jax

# PyTorch's default for a linear layer: uniform in +-1/sqrt(features).
_KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class LinearHead(nn.Module):
    """A linear layer from features to one logit per class, times a temperature.

    Attributes:
      way: number of classes.
      temperature: factor on the logits, or its initial value where it is learned.
      learn_temperature: the factor is a meta-parameter; the inner loop never adapts it.
    """

    way: int
    temperature: float = 1.0
    learn_temperature: bool = False

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Maps `[batch, features]` to logits `[batch, way]`."""
        kernel = self.param("kernel", _KERNEL_INIT, (features.shape[-1], self.way), features.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.way,), features.dtype)
        logits = features @ kernel + bias
        if self.learn_temperature:
            initial = nn.initializers.constant(self.temperature)
            return logits * self.param("temperature", initial, (), features.dtype)
        return logits * self.temperature if self.temperature != 1 else logits
