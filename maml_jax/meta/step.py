"""The outer update: one meta-step from one batch of tasks."""

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from maml_jax.episode import Episode
from maml_jax.meta.inner import InnerLoop
from maml_jax.meta.outer import TaskResult, meta_gradient
from maml_jax.nn.model import Model
from maml_jax.tree import PyTree


@chex.dataclass(frozen=True)
class MetaState:
    """All that training changes.

    Attributes:
      step: meta-steps taken, int32 scalar.
      params: meta-parameters.
      stats: statistics of `global` normalisation layers.
      optimizer: state of the outer optimiser.
    """

    step: jax.Array
    params: PyTree
    stats: PyTree
    optimizer: PyTree


def init_state(model: Model, optimizer: optax.GradientTransformation, key: jax.Array) -> MetaState:
    """A fresh state, its parameters drawn with `key`."""
    params, stats = model.init(key)
    return MetaState(step=jnp.int32(0), params=params, stats=stats, optimizer=optimizer.init(params))


def meta_step(
    model: Model,
    inner: InnerLoop,
    optimizer: optax.GradientTransformation,
    state: MetaState,
    episodes: Episode,
    steps: int,
    tasks_at_once: int,
    axis: str | None = None,
) -> tuple[MetaState, TaskResult]:
    """One outer update: θ ← θ − β ∇_θ L_query averaged over tasks, with the outer optimiser's rule.

    Every task starts from the same `global` statistics, and what the tasks made of them is averaged.

    Args:
      model: the classifier.
      inner: what adapts, and how.
      optimizer: the outer optimiser.
      state: where training stands.
      episodes: a batch of tasks.
      steps: inner steps.
      tasks_at_once: see `meta_gradient`.
      axis: the mapped axis of the devices that share the step's tasks, if there are several.
    """
    gradient, results = meta_gradient(model, inner, state.params, state.stats, episodes, steps, tasks_at_once)
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
