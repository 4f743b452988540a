"""Inner learning rates as meta-parameters."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from maml_jax import tree
from maml_jax.tree import PyTree

KINDS = ("group", "tensor", "element")


class LearnedRates(NamedTuple):
    """Which inner rates are meta-learned, and where they start.

    They stand beside the parameters θ, as `params['rates']`, in a tree whose leaves each hold for the whole subtree of
    θ at their place: 'rates/encoder', or 'rates/encoder/block1/conv/kernel'. Only what adapts has a rate.

    As in the papers, a rate may become negative, unless `positive` is set.

    Attributes:
      kind: one rate for each 'group' ('encoder', 'head'), for each 'tensor', or for each 'element' (Meta-SGD; Li et al.
        2017, arXiv:1707.09835).
      encoder: initial rate of the encoder.
      head: initial rate of the head.
      steps: so many sets of rates, one for each inner step (with 'tensor', LSLR; Antoniou et al. 2018,
        arXiv:1810.09502), which get a leading `steps` axis; 0: one set for all of them.
      positive: what is learned is log α, and α > 0.
    """

    kind: Literal["group", "tensor", "element"]
    encoder: float
    head: float
    steps: int = 0
    positive: bool = False

    def init(self, adapted: PyTree) -> PyTree:
        """The rates at the start of meta-training, for the adapted parameters (None in place of the others)."""

        def fill(name, leaf):
            start = self.encoder if name.startswith("encoder") else self.head
            shape = (*([self.steps] if self.steps else []), *(leaf.shape if self.kind == "element" else ()))
            rate = jnp.full(shape, start, leaf.dtype)
            return jnp.log(rate) if self.positive else rate

        if self.kind == "group":  # any leaf stands for its group
            adapted = {group: next(iter(jax.tree.leaves(part)), part) for group, part in adapted.items()}
        return tree.map_named(fill, adapted)

    def at(self, rates: PyTree, step: jax.Array) -> PyTree:
        """The rates α of inner step `step`; beyond the last one trained, those of the last are used again."""
        if self.steps:
            rates = jax.tree.map(lambda r: r[jnp.minimum(step, self.steps - 1)], rates)
        return jax.tree.map(jnp.exp, rates) if self.positive else rates


def descend(rates: PyTree, updates: PyTree) -> PyTree:
    """-α u for each update u, α being the rate at u's place or above it."""
    return jax.tree.map(lambda rate, part: jax.tree.map(lambda u: -rate * u, part), rates, updates)
