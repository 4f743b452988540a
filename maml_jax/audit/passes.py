"""What the audit computes of one task, inside a compiled program. All are functions for `evaluate.EachTask`."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from maml_jax.audit import dealing
from maml_jax.episode import Episode
from maml_jax.meta.inner import InnerLoop
from maml_jax.meta.learner import Learner, Pass, Phase
from maml_jax.meta.method import Method, accuracy, query_pass
from maml_jax.nn.model import FlaxLearner
from maml_jax.nn.starts import Zero
from maml_jax.tree import PyTree

Figures = dict[str, jax.Array]
Ask = Callable[[jax.Array], jax.Array]


def asking(learner: Learner, adapted: PyTree, stats: PyTree, support_x: jax.Array, step: int) -> Ask:
    """A function from query sets to outputs; what there is of a context pass is done once for all of them."""
    if learner.uses_context:
        _, stats = learner.apply(adapted, stats, support_x, Phase(Pass.CONTEXT, step=step))
    return lambda x: learner.apply(adapted, stats, x, Phase(Pass.QUERY, step=step))[0]


def adapted_to(method: Method, params: PyTree, stats: PyTree, episode: Episode, steps: int) -> Ask:
    """The function from query sets to outputs of parameters adapted to a task."""
    adapted, stats, _ = method.adapted(params, stats, episode.support_x, episode.support_y, steps)
    return asking(method.learner, adapted, stats, episode.support_x, max(steps - 1, 0))


def protocol(method: Method, steps: int, way: int, query: int) -> Callable[..., Figures]:
    """Answers to the first `query` queries of each class, and those of the nearest neighbour in pixels.

    The figures are `losses`, scalar, `predictions` and `nearest`, int `[way * query]`.
    """

    def figures(params, stats, episode):
        asked = _first(episode, way, query)
        logits = adapted_to(method, params, stats, episode, steps)(asked.query_x)
        return {
            "losses": method.learner.loss(logits, asked.query_y),
            "predictions": _predicted(logits),
            "nearest": asked.support_y[_nearest(_flat(asked.query_x), _flat(asked.support_x))],
        }

    return figures


def losses(method: Method, steps: int) -> Callable[..., Figures]:
    """The query loss, where there are no classes."""

    def figures(params, stats, episode):
        logits = adapted_to(method, params, stats, episode, steps)(episode.query_x)
        return {"losses": method.learner.loss(logits, episode.query_y)}

    return figures


def rows(
    method: Method, steps: int, way: int, sizes: tuple[int, ...], alphas: tuple[str, ...]
) -> Callable[..., Figures]:
    """Answers to one task under many query sets.

    The figures are `predictions_Q`, int `[way * Q]`, for the first Q queries of each class, Q in `sizes`; for the last
    of these `confidence` and `nll`, `[way * Q]`, the probability of the predicted class and the negative logarithm of
    that of the true one; and `imbalanced_A`, int `[queries]`, for each A of `alphas` and its rows, given beside.
    """

    def figures(params, stats, episode, *drawn):
        ask = adapted_to(method, params, stats, episode, steps)
        found = {}
        for size in sizes:
            asked = _first(episode, way, size)
            logits = ask(asked.query_x)
            found[f"predictions_{size}"] = _predicted(logits)
        logs = jax.nn.log_softmax(logits)
        found["confidence"] = jnp.exp(logs.max(-1))
        found["nll"] = -jnp.take_along_axis(logs, asked.query_y[:, None], 1)[:, 0]
        for alpha, chosen in zip(alphas, drawn, strict=True):
            found[f"imbalanced_{alpha}"] = _predicted(ask(episode.query_x[chosen]))
        return found

    return figures


def leaks(method: Method, steps: int) -> Callable[..., Figures]:
    """Whether the answer to a query changes with the queries that it is asked together with.

    Each query stands in the first place of two query sets, which have no other query in common; their rows are given
    beside. The figures are `changed`, bool `[queries]`, and `moved`, the largest change of one of its logits.
    """

    def figures(params, stats, episode, first, second):
        ask = adapted_to(method, params, stats, episode, steps)

        def one(row):
            place, *company = row
            a, b = (ask(episode.query_x[jnp.concatenate([place[None], rest])])[0] for rest in company)
            return {"changed": jnp.argmax(a) != jnp.argmax(b), "moved": jnp.abs(a - b).max()}

        places = jnp.arange(len(episode.query_y), dtype=jnp.int32)
        return lax.map(one, (places, first, second))

    return figures


def label_orders(method: Method, steps: int, orders: np.ndarray) -> Callable[..., Figures]:
    """`accuracies`, `[orders]`, where class c of the task is called `orders[i, c]`."""

    def figures(params, stats, episode):
        def one(order):
            renamed = episode._replace(support_y=order[episode.support_y])
            logits = adapted_to(method, params, stats, renamed, steps)(episode.query_x)
            return accuracy(logits, order[episode.query_y])

        return {"accuracies": lax.map(one, jnp.asarray(orders))}

    return figures


def adaptation(method: Method, steps: int, way: int, query: int) -> Callable[..., Figures]:
    """What adapting does, by the first `query` queries of each class.

    The figures are `losses` and `accuracies`, `[2 * steps + 1]`, before adaptation and after each step, up to twice as
    many as usual; the accuracies of `variants`, by their names; and where the learner has features, `means_before` and
    `means_after`, that of the nearest class mean of them.
    """

    def figures(params, stats, episode):
        asked = _first(episode, way, query) if way > 1 else episode
        found = _curve(method, params, stats, asked, 2 * steps)
        if not _is_classified(episode):
            return found
        for name, variant in variants(method).items():
            logits = adapted_to(variant, params, stats, asked, steps)(asked.query_x)
            found[name] = accuracy(logits, asked.query_y)
        if has_features(method.learner):
            found["means_before"] = _by_class_means(method, params, stats, asked, 0, way)
            found["means_after"] = _by_class_means(method, params, stats, asked, steps, way)
        return found

    return figures


def variants(method: Method) -> dict[str, Method]:
    """The method if only the head adapts (ANIL), only the body (BOIL), or all with a head that starts at zero.

    None of a method without an inner loop; no head from zero if that is the method itself, or the head does not adapt.
    """
    if not isinstance(getattr(method, "inner", None), InnerLoop):
        return {}
    is_head = lambda name: name.startswith("head/")  # noqa: E731
    found = {"head_only": _only(method, is_head), "body_only": _only(method, lambda name: not is_head(name))}
    learner = method.learner
    if isinstance(learner, FlaxLearner) and learner.starts != Zero() and method.inner.is_adapted("head/kernel"):
        found["head_from_zero"] = dataclasses.replace(method, learner=dataclasses.replace(learner, starts=Zero()))
    return found


def _only(method, wanted):
    """The method by which nothing adapts but what is `wanted`."""
    chosen = lambda name: method.inner.is_adapted(name) and wanted(name)  # noqa: E731
    return dataclasses.replace(method, inner=dataclasses.replace(method.inner, is_adapted=chosen))


def has_features(learner: Learner) -> bool:
    """Whether the learner tells the features that its head sees."""
    return hasattr(learner, "features") and hasattr(getattr(learner, "module", learner), "features")


def _curve(method, params, stats, episode, steps):
    def judge(params, stats, k):
        loss, outputs, _ = query_pass(method.learner, params, stats, episode, k)
        right = accuracy(outputs, episode.query_y)
        return {"losses": loss} | ({} if right is None else {"accuracies": right})

    support = episode.support_x, episode.support_y
    start, start_stats, _ = method.adapted(params, stats, *support, 0)
    first = judge(start, start_stats, 0)
    _, _, rest = method.adapted(params, stats, *support, steps, lambda _, p, s, k: judge(p, s, k))
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)


def _by_class_means(method, params, stats, episode, steps, way):
    """Accuracy of the nearest mean of the support features of a class."""
    adapted, stats, _ = method.adapted(params, stats, episode.support_x, episode.support_y, steps)
    learner, step = method.learner, max(steps - 1, 0)
    if learner.uses_context:
        _, stats = learner.apply(adapted, stats, episode.support_x, Phase(Pass.CONTEXT, step=step))
    support, query = (
        learner.features(adapted, stats, x, Phase(Pass.QUERY, step=step))[0]
        for x in (episode.support_x, episode.query_x)
    )
    member = jax.nn.one_hot(episode.support_y, way, dtype=support.dtype)
    means = (member.T @ _flat(support)) / member.sum(0)[:, None]
    return jnp.mean(_nearest(_flat(query), means) == episode.query_y)


def _first(episode, way, query):
    """The episode with the first `query` queries of each class."""
    pool = len(episode.query_y) // way
    if pool == query or not _is_classified(episode):
        return episode
    chosen = dealing.nested(way, pool, query)
    return episode._replace(query_x=episode.query_x[chosen], query_y=episode.query_y[chosen])


def _is_classified(episode):
    return jnp.issubdtype(episode.query_y.dtype, jnp.integer)


def _predicted(logits):
    return jnp.argmax(logits, -1).astype(jnp.int16)


def _flat(x):
    return x.reshape(len(x), -1)


def _nearest(x, centres):
    """Which of `centres` `[n, d]` is nearest to each of `x` `[m, d]`."""
    return lax.map(lambda row: jnp.argmin(jnp.square(row - centres).sum(-1)), x)
