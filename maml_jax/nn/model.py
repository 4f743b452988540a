"""Any Flax module as a learner: pure functions of parameters and statistics."""

import dataclasses
import functools
import inspect
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp

from maml_jax.meta.learner import Pass, Phase
from maml_jax.nn.loss import LOSSES, Loss, cross_entropy
from maml_jax.nn.starts import STARTS, Start
from maml_jax.tree import PyTree

LASTING = ("lasting_stats",)
"""Collections of variables that outlive an episode, of the layers of `maml_jax.nn`."""


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
    starts: Start = STARTS["meta"]
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
        wanted = shapes.pop("params", {})
        if not set(shapes) <= set(self.lasts):
            fresh = self._variables(key, support_x)  # all but the initial statistics is dead code
            stats = {name: stats[name] if name in self.lasts else fresh[name] for name in shapes}
        return self.starts.complete(self, params, stats, wanted, support_x, support_y), stats

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
      starts: where an episode starts, or a key of `STARTS`: 'meta' learns all parameters; the others start
        'head/kernel' and 'head/bias' at 'zero', at one 'shared' class vector or at the 'prototypes' of the support set.
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
