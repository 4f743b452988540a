"""The few-shot classifier: an encoder and a head as pure functions of parameters and normalisation statistics."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from maml_jax import tree
from maml_jax.nn.convnet import ConvNet
from maml_jax.nn.head import LinearHead
from maml_jax.nn.loss import LOSSES, Loss, cross_entropy
from maml_jax.nn.mlp import MLP
from maml_jax.nn.norm import CONTEXT, LASTING, PER_STEP, Pass, at_least_float32, mode_of
from maml_jax.nn.resnet import ResNet12, ResNet18
from maml_jax.tree import PyTree

_NARROW, _WIDE = (64, 128, 256, 512), (64, 160, 320, 640)


def _residual(module, channels, **attributes):
    """Makes a residual encoder whose first block has `width` channels, the others in the given proportion."""
    return lambda width, *how: module(tuple(c * (width or 64) // 64 for c in channels), *how, **attributes)


# By name: (width, norm, piece) -> module. A width of 0 is the encoder's own.
ENCODERS = {
    "convnet4": lambda width, norm, piece: ConvNet(width or 32, norm, piece=piece),
    "wide_convnet4": lambda width, norm, piece: ConvNet(width or 64, norm, piece=piece),
    "resnet12": _residual(ResNet12, _NARROW),
    "wide_resnet12": _residual(ResNet12, _WIDE),
    "resnet18": _residual(ResNet18, _NARROW),
    "wide_resnet18": _residual(ResNet18, _WIDE),
    "resnet18_standard": _residual(ResNet18, _NARROW, blocks=2),
    "mlp": lambda width, *_: MLP(width or 40),
}
HEADS = ("meta", "zero")
_ZEROED = ("kernel", "bias")  # of the head, if it starts at zero


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
        features = self.encoder(x, which, train)
        return self.head(features.astype(at_least_float32(features)))


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
        return params, self.lasting_stats(variables.get("batch_stats", {}))

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
        shapes = jax.eval_shape(self._variables, jax.random.key(0)).get("batch_stats", {})
        fresh = tree.map_named(
            lambda name, s: (jnp.ones if name.endswith("var") else jnp.zeros)(s.shape, s.dtype), shapes
        )
        return tree.merge(stats, tree.partition(fresh, self._lasts)[1])

    def lasting_stats(self, stats: PyTree) -> PyTree:
        """What remains of an episode's statistics: those of `global` and `per_step` layers, None elsewhere."""
        return tree.partition(stats, self._lasts)[0]

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
        x = x.astype(jnp.bfloat16) if self.half else x
        row = jnp.clip(step, 0, max(self.steps - 1, 0))

        def pick(name, leaf):
            return leaf[row] if self._is_per_step(name) else leaf

        def put(name, leaf, new):
            return leaf.at[row].set(new) if self._is_per_step(name) else new

        variables = {"params": tree.map_named(pick, params), "batch_stats": tree.map_named(pick, stats)}
        logits, state = self.classifier.apply(variables, x, which, train, mutable=["batch_stats"])
        return logits, tree.map_named(put, stats, state.get("batch_stats", {}))

    @property
    def has_context(self) -> bool:
        """Whether the query pass needs a context pass before it."""
        return any(mode in self.norm for mode in CONTEXT)

    def _lasts(self, name: str) -> bool:
        return mode_of(self.norm, name.rpartition("/")[0]) in LASTING

    def _is_per_step(self, name: str) -> bool:
        layer = name.rpartition("/")[0]
        return re.search(r"norm\d*$", layer) is not None and mode_of(self.norm, layer) in PER_STEP

    def _variables(self, key: jax.Array) -> PyTree:
        variables = self.classifier.init(key, jnp.zeros((1, *self.image_shape)), Pass.SUPPORT, True)

        def repeat(name, leaf):
            return jnp.repeat(leaf[None], self.steps, 0) if self._is_per_step(name) else leaf

        return {kind: tree.map_named(repeat, leaves) for kind, leaves in variables.items()}


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
    classifier = Classifier(ENCODERS[encoder](width, norm, piece), LinearHead(way, temperature, learn_temperature))
    return Model(classifier, norm, head == "zero", image_shape, half, LOSSES[loss], steps)
