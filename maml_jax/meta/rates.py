"""Inner learning rates: given, or meta-learned beside the parameters."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from maml_jax import tree
from maml_jax.tree import PyTree

Kind = Literal["group", "tensor", "element"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Rates = float | PyTree
"""A number for all parameters, or a tree of numbers, each of which holds for all that stands at its place."""


class LearnedRates(NamedTuple):
    """Which inner rates are meta-learned, and where they start.

    They stand beside the meta-parameters, as `params['rates']`, in a tree whose leaves each hold for the whole subtree
    of parameters at their place: 'rates/encoder', or 'rates/encoder/block1/conv/kernel'. Only what adapts has a rate.

    As in the papers, a rate may become negative, unless `positive` is set.

    Attributes:
      kind: one rate for each 'group', which is an entry of `initial`, for each 'tensor', or for each 'element'
        (Meta-SGD; Li et al. 2017, arXiv:1707.09835).
      initial: where the rates start.
      steps: so many sets of rates, one for each inner step (with 'tensor', LSLR; Antoniou et al. 2018,
        arXiv:1810.09502), which get a leading `steps` axis; 0: one set for all of them.
      positive: what is learned is log α, and α > 0.
    """

    kind: Kind
    initial: Rates
    steps: int = 0
    positive: bool = False

    def init(self, adapted: PyTree) -> PyTree:
        """The rates at the start of meta-training, for the adapted parameters (None in place of the others).

        Raises:
          ValueError: `kind` is none of `KINDS`, or `initial` does not fit the parameters.
        """
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} must be one of {', '.join(KINDS)}")

        def fill(start, leaf):
            shape = (*([self.steps] if self.steps else []), *(leaf.shape if self.kind == "element" else ()))
            rate = jnp.full(shape, start, leaf.dtype)
            return jnp.log(rate) if self.positive else rate

        def of_group(start, part):
            leaves = jax.tree.leaves(part)
            if self.kind == "group" and leaves:  # any leaf stands for its group
                return fill(start, leaves[0])
            return jax.tree.map(lambda leaf: fill(start, leaf), part)

        return tree.map_prefix(of_group, self.initial, adapted)

    def at(self, rates: PyTree, step: jax.Array) -> PyTree:
        """The rates α of inner step `step`; beyond the last one trained, those of the last are used again."""
        if self.steps:
            rates = jax.tree.map(lambda r: r[jnp.minimum(step, self.steps - 1)], rates)
        return jax.tree.map(jnp.exp, rates) if self.positive else rates


def descend(rates: Rates, updates: PyTree) -> PyTree:
    """-α u for each update u, α being the rate at u's place or above it."""
    return tree.map_prefix(lambda rate, part: jax.tree.map(lambda u: -rate * u, part), rates, updates)
