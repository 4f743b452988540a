"""What is compiled of a trained model: adapting it to a support set, and answering queries."""

import dataclasses

import jax
import jax.numpy as jnp

from maml_jax import tree
from maml_jax.config import Config
from maml_jax.data.augment import prepare
from maml_jax.experiment.method import build_learner, build_tested
from maml_jax.experiment.tasks import normalization
from maml_jax.meta.learner import Pass, Phase
from maml_jax.nn.norm import TRANSDUCTIVE, Normalization


class Programs:
    """What is compiled for a number of classes and a protocol.

    Args:
      config: of the model.
      outputs: of its head; those beyond the classes are masked out once it has adapted.
      classes: how many.
      steps: inner steps.
      transductive: whether the images of a query are judged together.
    """

    def __init__(self, config: Config, outputs: int, classes: int, steps: int, transductive: bool):
        self._config, self._classes, self._steps = config, classes, steps
        self._method = build_tested(config, outputs)
        self._norm = Normalization.parse(config.model.norm, config.inner.steps)
        self._answering = self._method.learner
        if self._norm.transductive and not transductive:
            self._answering = build_learner(_inductive(config, self._norm), outputs)
        self.adapt = jax.jit(self._adapt)
        self.one_by_one = jax.jit(self._one_by_one, static_argnames="what")
        self.together = jax.jit(self._together, static_argnames="what")

    def _see(self, images):
        d = self._config.data
        normalized = normalization(self._config)
        return prepare(jax.random.key(0), images, self._config.eval.augment, d.image_size, normalized)

    def _adapt(self, params, stats, images, labels):
        """Parameters and statistics for queries, and the support loss before and after."""
        learner, last = self._method.learner, self._steps - 1
        x = self._see(images)
        adapted, after_stats, losses = self._method.adapted(
            params, stats, x, labels, self._steps, lambda loss, *_: loss
        )
        outputs, _ = learner.apply(adapted, after_stats, x, Phase(Pass.SUPPORT, step=last))
        after = learner.loss(outputs, labels)
        if self._answering is not learner:
            adapted = tree.map_named(self._last_row, adapted)
            _, fresh = self._answering.start(adapted, stats, x, labels)
            kept = tree.by_name(after_stats)
            after_stats = tree.map_named(lambda name, leaf: kept.get(name, leaf), fresh)
        if self._answering.uses_context:
            _, after_stats = self._answering.apply(adapted, after_stats, x, Phase(Pass.CONTEXT, step=last))
        return adapted, after_stats, (losses[0] if self._steps else after, after)

    def _last_row(self, name, leaf):
        """What a layer has of the last step, where each has its own and queries do without."""
        layer, _, kind = name.rpartition("/")
        if leaf.ndim == 2 and kind in ("scale", "bias") and self._norm.mode(layer) == "per_step_batch":
            return leaf[min(max(self._steps - 1, 0), len(leaf) - 1)]
        return leaf

    def _judge(self, params, stats, images, what):
        phase = Phase(Pass.QUERY, step=self._steps - 1)
        x = self._see(images)
        if what == "features":
            return self._answering.features(params, stats, x, phase)[0]
        logits, _ = self._answering.apply(params, stats, x, phase)
        return jax.nn.softmax(logits[:, : self._classes])

    def _one_by_one(self, params, stats, images, count, what):
        """The first `count` of the images, each by the same program: no bit depends on its place or its company."""

        def one(i, results):
            image = jax.lax.dynamic_slice_in_dim(images, i, 1)
            return jax.lax.dynamic_update_slice_in_dim(results, self._judge(params, stats, image, what), i, 0)

        like = jax.eval_shape(lambda images: self._judge(params, stats, images, what), images)
        return jax.lax.fori_loop(0, count, one, jnp.zeros(like.shape, like.dtype))

    def _together(self, params, stats, images, what):
        return self._judge(params, stats, images, what)


def _inductive(config: Config, norm: Normalization) -> Config:
    """The configuration with every transductive layer's moments taken from the support set."""
    config = config.copy_and_resolve_references()
    entries = tuple((pattern, "metabn" if mode in TRANSDUCTIVE else mode) for pattern, mode in norm.entries)
    config.model.norm = str(dataclasses.replace(norm, entries=entries))
    return config
