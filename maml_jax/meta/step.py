"""The outer update: one meta-step from one batch of tasks."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from maml_jax.episode import Episode
from maml_jax.meta.inner import InnerLoop, split
from maml_jax.meta.outer import TaskResult, meta_gradient, multi_step_weights
from maml_jax.nn.model import Model
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


@chex.dataclass(frozen=True)
class MetaState:
    """All that training changes.

    Attributes:
      step: meta-steps taken, int32 scalar.
      params: meta-parameters.
      stats: statistics of normalisation layers that outlive an episode.
      optimizer: state of the outer optimiser.
    """

    step: jax.Array
    params: PyTree
    stats: PyTree
    optimizer: PyTree


def init_state(
    model: Model, optimizer: optax.GradientTransformation, key: jax.Array, inner: InnerLoop | None = None
) -> MetaState:
    """A fresh state, its parameters drawn with `key`, with the inner loop's learned rates if it has any."""

    @jax.jit  # a program for each operation would take more time and memory
    def init(key):
        params, stats = model.init(key)
        if inner and inner.rates:
            params = {**params, "rates": inner.rates.init(split(model, inner, params)[0])}
        return MetaState(step=jnp.int32(0), params=params, stats=stats, optimizer=optimizer.init(params))

    return init(key)


def meta_step(
    model: Model,
    inner: InnerLoop,
    optimizer: optax.GradientTransformation,
    state: MetaState,
    episodes: Episode,
    steps: int,
    tasks_at_once: int,
    axis: str | None = None,
    annealing: Annealing = CONSTANT,
) -> tuple[MetaState, TaskResult]:
    """One outer update: θ ← θ − β ∇_θ L_query averaged over tasks, with the outer optimiser's rule.

    Every task starts from the same lasting statistics, and what the tasks made of them is averaged.

    Args:
      model: the classifier.
      inner: what adapts, and how.
      optimizer: the outer optimiser.
      state: where training stands.
      episodes: a batch of tasks.
      steps: inner steps.
      tasks_at_once: see `meta_gradient`.
      axis: the mapped axis of the devices that share the step's tasks, if there are several.
      annealing: how the objective depends on the meta-step.
    """
    weights = None
    if annealing.multi_step:
        weights = multi_step_weights(jnp.minimum(state.step / annealing.multi_step, 1.0), steps)

    def gradient_of(inner):
        return meta_gradient(model, inner, state.params, state.stats, episodes, steps, tasks_at_once, weights)

    if annealing.first_order:
        simpler = inner._replace(first_order=True)
        begun = state.step >= annealing.first_order
        gradient, results = lax.cond(begun, lambda: gradient_of(inner), lambda: gradient_of(simpler))
    else:
        gradient, results = gradient_of(inner)
    stats = jax.tree.map(lambda x: x.mean(0), model.lasting_stats(results.stats))
    if axis is not None:
        gradient, stats = lax.pmean((gradient, stats), axis)
    update, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
    state = MetaState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, update),
        stats=stats,
        optimizer=optimizer_state,
    )
    return state, results
