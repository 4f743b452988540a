"""What a method is, and what all of them share: a task is adapted to, and judged by its query set."""

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from maml_jax.episode import Episode
from maml_jax.meta.inner import InnerLoop, Watch, adapt
from maml_jax.meta.learner import Learner, Pass, Phase
from maml_jax.tree import PyTree

NOTHING: Watch = lambda *_: ()  # noqa: E731


class TaskResult(NamedTuple):
    """What came of one task; over a batch every field has a leading `tasks` axis.

    Attributes:
      loss: query loss after adaptation, scalar.
      accuracy: query accuracy after adaptation, scalar in [0, 1]; None in regression.
      logits: query logits, or other outputs, after adaptation, `[way * query, way]`.
      stats: normalisation statistics after the query pass, of all layers that have any.
      support_losses: support loss before each inner step, `[steps]`.
    """

    loss: jax.Array
    accuracy: jax.Array | None
    logits: jax.Array
    stats: PyTree
    support_losses: jax.Array


class Method(Protocol):
    """A way to meta-learn: how the gradient of one task is taken. All else follows from it.

    Attributes:
      learner: the model.
      steps: inner steps in training.
    """

    learner: Learner
    steps: int

    def init(self, key: jax.Array, episode: Episode) -> tuple[PyTree, PyTree]:
        """Draws the meta-parameters, and the statistics that outlive an episode; of `episode` only shapes matter."""

    def task_gradient(
        self, params: PyTree, stats: PyTree, episode: Episode, step: jax.Array
    ) -> tuple[PyTree, TaskResult]:
        """What one task adds to the meta-gradient, a tree as `params`, and how it went, at meta-step `step`."""

    def adapted(
        self,
        params: PyTree,
        stats: PyTree,
        support_x: jax.Array,
        support_y: jax.Array,
        steps: int | None = None,
        watch: Watch = NOTHING,
    ) -> tuple[PyTree, PyTree, PyTree]:
        """At meta-test: the parameters and statistics after adaptation, and what `watch` kept; see `adapt`."""


@dataclasses.dataclass(frozen=True)
class ByInnerLoop:
    """What methods have in common that adapt by `adapt`.

    Attributes:
      learner: the model.
      inner: what adapts, and how.
      steps: inner steps in training.
    """

    learner: Learner
    inner: InnerLoop
    steps: int

    def init(self, key: jax.Array, episode: Episode) -> tuple[PyTree, PyTree]:
        """See `Method.init`."""
        return self.learner.init(key, episode.support_x)

    def adapted(
        self,
        params: PyTree,
        stats: PyTree,
        support_x: jax.Array,
        support_y: jax.Array,
        steps: int | None = None,
        watch: Watch = NOTHING,
    ) -> tuple[PyTree, PyTree, PyTree]:
        """See `Method.adapted`."""
        steps = self.steps if steps is None else steps
        return adapt(self.learner, self.inner, params, stats, support_x, support_y, steps, watch=watch)


def keys_of(episode: Episode) -> tuple[jax.Array | None, jax.Array | None]:
    """Random keys for the support passes of an episode of training and for its query passes, if it has one."""
    return (None, None) if episode.key is None else tuple(jax.random.split(episode.key))


def query_pass(
    learner: Learner,
    adapted: PyTree,
    stats: PyTree,
    episode: Episode,
    step: int | jax.Array,
    train: bool = False,
    key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, PyTree]:
    """Judges adapted parameters by the query set: its loss, outputs, and the statistics after it.

    Args:
      learner: the model.
      adapted: parameters after adaptation.
      stats: the statistics after adaptation.
      episode: the task.
      step: the inner step that came last, from 0.
      train: meta-training, see `Phase`.
      key: a random key.
    """
    phase = Phase(Pass.QUERY, train, step, key)
    outputs, stats = answer(learner, adapted, stats, episode.support_x, episode.query_x, phase)
    return learner.loss(outputs, episode.query_y), outputs, stats


def answer(
    learner: Learner, adapted: PyTree, stats: PyTree, support_x: jax.Array, query_x: jax.Array, phase: Phase
) -> tuple[jax.Array, PyTree]:
    """Outputs of adapted parameters for a query set, after a context pass if the learner uses one; and statistics."""
    if learner.uses_context:
        key = None if phase.key is None else jax.random.fold_in(phase.key, 1)
        _, stats = learner.apply(adapted, stats, support_x, phase._replace(which=Pass.CONTEXT, key=key))
    return learner.apply(adapted, stats, query_x, phase)


def evaluate_task(
    method: Method, params: PyTree, stats: PyTree, episode: Episode, steps: int | None = None
) -> TaskResult:
    """Adapts to one task of meta-test, and judges by its query set; `steps` as of `Method.adapted`."""
    steps = method.steps if steps is None else steps
    adapted, stats, losses = method.adapted(
        params, stats, episode.support_x, episode.support_y, steps, lambda loss, *_: loss
    )
    loss, logits, stats = query_pass(method.learner, adapted, stats, episode, steps - 1)
    return TaskResult(loss, accuracy(logits, episode.query_y), logits, stats, losses)


def predict(
    method: Method,
    params: PyTree,
    stats: PyTree,
    support_x: jax.Array,
    support_y: jax.Array,
    query_x: jax.Array,
    steps: int | None = None,
) -> jax.Array:
    """Adapts to a support set, and gives the outputs for other inputs, `[batch, way]` or as the learner has them.

    Args:
      method: how the parameters were meta-learned.
      params: meta-parameters.
      stats: the statistics that outlive an episode.
      support_x: `[batch, ...]`.
      support_y: `[batch, ...]` labels or targets.
      query_x: `[batch, ...]`.
      steps: inner steps; None for as many as in training.
    """
    steps = method.steps if steps is None else steps
    adapted, stats, _ = method.adapted(params, stats, support_x, support_y, steps)
    phase = Phase(Pass.QUERY, step=steps - 1)
    return answer(method.learner, adapted, stats, support_x, query_x, phase)[0]


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array | None:
    """Share of rows of logits `[batch, way]` whose largest entry is at the int label `[batch]`; None in regression."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        return None
    return jnp.mean(jnp.argmax(logits, -1) == labels)
