"""An encoder and a head."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from maml_jax.meta.learner import Pass, Phase
from maml_jax.nn.layers import Encoder, computed, lazily
from maml_jax.nn.model import arguments
from maml_jax.nn.moments import at_least_float32
from maml_jax.nn.norm import Normalization


class Classifier(nn.Module):
    """An encoder with a head; parameters are named 'encoder/...' and 'head/...'.

    Attributes:
      encoder: maps images to features; its call is `(x)`, `(x, phase)` or `(x, train)`.
      head: maps features to logits.
      piece: bytes of a layer's images that there may be at once; where there would be more, a query or context set is
        computed in pieces, and anew on the way back, if the encoder is an `Encoder`. 0: no limit.
      half: the encoder's activations are bfloat16; parameters, statistics and the head stay as they are.
    """

    encoder: nn.Module
    head: nn.Module
    piece: int = 0
    half: bool = False

    def __call__(self, x: jax.Array, phase: Phase) -> jax.Array:
        """Maps images `[batch, height, width, channels]` to logits `[batch, way]`."""
        return self.head(self.features(x, phase))

    def features(self, x: jax.Array, phase: Phase) -> jax.Array:
        """Maps images `[batch, height, width, channels]` to what the head sees, `[batch, features]`."""
        x = x.astype(jnp.bfloat16) if self.half else x
        # A support pass is differentiated twice: what its first derivative makes would be kept for every piece.
        in_pieces = isinstance(self.encoder, Encoder) and phase.which is not Pass.SUPPORT
        images = lazily(x, self.piece if in_pieces else 0)
        features = computed(self.encoder(images, **arguments(type(self.encoder), phase)))
        return features.astype(at_least_float32(features))

    @property
    def uses_context(self) -> bool:
        """Whether a query pass needs a context pass before it."""
        norm = getattr(self.encoder, "norm", None)
        return isinstance(norm, Normalization) and norm.uses_context
