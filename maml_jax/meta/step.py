"""The outer update: one meta-step from one batch of tasks."""

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from maml_jax.episode import Episode
from maml_jax.meta.method import Method, TaskResult
from maml_jax.parallel import mean_over
from maml_jax.tree import PyTree


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


def init_state(method: Method, optimizer: optax.GradientTransformation, key: jax.Array, episode: Episode) -> MetaState:
    """A fresh state, its parameters drawn with `key`; `episode` is any task, of which only shapes and types matter."""

    @jax.jit  # a program for each operation would take more time and memory
    def init(key):
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), episode._replace(key=None))
        params, stats = method.init(key, zeros)
        return MetaState(step=jnp.int32(0), params=params, stats=stats, optimizer=optimizer.init(params))

    return init(key)


def meta_gradient(
    method: Method, params: PyTree, stats: PyTree, episodes: Episode, step: jax.Array | int = 0, tasks_at_once: int = 1
) -> tuple[PyTree, TaskResult]:
    """The mean over tasks of what each adds to the gradient (Finn et al. 2017, equation 2).

    Args:
      method: how the gradient of a task is taken.
      params: meta-parameters θ.
      stats: the statistics that outlive an episode.
      episodes: a batch of tasks.
      step: meta-steps taken.
      tasks_at_once: how many are computed side by side, a divisor of the number of tasks: 1 takes one task after the
        other (fastest on a CPU), all of them is a plain `vmap`. Memory depends on this number only.

    Returns:
      The meta-gradient, and the result of every task.
    """
    tasks = episodes.support_y.shape[0]
    chex.assert_is_divisible(tasks, tasks_at_once)

    def of_task(episode):
        return method.task_gradient(params, stats, episode, step)

    def of_group(episodes):
        gradients, results = jax.vmap(of_task)(episodes)
        return jax.tree.map(lambda g: g.sum(0), gradients), results

    if tasks_at_once == tasks > 1:
        total, results = of_group(episodes)
        return jax.tree.map(lambda g: g / tasks, total), results
    one, groups = of_group, jax.tree.map(lambda x: x.reshape(-1, tasks_at_once, *x.shape[1:]), episodes)
    if tasks_at_once == 1:  # no axis of size 1, which XLA would copy whole batches to move in memory
        one, groups = of_task, episodes

    def add(total, group):
        gradient, results = one(group)
        return jax.tree.map(jnp.add, total, gradient), results

    total, results = lax.scan(add, jax.tree.map(jnp.zeros_like, params), groups)
    if tasks_at_once > 1:
        results = jax.tree.map(lambda x: x.reshape(tasks, *x.shape[2:]), results)
    return jax.tree.map(lambda g: g / tasks, total), results


def meta_step(
    method: Method,
    optimizer: optax.GradientTransformation,
    state: MetaState,
    episodes: Episode,
    tasks_at_once: int = 1,
    axis: str | None = None,
) -> tuple[MetaState, TaskResult]:
    """One outer update: θ ← θ − β ∇_θ L_query averaged over tasks, with the outer optimiser's rule.

    Every task starts from the same lasting statistics, and what the tasks made of them is averaged.

    Args:
      method: how the gradient of a task is taken.
      optimizer: the outer optimiser.
      state: where training stands.
      episodes: a batch of tasks.
      tasks_at_once: see `meta_gradient`.
      axis: the mapped axis of the devices that share the step's tasks, if there are several.
    """
    gradient, results = meta_gradient(method, state.params, state.stats, episodes, state.step, tasks_at_once)
    stats = jax.tree.map(lambda x: x.mean(0), method.learner.lasting(results.stats))
    if axis is not None:
        gradient, stats = mean_over(axis, (gradient, stats))
    update, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
    state = MetaState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, update),
        stats=stats,
        optimizer=optimizer_state,
    )
    return state, results
