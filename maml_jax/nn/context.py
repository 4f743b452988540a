"""Context parameters, which in CAVIA are all that adapts to a task (Zintgraf et al. 2019, arXiv:1810.03642)."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from maml_jax.nn.starts import Start
from maml_jax.tree import PyTree


class Film(nn.Module):
    """A scale γ and a shift β of each channel that depend on context parameters (section 3.3; Perez et al. 2017).

    (γ, β) = W φ + b. The context φ starts at zero in every episode, so that there γ and β are b, which starts at 1 and
    0: before meta-training the layer changes nothing.

    Attributes:
      context: how many context parameters, the entries of φ.
      channels: how many channels.
    """

    context: int
    channels: int

    @nn.compact
    def __call__(self, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
        """γ and β, each `[channels]`, from parameters of the given type."""
        phi = self.param("context", nn.initializers.zeros, (self.context,), dtype)
        init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")  # as in the paper's code
        kernel = self.param("kernel", init, (self.context, 2 * self.channels), dtype)
        scale = self.param("scale", nn.initializers.ones, (self.channels,), dtype)
        shift = self.param("shift", nn.initializers.zeros, (self.channels,), dtype)
        change = phi @ kernel
        return scale + change[: self.channels], shift + change[self.channels :]


@dataclasses.dataclass(frozen=True)
class ZeroContext:
    """A `Start`: context parameters, if there are any, start every episode at zero and are not meta-learned.

    Attributes:
      others: the start of all other parameters.
      pattern: a regular expression, found in the names of context parameters.
    """

    others: Start
    pattern: str = r"(^|/)film/context$"

    def kept(self, params: PyTree) -> PyTree:
        """See `Start`."""
        named = flatten_dict(self.others.kept(params), sep="/")
        return unflatten_dict({n: p for n, p in named.items() if not re.search(self.pattern, n)}, sep="/")

    @property
    def any_way(self) -> bool:
        """See `Start`."""
        return self.others.any_way

    @property
    def alike(self) -> bool:
        """See `Start`."""
        return self.others.alike

    def complete(self, learner, params, stats, shapes, support_x, support_y) -> PyTree:
        """See `Start`."""
        named = flatten_dict(shapes, sep="/")
        zeros = {n: jnp.zeros(s.shape, s.dtype) for n, s in named.items() if re.search(self.pattern, n)}
        params = unflatten_dict({**flatten_dict(params, sep="/"), **zeros}, sep="/")
        return self.others.complete(learner, params, stats, shapes, support_x, support_y)
