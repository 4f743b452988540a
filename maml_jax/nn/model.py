"""Any Flax module as a learner: pure functions of parameters and statistics."""

import dataclasses
import functools
import inspect
import re
from typing import Any, Protocol

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp

from maml_jax import tree
from maml_jax.meta.learner import Pass, Phase
from maml_jax.nn.loss import LOSSES, Loss, cross_entropy
from maml_jax.tree import PyTree

LASTING = ("lasting_stats",)
"""Collections of variables that outlive an episode, of the layers of `maml_jax.nn`."""


class Start(Protocol):
    """Where an episode's parameters come from, beside what is meta-learned. Hashable, holds no arrays."""

    def kept(self, params: PyTree) -> PyTree:
        """What of a module's parameters is meta-learned."""

    def complete(self, learner: "FlaxLearner", params: PyTree, shapes: PyTree, support_x: jax.Array, y: jax.Array):
        """All of the module's parameters for an episode, whose shapes are given, from what is meta-learned."""


@dataclasses.dataclass(frozen=True)
class Learned:
    """All parameters are meta-learned."""

    def kept(self, params: PyTree) -> PyTree:
        """See `Start`."""
        return params

    def complete(
        self, learner: "FlaxLearner", params: PyTree, shapes: PyTree, support_x: jax.Array, y: jax.Array
    ) -> PyTree:
        """See `Start`."""
        del learner, support_x, y
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

    pattern: str = r"^head/(kernel|bias)$"

    def kept(self, params: PyTree) -> PyTree:
        """See `Start`."""
        return _without(params, self.pattern)

    def complete(
        self, learner: "FlaxLearner", params: PyTree, shapes: PyTree, support_x: jax.Array, y: jax.Array
    ) -> PyTree:
        """See `Start`."""
        del learner, support_x, y
        given = tree.by_name(params)
        return tree.map_named(lambda n, s: given[n] if n in given else jnp.zeros(s.shape, s.dtype), shapes)


STARTS: dict[str, Start] = {"meta": Learned(), "zero": Zero()}
"""By the names that `model.head` takes."""


def _without(params: PyTree, pattern: str, prefix: str = "") -> PyTree:
    kept = {}
    for name, part in params.items():
        if isinstance(part, dict):
            kept[name] = _without(part, pattern, f"{prefix}{name}/")
        elif not re.search(pattern, prefix + name):
            kept[name] = part
    return kept


@dataclasses.dataclass(frozen=True)
class FlaxLearner:
    """The `Learner` of a Flax module. Hashable, holds no arrays.

    The module's call takes the inputs, and if it has arguments of these names, `phase` (a `Phase`) or `train` (whether
    it is meta-training). Layers that draw, such as `nn.Dropout`, do so with the key of the phase.

    Variables that are no parameters are statistics. They start anew in every episode, as the module initialises them,
    but for those of collections that last.

    Attributes:
      module: the Flax module.
      loss: of outputs and labels or targets, to a scalar.
      starts: where an episode's parameters come from.
      lasts: collections of variables that outlive an episode; what the tasks of a meta-step make of them is averaged.
    """

    module: nn.Module
    loss: Loss = cross_entropy
    starts: Start = Learned()
    lasts: tuple[str, ...] = LASTING

    @property
    def uses_context(self) -> bool:
        """Whether a query pass needs a context pass before it; as the module says."""
        return getattr(self.module, "uses_context", False)

    def init(self, key: jax.Array, x: jax.Array) -> tuple[PyTree, PyTree]:
        """Draws the meta-parameters, and the statistics that outlive an episode; see `Learner.init`."""
        variables = self._variables(key, x)
        return self.starts.kept(variables.pop("params", {})), self.lasting(variables)

    def start(self, params: PyTree, stats: PyTree, support_x: jax.Array, support_y: jax.Array) -> tuple[PyTree, PyTree]:
        """Where an episode starts; see `Learner.start`.

        Raises:
          ValueError: the parameters do not fit the module.
        """
        key = jax.random.key(0)
        shapes = jax.eval_shape(self._variables, key, support_x)
        params = self.starts.complete(self, params, shapes.pop("params", {}), support_x, support_y)
        if set(shapes) <= set(self.lasts):
            return params, stats
        fresh = self._variables(key, support_x)  # all but the initial statistics is dead code
        return params, {name: stats[name] if name in self.lasts else fresh[name] for name in shapes}

    def apply(self, params: PyTree, stats: PyTree, x: jax.Array, phase: Phase) -> tuple[jax.Array, PyTree]:
        """Outputs and the statistics after this pass; see `Learner.apply`."""
        return self._call(params, stats, x, phase)

    def features(self, params: PyTree, stats: PyTree, x: jax.Array, phase: Phase) -> tuple[jax.Array, PyTree]:
        """As `apply`, but what the module's method `features` gives, such as a classifier's encoder."""
        return self._call(params, stats, x, phase, method="features")

    def lasting(self, stats: PyTree) -> PyTree:
        """What outlives an episode; see `Learner.lasting`."""
        return {name: stats[name] for name in self.lasts if name in stats}

    def _call(self, params, stats, x, phase, method=None):
        rngs = {} if phase.key is None else {"dropout": phase.key}
        more = arguments(type(self.module), phase)
        try:
            outputs, changed = self.module.apply(
                {"params": params, **stats}, x, **more, rngs=rngs, mutable=list(stats), method=method
            )
        except flax.errors.InvalidRngError as error:
            raise ValueError(
                "the module draws random numbers, for which the episode has no key: make it with Episode(..., key=...)"
            ) from error
        return outputs, {**stats, **changed}

    def _variables(self, key: jax.Array, x: jax.Array) -> dict[str, Any]:
        x = jnp.zeros((1, *x.shape[1:]), x.dtype)
        phase = Phase(Pass.SUPPORT, train=True, key=key)
        keys = {"params": key, "dropout": key}
        return dict(self.module.init(keys, x, **arguments(type(self.module), phase)))


@functools.cache
def _accepted(module: type[nn.Module]) -> tuple[str, ...]:
    return tuple(name for name in ("phase", "train") if name in inspect.signature(module.__call__).parameters)


def arguments(module: type[nn.Module], phase: Phase) -> dict[str, Any]:
    """The arguments beside the inputs that a module's call takes: `phase`, `train`, both or neither."""
    given = {"phase": phase, "train": phase.train}
    return {name: given[name] for name in _accepted(module)}


def learner(
    module: nn.Module, loss: Loss | str = cross_entropy, starts: Start | str = "meta", lasts: tuple[str, ...] = LASTING
) -> FlaxLearner:
    """A learner of any Flax Linen module: `maml_jax.learner(MyNet())`.

    Args:
      module: its call is `(x)`, `(x, phase)` or `(x, train)`; see `FlaxLearner`.
      loss: a function of outputs and labels, or a key of `maml_jax.nn.loss.LOSSES`.
      starts: where an episode starts, or a key of `STARTS`: 'meta' learns all parameters, 'zero' starts those of
        'head/kernel' and 'head/bias' at zero.
      lasts: see `FlaxLearner`.

    Raises:
      ValueError: a name is unknown, or `module` is no Flax module.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"learner wants a Flax Linen module, such as MyNet(), got {module!r}")
    return FlaxLearner(module, _named(LOSSES, loss, "loss"), _named(STARTS, starts, "starts"), lasts)


def _named(table, value, what):
    if not isinstance(value, str):
        return value
    if value not in table:
        raise ValueError(f"{what}={value!r} must be one of {', '.join(table)}")
    return table[value]
