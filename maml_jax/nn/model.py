"""The few-shot classifier: an encoder and a head as pure functions of parameters and normalisation statistics."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from maml_jax import tree
from maml_jax.nn.convnet import ConvNet
from maml_jax.nn.head import LinearHead
from maml_jax.nn.norm import Pass, mode_of
from maml_jax.tree import PyTree

ENCODERS = {"convnet4": ConvNet}
HEADS = ("meta", "zero")


class Classifier(nn.Module):
    """An encoder with a head; parameters are named 'encoder/...' and 'head/...'.

    Attributes:
      encoder: maps images to features.
      head: maps features to logits.
    """

    encoder: nn.Module
    head: nn.Module

    def __call__(self, x: jax.Array, which: Pass, train: bool) -> jax.Array:
        """Maps images `[batch, height, width, channels]` to logits `[batch, way]`."""
        return self.head(self.encoder(x, which, train))


@dataclasses.dataclass(frozen=True)
class Model:
    """A classifier together with what it takes to start an episode. Hashable, holds no arrays.

    Attributes:
      classifier: the Flax module.
      norm: normalisation modes by layer.
      zero_head: every episode starts from a head of zeros, which then is no meta-parameter and fits any number of ways;
        otherwise the head's initialisation is meta-learned.
      image_shape: `(height, width, channels)` of one image.
    """

    classifier: Classifier
    norm: str
    zero_head: bool
    image_shape: tuple[int, int, int]

    def init(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """Draws the meta-parameters, and the statistics that outlive an episode (those of `global` layers)."""
        variables = self._variables(key)
        params = variables["params"]
        if self.zero_head:
            params = {"encoder": params["encoder"]}
        return params, self.lasting_stats(variables.get("batch_stats", {}))

    def episode_params(self, params: PyTree) -> PyTree:
        """Where adaptation starts: the meta-parameters, completed by zeros where they hold no head."""
        if "head" in params:
            return params
        shapes = jax.eval_shape(self._variables, jax.random.key(0))["params"]["head"]
        return {**params, "head": jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)}

    def episode_stats(self, stats: PyTree) -> PyTree:
        """The statistics an episode starts with: mean 0, variance 1 in `episodic` layers, those given in `global`."""
        shapes = jax.eval_shape(self._variables, jax.random.key(0)).get("batch_stats", {})
        fresh = tree.map_named(
            lambda name, s: (jnp.ones if name.endswith("var") else jnp.zeros)(s.shape, s.dtype), shapes
        )
        return tree.merge(stats, tree.partition(fresh, self._is_global)[1])

    def lasting_stats(self, stats: PyTree) -> PyTree:
        """What remains of an episode's statistics: those of `global` layers, None elsewhere."""
        return tree.partition(stats, self._is_global)[0]

    def apply(self, params: PyTree, stats: PyTree, x: jax.Array, which: Pass, train: bool) -> tuple[jax.Array, PyTree]:
        """Evaluates the classifier.

        Args:
          params: parameters with a head.
          stats: normalisation statistics of all layers that have any.
          x: `[batch, height, width, channels]`.
          which: the support pass updates running statistics, the query pass uses them.
          train: meta-training; at meta-test `global` layers use their statistics on the support pass too.

        Returns:
          Logits `[batch, way]`, and the statistics after this pass.
        """
        variables = {"params": params, "batch_stats": stats}
        logits, state = self.classifier.apply(variables, x, which, train, mutable=["batch_stats"])
        return logits, state.get("batch_stats", {})

    def _is_global(self, name: str) -> bool:
        return mode_of(self.norm, name.rpartition("/")[0]) == "global"

    def _variables(self, key: jax.Array) -> PyTree:
        return self.classifier.init(key, jnp.zeros((1, *self.image_shape)), Pass.SUPPORT, True)


def build(encoder: str, width: int, norm: str, head: str, way: int, image_shape: tuple[int, int, int]) -> Model:
    """A model by the names of its parts.

    Args:
      encoder: a key of `ENCODERS`.
      width: the encoder's channels.
      norm: normalisation modes by layer, see `maml_jax.nn.norm.mode_of`.
      head: 'meta' or 'zero', see `Model.zero_head`.
      way: number of classes.
      image_shape: `(height, width, channels)`.
    """
    classifier = Classifier(ENCODERS[encoder](width=width, norm=norm), LinearHead(way))
    return Model(classifier, norm, head == "zero", image_shape)
