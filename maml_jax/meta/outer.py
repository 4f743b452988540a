"""The outer objective, and its gradient through the inner loop."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from maml_jax.episode import Episode
from maml_jax.meta.inner import InnerLoop, adapt
from maml_jax.nn.loss import accuracy
from maml_jax.nn.model import Model
from maml_jax.nn.norm import Pass
from maml_jax.tree import PyTree


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


def task_loss(
    model: Model,
    inner: InnerLoop,
    params: PyTree,
    stats: PyTree,
    episode: Episode,
    steps: int,
    train: bool,
    weights: jax.Array | None = None,
) -> tuple[jax.Array, TaskResult]:
    """L_query(θ'(θ)): the query loss of one task as a function of the meta-parameters.

    Args:
      model: the classifier.
      inner: what adapts, and how.
      params: meta-parameters θ.
      stats: the statistics that outlive an episode.
      episode: one task.
      steps: inner steps.
      train: meta-training, against meta-test.
      weights: v, `[steps]`, for the loss Σₖ vₖ L_query(θ'ₖ) over the parameters after each step (`multi_step_weights`);
        None for that after the last alone.
    """

    def query(adapted, stats, k):
        if model.has_context:
            _, stats = model.apply(adapted, stats, episode.support_x, Pass.CONTEXT, train, k)
        logits, stats = model.apply(adapted, stats, episode.query_x, Pass.QUERY, train, k)
        return model.loss(logits, episode.query_y), logits, stats

    def watch(support_loss, adapted, stats, k):
        if weights is None:
            return support_loss, 0.0
        weight = jnp.where(k < steps - 1, weights[k], 0.0).astype(support_loss.dtype)  # the last step's comes below
        zero = jnp.zeros_like(support_loss)
        return support_loss, lax.cond(weight > 0, lambda: weight * query(adapted, stats, k)[0], lambda: zero)

    adapted, stats, (support_losses, earlier) = adapt(
        model, inner, params, stats, episode.support_x, episode.support_y, steps, train, watch
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


def meta_loss(
    model: Model,
    inner: InnerLoop,
    params: PyTree,
    stats: PyTree,
    episodes: Episode,
    steps: int,
    train: bool = True,
    weights: jax.Array | None = None,
) -> tuple[jax.Array, TaskResult]:
    """The mean of `task_loss` over a batch of tasks (Finn et al. 2017, equation 2), and each task's result."""
    losses, results = jax.vmap(lambda e: task_loss(model, inner, params, stats, e, steps, train, weights))(episodes)
    return losses.mean(), results


def meta_gradient(
    model: Model,
    inner: InnerLoop,
    params: PyTree,
    stats: PyTree,
    episodes: Episode,
    steps: int,
    tasks_at_once: int,
    weights: jax.Array | None = None,
) -> tuple[PyTree, TaskResult]:
    """∇_θ of `meta_loss`, through the inner loop.

    The loss is a mean over tasks, so its gradient is accumulated over groups of tasks and memory depends on a group's
    size only.

    Args:
      model: the classifier.
      inner: what adapts, and how.
      params: meta-parameters θ.
      stats: the statistics of `global` layers.
      episodes: a batch of tasks.
      steps: inner steps.
      tasks_at_once: size of a group, a divisor of the number of tasks: 1 takes one task after the other (fastest on a
        CPU), all of them is a plain `vmap`.
      weights: see `task_loss`.

    Returns:
      The meta-gradient, and the result of every task.
    """
    tasks = episodes.support_y.shape[0]
    chex.assert_is_divisible(tasks, tasks_at_once)
    loss, groups = meta_loss, jax.tree.map(lambda x: x.reshape(-1, tasks_at_once, *x.shape[1:]), episodes)
    if tasks_at_once == 1:  # no axis of size 1, which XLA would copy whole batches to move in memory
        loss, groups = task_loss, episodes

    def add(total, group):
        gradient, results = jax.grad(loss, argnums=2, has_aux=True)(
            model, inner, params, stats, group, steps, train=True, weights=weights
        )
        return jax.tree.map(jnp.add, total, gradient), results

    total, results = lax.scan(add, jax.tree.map(jnp.zeros_like, params), groups)
    gradient = jax.tree.map(lambda g: g * (tasks_at_once / tasks), total)
    if tasks_at_once > 1:
        results = jax.tree.map(lambda x: x.reshape(tasks, *x.shape[2:]), results)
    return gradient, results
