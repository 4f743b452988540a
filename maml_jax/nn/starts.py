"""Where an episode's parameters come from, beside what is meta-learned: the start of the head, above all."""

import dataclasses
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Protocol

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from maml_jax import tree
from maml_jax.meta.learner import Pass, Phase
from maml_jax.tree import PyTree

if TYPE_CHECKING:
    from maml_jax.nn.model import FlaxLearner

_HEAD = r"^head/(kernel|bias)$"


class Start(Protocol):
    """Where an episode's parameters come from. Hashable, holds no arrays.

    Attributes:
      any_way: whether it goes with any number of ways, whatever was trained.
      alike: whether all classes start the same, so that it takes adaptation to tell them apart.
    """

    any_way: bool
    alike: bool

    def kept(self, params: PyTree) -> PyTree:
        """What is meta-learned, of all of a module's parameters."""

    def complete(
        self,
        learner: "FlaxLearner",
        params: PyTree,
        stats: PyTree,
        shapes: PyTree,
        support_x: jax.Array,
        support_y: jax.Array,
    ) -> PyTree:
        """All of a module's parameters for an episode, from what is meta-learned.

        Args:
          learner: of the module.
          params: what is meta-learned.
          stats: the statistics that the episode starts with.
          shapes: of all parameters.
          support_x: the support set's inputs, `[batch, ...]`.
          support_y: its labels, `[batch]`.
        """


@dataclasses.dataclass(frozen=True)
class Learned:
    """All parameters are meta-learned."""

    any_way: ClassVar[bool] = False
    alike: ClassVar[bool] = False

    def kept(self, params: PyTree) -> PyTree:
        """See `Start`."""
        return params

    def complete(self, learner, params, stats, shapes, support_x, support_y) -> PyTree:
        """See `Start`."""
        del learner, stats, support_x, support_y
        given, wanted = tree.by_name(params), tree.by_name(shapes)
        for name, shape in wanted.items():
            if name not in given or given[name].shape != shape.shape:
                found = f"is {given[name].shape}" if name in given else "is lacking"
                raise ValueError(f"parameter {name} {found}, but the module and the support set want {shape.shape}")
        return params


@dataclasses.dataclass(frozen=True)
class Zero:
    """Some parameters start every episode at zero, and are not meta-learned: they may depend on the number of ways.

    Attributes:
      pattern: a regular expression, found in the names of those parameters.
    """

    any_way: ClassVar[bool] = True
    alike: ClassVar[bool] = True
    pattern: str = _HEAD

    def kept(self, params: PyTree) -> PyTree:
        """See `Start`."""
        return _without(params, self.pattern)

    def complete(self, learner, params, stats, shapes, support_x, support_y) -> PyTree:
        """See `Start`."""
        del learner, stats, support_x, support_y
        return _filled(params, shapes, self.pattern, lambda name, shape: jnp.zeros(shape.shape, shape.dtype))


@dataclasses.dataclass(frozen=True)
class Shared:
    """One class vector is meta-learned, from which the head starts for every class.

    UNICORN-MAML (Ye & Chao 2022, arXiv:2106.16245, section 5): no class is told from another by its label before
    adaptation, so the order of labels says nothing, and any number of ways will do. Of a head that was learned with a
    vector for each class, it takes their mean, which is that over all orders of labels.

    Attributes:
      pattern: a regular expression, found in the names of the parameters whose last axis is that of the classes.
    """

    any_way: ClassVar[bool] = True
    alike: ClassVar[bool] = True
    pattern: str = _HEAD

    def kept(self, params: PyTree) -> PyTree:
        """See `Start`; the first class stands for all, and the axis of the classes has length 1."""
        return tree.map_named(lambda n, leaf: leaf[..., :1] if re.search(self.pattern, n) else leaf, params)

    def complete(self, learner, params, stats, shapes, support_x, support_y) -> PyTree:
        """See `Start`."""
        del learner, stats, support_x, support_y
        given = tree.by_name(params)
        vector = lambda name: given[name].mean(-1, keepdims=True)  # noqa: E731
        return _filled(params, shapes, self.pattern, lambda name, shape: jnp.broadcast_to(vector(name), shape.shape))


@dataclasses.dataclass(frozen=True)
class Prototypes:
    """The head starts at the class means cₖ of the support features: wₖ = 2 cₖ, bₖ = −‖cₖ‖².

    Then a logit is −‖f − cₖ‖² but for what all classes share: nearest class mean, from which the inner loop goes on,
    and through which gradients reach the encoder (Proto-MAML; Triantafillou et al. 2020, arXiv:1903.03096, section 3).
    Without inner steps this is ProtoNet (Snell et al. 2017, arXiv:1703.05175). The features are those of a support pass
    at test: nothing is dropped out. A class without images starts at zero features.
    """

    any_way: ClassVar[bool] = True
    alike: ClassVar[bool] = False

    def kept(self, params: PyTree) -> PyTree:
        """See `Start`."""
        return _without(params, _HEAD)

    def complete(self, learner, params, stats, shapes, support_x, support_y) -> PyTree:
        """See `Start`.

        Raises:
          ValueError: the module has no features, or no linear head.
        """
        if not hasattr(learner.module, "features") or not {"head/kernel", "head/bias"} <= set(tree.names(shapes)):
            raise ValueError(
                "prototypes need a module with a method `features` and a linear head with 'head/kernel' and 'head/bias'"
            )
        means = class_means(learner, params, stats, support_x, support_y, shapes["head"]["bias"].shape[0])
        head = {"head/kernel": 2 * means.T, "head/bias": -jnp.square(means).sum(-1)}
        return _filled(params, shapes, _HEAD, lambda name, shape: head[name].astype(shape.dtype))


def class_means(
    learner: "FlaxLearner", params: PyTree, stats: PyTree, support_x: jax.Array, support_y: jax.Array, way: int
) -> jax.Array:
    """The mean of the support features of each class, `[way, features]`; 0 of a class without images."""
    features, _ = learner.features(params, stats, support_x, Phase(Pass.SUPPORT))
    member = jax.nn.one_hot(support_y, way, dtype=features.dtype)
    return (member.T @ features.reshape(len(features), -1)) / jnp.maximum(member.sum(0), 1)[:, None]


STARTS: dict[str, Start] = {
    "meta": Learned(),
    "zero": Zero(),
    "shared": Shared(),
    "prototypes": Prototypes(),
}
"""By the names that `model.head` takes."""


def _filled(params: PyTree, shapes: PyTree, pattern: str, made: Callable) -> PyTree:
    """What is given, and in place of what `pattern` is found in the name of, or is not given, what is `made`."""
    given = tree.by_name(params)

    def fill(name, shape):
        return made(name, shape) if re.search(pattern, name) else given[name]

    return tree.map_named(fill, shapes)


def _without(params: PyTree, pattern: str) -> PyTree:
    named = flatten_dict(params, sep="/")
    return unflatten_dict({name: leaf for name, leaf in named.items() if not re.search(pattern, name)}, sep="/")
