"""The outer objective, and its gradient through the inner loop."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from maml_jax.episode import Episode
from maml_jax.meta.inner import InnerLoop, accuracy, adapt, cross_entropy
from maml_jax.nn.model import Model
from maml_jax.nn.norm import Pass
from maml_jax.tree import PyTree


class TaskResult(NamedTuple):
    """What came of one task; over a batch every field has a leading `tasks` axis.

    Attributes:
      loss: query cross-entropy after adaptation, scalar.
      accuracy: query accuracy after adaptation, scalar in [0, 1].
      logits: query logits after adaptation, `[way * query, way]`.
      stats: normalisation statistics after the last support pass, of all layers that have any.
      support_losses: support loss before each inner step, `[steps]`.
    """

    loss: jax.Array
    accuracy: jax.Array
    logits: jax.Array
    stats: PyTree
    support_losses: jax.Array


def task_loss(
    model: Model, inner: InnerLoop, params: PyTree, stats: PyTree, episode: Episode, steps: int, train: bool
) -> tuple[jax.Array, TaskResult]:
    """L_query(θ'(θ)): the query loss of one task as a function of the meta-parameters.

    Args:
      model: the classifier.
      inner: what adapts, and how.
      params: meta-parameters θ.
      stats: the statistics of `global` layers.
      episode: one task.
      steps: inner steps.
      train: meta-training, against meta-test.
    """
    adapted, stats, support_losses = adapt(
        model, inner, params, stats, episode.support_x, episode.support_y, steps, train
    )
    logits, _ = model.apply(adapted, stats, episode.query_x, Pass.QUERY, train)
    loss = cross_entropy(logits, episode.query_y)
    return loss, TaskResult(loss, accuracy(logits, episode.query_y), logits, stats, support_losses)


def meta_loss(
    model: Model, inner: InnerLoop, params: PyTree, stats: PyTree, episodes: Episode, steps: int, train: bool = True
) -> tuple[jax.Array, TaskResult]:
    """The mean of `task_loss` over a batch of tasks (Finn et al. 2017, equation 2), and each task's result."""
    losses, results = jax.vmap(lambda e: task_loss(model, inner, params, stats, e, steps, train))(episodes)
    return losses.mean(), results


def meta_gradient(
    model: Model,
    inner: InnerLoop,
    params: PyTree,
    stats: PyTree,
    episodes: Episode,
    steps: int,
    tasks_at_once: int,
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

    Returns:
      The meta-gradient, and the result of every task.
    """
    tasks = episodes.support_y.shape[0]
    chex.assert_is_divisible(tasks, tasks_at_once)
    groups = jax.tree.map(lambda x: x.reshape(tasks // tasks_at_once, tasks_at_once, *x.shape[1:]), episodes)

    def add(total, group):
        gradient, results = jax.grad(meta_loss, argnums=2, has_aux=True)(model, inner, params, stats, group, steps)
        return jax.tree.map(jnp.add, total, gradient), results

    total, results = lax.scan(add, jax.tree.map(jnp.zeros_like, params), groups)
    gradient = jax.tree.map(lambda g: g * (tasks_at_once / tasks), total)
    return gradient, jax.tree.map(lambda x: x.reshape(tasks, *x.shape[2:]), results)
