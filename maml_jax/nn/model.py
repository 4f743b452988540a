"""The few-shot classifier: an encoder and a head as pure functions of parameters and normalisation statistics."""

import dataclasses

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from maml_jax import tree
from maml_jax.meta.learner import Pass, Phase
from maml_jax.nn import encoders
from maml_jax.nn.classifier import Classifier
from maml_jax.nn.encoders import ENCODERS
from maml_jax.nn.head import LinearHead
from maml_jax.nn.loss import LOSSES, Loss, cross_entropy
from maml_jax.nn.norm import Normalization
from maml_jax.tree import PyTree

__all__ = ["ENCODERS", "HEADS", "Classifier", "Model", "build"]

HEADS = ("meta", "zero")
_ZEROED = ("kernel", "bias")  # of the head, if it starts at zero


@dataclasses.dataclass(frozen=True)
class Model:
    """A classifier together with what it takes to start an episode. Hashable, holds no arrays.

    Attributes:
      classifier: the Flax module.
      norm: normalisation modes by layer.
      zero_head: every episode starts from a head of zeros, which then is no meta-parameter and fits any number of ways;
        otherwise the head's initialisation is meta-learned.
      image_shape: `(height, width, channels)` of one image.
      half: the encoder's activations are bfloat16; parameters, statistics and the head stay as they are.
      loss: of logits against labels, on support and query sets alike.
      steps: inner steps that `per_step` layers have parameters and statistics for, in a leading axis.
    """

    classifier: Classifier
    norm: str
    zero_head: bool
    image_shape: tuple[int, int, int]
    half: bool = False
    loss: Loss = cross_entropy
    steps: int = 0

    def init(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """Draws the meta-parameters, and the statistics that outlive an episode (`lasting_stats`)."""
        variables = self._variables(key)
        params = variables["params"]
        if self.zero_head:
            head = {name: leaf for name, leaf in params["head"].items() if name not in _ZEROED}
            params = {"encoder": params["encoder"], "head": head}
        return params, self.lasting_stats(_all_stats(variables))

    def episode_params(self, params: PyTree) -> PyTree:
        """Where adaptation starts: the model's meta-parameters, completed by zeros where they hold no head."""
        params = {part: params[part] for part in ("encoder", "head")}
        if "kernel" in params["head"]:
            return params
        shapes = jax.eval_shape(self._variables, jax.random.key(0))["params"]["head"]
        zeros = {name: jnp.zeros(shapes[name].shape, shapes[name].dtype) for name in _ZEROED}
        return {**params, "head": {**params["head"], **zeros}}

    def episode_stats(self, stats: PyTree) -> PyTree:
        """The statistics an episode starts with: those given where they last, elsewhere mean 0 and variance 1."""
        shapes = _all_stats(self._shapes())
        fresh = tree.map_named(
            lambda name, s: (jnp.ones if name.endswith("var") else jnp.zeros)(s.shape, s.dtype), shapes
        )
        lasting = set(tree.names(self._shapes().get("lasting_stats", {})))
        return tree.merge(stats, tree.partition(fresh, lambda name: name in lasting)[1])

    def lasting_stats(self, stats: PyTree) -> PyTree:
        """What remains of an episode's statistics: those of `global` and `per_step` layers, None elsewhere."""
        lasting = set(tree.names(self._shapes().get("lasting_stats", {})))
        return tree.partition(stats, lambda name: name in lasting)[0]

    def apply(
        self, params: PyTree, stats: PyTree, x: jax.Array, which: Pass, train: bool, step: int | jax.Array = 0
    ) -> tuple[jax.Array, PyTree]:
        """Evaluates the classifier.

        Args:
          params: parameters with a head.
          stats: normalisation statistics of all layers that have any.
          x: `[batch, height, width, channels]`.
          which: the support pass updates running statistics, the query pass uses them.
          train: meta-training; at meta-test `global` layers use their statistics on the support pass too.
          step: inner step, from 0, for `per_step` layers; the query pass goes with the last one taken. Beyond those
            that there are parameters for, the last ones are used.

        Returns:
          Logits `[batch, way]`, and the statistics after this pass.
        """
        lasting, others = self.lasting_stats(stats), stats
        variables = {"params": params, "lasting_stats": lasting, "batch_stats": others}
        logits, state = self.classifier.apply(
            variables, x, Phase(which, train, step), mutable=["batch_stats", "lasting_stats"]
        )
        lasting = set(tree.names(self._shapes().get("lasting_stats", {})))
        chosen = {
            kind: dict(zip(tree.names(leaves), jax.tree.leaves(leaves), strict=True)) for kind, leaves in state.items()
        }
        return logits, tree.map_named(
            lambda name, _: chosen["lasting_stats" if name in lasting else "batch_stats"][name], stats
        )

    @property
    def has_context(self) -> bool:
        """Whether the query pass needs a context pass before it."""
        return self.classifier.uses_context

    def _shapes(self) -> PyTree:
        return jax.eval_shape(self._variables, jax.random.key(0))

    def _variables(self, key: jax.Array) -> PyTree:
        return self.classifier.init(key, jnp.zeros((1, *self.image_shape)), Phase(Pass.SUPPORT, True))


def _all_stats(variables):
    """Statistics of both collections, in one tree."""
    flat = {
        **flatten_dict(variables.get("batch_stats", {})),
        **flatten_dict(variables.get("lasting_stats", {})),
    }
    return unflatten_dict(flat)


def build(
    encoder: str,
    width: int,
    norm: str,
    head: str,
    way: int,
    image_shape: tuple[int, int, int],
    temperature: float = 1.0,
    learn_temperature: bool = False,
    half: bool = False,
    loss: str = "cross_entropy",
    steps: int = 0,
    piece: int = 0,
) -> Model:
    """A model by the names of its parts.

    Args:
      encoder: a key of `ENCODERS`.
      width: channels of the encoder's first block; 0 for its own.
      norm: normalisation modes by layer, see `maml_jax.nn.norm.mode_of`.
      head: 'meta' or 'zero', see `Model.zero_head`.
      way: number of classes.
      image_shape: `(height, width, channels)`.
      temperature: factor on the logits, or its initial value.
      learn_temperature: make the factor a meta-parameter, which never adapts.
      half: activations in bfloat16.
      loss: a key of `LOSSES`.
      steps: inner steps in training, for `per_step` layers.
      piece: see `ConvNet`.
    """
    body = encoders.encoder(encoder, width, Normalization.parse(norm, steps))
    classifier = Classifier(body, LinearHead(way, temperature, learn_temperature), piece, half)
    return Model(classifier, norm, head == "zero", image_shape, half, LOSSES[loss], steps)
