"""MAML as a value: the query loss after adaptation, and its gradient through the inner loop."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from maml_jax.episode import Episode
from maml_jax.meta.inner import InnerLoop, adapt
from maml_jax.meta.learner import Learner
from maml_jax.meta.method import ByInnerLoop, TaskResult, accuracy, keys_of, query_pass
from maml_jax.tree import PyTree


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
class Maml(ByInnerLoop):
    """MAML and what differs from it in a choice only: FOMAML, ANIL, BOIL, Meta-SGD, Meta-Curvature, MAML++.

    Attributes:
      learner: the model.
      inner: what adapts, and how.
      steps: inner steps in training.
      annealing: how the objective depends on the meta-step.
    """

    annealing: Annealing = CONSTANT

    def init(self, key: jax.Array, episode: Episode) -> tuple[PyTree, PyTree]:
        """See `Method.init`; what of the inner rule is learned stands beside the parameters."""
        params, stats = super().init(key, episode)
        learned = self.inner.learned
        if not learned:
            return params, stats
        if not isinstance(params, dict) or learned.keys() & params.keys():
            raise ValueError(f"{', '.join(learned)} stand in the dict of parameters, beside parts of other names")
        adapted, _, _ = self.inner.start(self.learner, params, stats, episode.support_x, episode.support_y)
        return {**params, **{name: part.init(adapted) for name, part in learned.items()}}, stats

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
    support_key, query_key = keys_of(episode)

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


def multi_step_weights(progress: jax.Array, steps: int) -> jax.Array:
    """The weights of MAML++'s multi-step loss, `[steps]` (Antoniou et al. 2018, arXiv:1810.09502, section 4).

    At first the query losses after every inner step weigh the same; linearly, all weight moves to the last one's. (The
    public code leaves 0.03 / steps on each earlier one, until it drops them all at the end.)

    Args:
      progress: 0 at the start, 1 when the annealing is over.
      steps: number of inner steps.
    """
    return (1 - progress) / steps + progress * (jnp.arange(steps) == steps - 1)
