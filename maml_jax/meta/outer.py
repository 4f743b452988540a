"""The outer objective, and its gradient through the inner loop: MAML as a value."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from maml_jax.episode import Episode
from maml_jax.meta.inner import InnerLoop, adapt
from maml_jax.meta.learner import Learner, Pass, Phase
from maml_jax.tree import PyTree

NOTHING = lambda *_: ()  # noqa: E731


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
        watch: Callable[[jax.Array, PyTree, PyTree, jax.Array], PyTree] = NOTHING,
    ) -> tuple[PyTree, PyTree, PyTree]:
        """At meta-test: the parameters and statistics after adaptation, and what `watch` kept; see `adapt`."""


class Annealing(NamedTuple):
    """How the objective changes as training goes on (MAML++; Antoniou et al. 2018, arXiv:1810.09502, section 4).

    Attributes:
      multi_step: meta-steps over which the query losses after all inner steps give way to that after the last (see
        `multi_step_weights`); 0: the last alone, from the start.
      first_order: meta-steps taken with first-order gradients before those of second order begin.
    """

    multi_step: int = 0
    first_order: int = 0


CONSTANT = Annealing()


@dataclasses.dataclass(frozen=True)
class Maml:
    """MAML and what differs from it in a choice only: FOMAML, ANIL, BOIL, Meta-SGD, MAML++.

    Attributes:
      learner: the model.
      inner: what adapts, and how.
      steps: inner steps in training.
      annealing: how the objective depends on the meta-step.
    """

    learner: Learner
    inner: InnerLoop
    steps: int
    annealing: Annealing = CONSTANT

    def init(self, key: jax.Array, episode: Episode) -> tuple[PyTree, PyTree]:
        """See `Method.init`; with learned rates, these stand beside the parameters."""
        params, stats = self.learner.init(key, episode.support_x)
        if self.inner.rates:
            if not isinstance(params, dict) or "rates" in params:
                raise ValueError(
                    "learned rates stand in the dict of parameters as 'rates', beside parts of other names"
                )
            start = dataclasses.replace(self.inner, rates=None).start
            adapted, _, _ = start(self.learner, params, stats, episode.support_x, episode.support_y)
            params = {**params, "rates": self.inner.rates.init(adapted)}
        return params, stats

    def task_gradient(
        self, params: PyTree, stats: PyTree, episode: Episode, step: jax.Array
    ) -> tuple[PyTree, TaskResult]:
        """∇_θ L_query(θ'(θ)), through the inner loop; see `Method.task_gradient`."""
        weights = None
        if self.annealing.multi_step:
            progress = jnp.minimum(step / self.annealing.multi_step, 1.0)
            weights = multi_step_weights(progress, self.steps)

        def gradient_with(inner):
            def loss(params):
                return task_loss(self.learner, inner, params, stats, episode, self.steps, weights)

            return jax.grad(loss, has_aux=True)(params)

        if not self.annealing.first_order:
            return gradient_with(self.inner)
        simpler = dataclasses.replace(self.inner, first_order=True)
        begun = step >= self.annealing.first_order
        return lax.cond(begun, lambda: gradient_with(self.inner), lambda: gradient_with(simpler))

    def adapted(
        self,
        params: PyTree,
        stats: PyTree,
        support_x: jax.Array,
        support_y: jax.Array,
        steps: int | None = None,
        watch: Callable[[jax.Array, PyTree, PyTree, jax.Array], PyTree] = NOTHING,
    ) -> tuple[PyTree, PyTree, PyTree]:
        """See `Method.adapted`."""
        steps = self.steps if steps is None else steps
        return adapt(self.learner, self.inner, params, stats, support_x, support_y, steps, watch=watch)


def task_loss(
    learner: Learner,
    inner: InnerLoop,
    params: PyTree,
    stats: PyTree,
    episode: Episode,
    steps: int,
    weights: jax.Array | None = None,
) -> tuple[jax.Array, TaskResult]:
    """L_query(θ'(θ)): the query loss of one task of meta-training as a function of the meta-parameters.

    Args:
      learner: the model.
      inner: what adapts, and how.
      params: meta-parameters θ.
      stats: the statistics that outlive an episode.
      episode: one task.
      steps: inner steps.
      weights: v, `[steps]`, for the loss Σₖ vₖ L_query(θ'ₖ) over the parameters after each step (`multi_step_weights`);
        None for that after the last alone.
    """
    key = episode.key
    support_key, query_key = (None, None) if key is None else jax.random.split(key)

    def query(adapted, stats, k):
        key_k = None if query_key is None else jax.random.fold_in(query_key, k + 1)  # k is -1 without inner steps
        return query_pass(learner, adapted, stats, episode, k, train=True, key=key_k)

    def watch(support_loss, adapted, stats, k):
        if weights is None:
            return support_loss, 0.0
        weight = jnp.where(k < steps - 1, weights[k], 0.0).astype(support_loss.dtype)  # the last step's comes below
        zero = jnp.zeros_like(support_loss)
        return support_loss, lax.cond(weight > 0, lambda: weight * query(adapted, stats, k)[0], lambda: zero)

    adapted, stats, (support_losses, earlier) = adapt(
        learner, inner, params, stats, episode.support_x, episode.support_y, steps, True, watch, support_key
    )
    loss, logits, stats = query(adapted, stats, steps - 1)
    result = TaskResult(loss, accuracy(logits, episode.query_y), logits, stats, support_losses)
    return loss if weights is None else weights[-1] * loss + earlier.sum(), result


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


def multi_step_weights(progress: jax.Array, steps: int) -> jax.Array:
    """The weights of MAML++'s multi-step loss, `[steps]` (Antoniou et al. 2018, arXiv:1810.09502, section 4).

    At first the query losses after every inner step weigh the same; linearly, all weight moves to the last one's. (The
    public code leaves 0.03 / steps on each earlier one, until it drops them all at the end.)

    Args:
      progress: 0 at the start, 1 when the annealing is over.
      steps: number of inner steps.
    """
    return (1 - progress) / steps + progress * (jnp.arange(steps) == steps - 1)
