"""The inner loop: adapting parameters to one task's support set."""

import dataclasses
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax

from maml_jax import tree
from maml_jax.derivatives import CHECKPOINTS, Checkpoint, by_forward_over_reverse, scan
from maml_jax.meta.learner import Learner, Pass, Phase
from maml_jax.meta.precondition import Curvature
from maml_jax.meta.rates import LearnedRates, Rates, descend
from maml_jax.tree import PyTree

Watch = Callable[[jax.Array, PyTree, PyTree, jax.Array], PyTree]
"""What to keep of inner step k: a function of the support loss before it, the parameters and the statistics after it,
and k from 0."""


def all_but(fixed: str) -> Callable[[str], bool]:
    """Adapts every parameter in whose name the regular expression `fixed` is not found; '' fixes none."""
    return lambda name: not (fixed and re.search(fixed, name))


EVERYTHING = all_but("")


@dataclasses.dataclass(frozen=True)
class InnerLoop:
    """What adapts in an episode, and by which rule.

    Attributes:
      optimizer: the update rule, any optax transformation; its state starts anew in every episode. It must be
        differentiable wherever gradients may vanish, as `optax.adam` is with `eps_root` only. Learned rates come to it
        as the argument `rates`, which those of `sgd` and `descent` heed.
      is_adapted: whether the parameter of this name adapts; the others stay as they are, but are meta-learned all the
        same.
      first_order: treat the inner gradients as constants (FOMAML; Finn et al. 2017, section 5.2).
      checkpoint: what the backward pass recomputes; the result is the same. 'step': each step's activations, so that
        memory does not grow with the number of steps N but for one copy of the adapted parameters each. 'nested': also
        the parameters, from one copy every √N steps, for about 2√N copies and one more forward pass. 'none': nothing.
      forward_over_reverse: take the Hessian-vector products of the meta-gradient by forward-mode differentiation of the
        inner gradient (Kemaev et al. 2025, arXiv:2505.00793); the result is the same. The other way, reverse over
        reverse, keeps more intermediate results, which weighs in deep encoders.
      rates: the inner rates that are meta-learned, if any.
      precondition: the linear map of inner gradients that is meta-learned, if any.
      proximal: λ of a term λ/2 ‖θ' − θ‖² beside the support loss, which holds an episode near its start; 0: none.

    Raises:
      ValueError: `checkpoint` is none of `CHECKPOINTS`.
    """

    optimizer: optax.GradientTransformation
    is_adapted: Callable[[str], bool] = EVERYTHING
    first_order: bool = False
    checkpoint: Checkpoint = "step"
    forward_over_reverse: bool = False
    rates: LearnedRates | None = None
    precondition: Curvature | None = None
    proximal: float = 0.0

    def __post_init__(self):
        if self.checkpoint not in CHECKPOINTS:
            raise ValueError(f"checkpoint={self.checkpoint!r} must be one of {', '.join(CHECKPOINTS)}")

    @property
    def learned(self) -> dict[str, LearnedRates | Curvature]:
        """What of the rule is meta-learned, by its name in the dict of meta-parameters, beside the model's parts."""
        parts = {"rates": self.rates, "precondition": self.precondition}
        return {name: part for name, part in parts.items() if part is not None}

    def start(
        self, learner: Learner, params: PyTree, stats: PyTree, support_x: jax.Array, support_y: jax.Array
    ) -> tuple[PyTree, PyTree, PyTree]:
        """Where an episode starts.

        Returns:
          The parameters that adapt and those that do not, each with None for the rest, and the statistics.
        """
        if self.learned:
            params = {name: part for name, part in params.items() if name not in self.learned}
        params, stats = learner.start(params, stats, support_x, support_y)
        return *tree.partition(params, self.is_adapted), stats


def adapt(
    learner: Learner,
    inner: InnerLoop,
    params: PyTree,
    stats: PyTree,
    support_x: jax.Array,
    support_y: jax.Array,
    steps: int,
    train: bool = False,
    watch: Watch = lambda loss, *_: loss,
    key: jax.Array | None = None,
) -> tuple[PyTree, PyTree, PyTree]:
    """Adapts to one task by gradient descent on its support loss.

    θ'₀ = θ;  θ'ₖ₊₁ = θ'ₖ − α P (∇ L_support(θ'ₖ) + λ (θ'ₖ − θ))   (Finn et al. 2017, equation 1: P = 1 and λ = 0),
    for the adapted part of θ and with the optimizer's rule in place of plain descent.

    Args:
      learner: the model.
      inner: what adapts, and how.
      params: meta-parameters θ, and what of the inner rule is learned; differentiable.
      stats: the statistics that outlive an episode.
      support_x: `[batch, ...]`; for images `[way * shot, height, width, channels]`, any number of each class.
      support_y: `[batch]` int32 labels, or `[batch, ...]` targets.
      steps: number of gradient steps, at least 0.
      train: meta-training, see `Phase`.
      watch: what to keep of each step; unless told otherwise the support losses, `[steps]`.
      key: a random key for networks that draw, as with dropout.

    Returns:
      The adapted parameters with their head, the statistics after the last support pass, and what `watch` gave.
    """
    first, fixed, stats = inner.start(learner, params, stats, support_x, support_y)
    optimizer = optax.with_extra_args_support(inner.optimizer)

    def support_loss(adapted, fixed, stats, k, key, x, y):
        phase = Phase(Pass.SUPPORT, train, k, key)
        outputs, stats = learner.apply(tree.merge(adapted, fixed), stats, x, phase)
        return learner.loss(outputs, y), stats

    differentiate = by_forward_over_reverse if inner.forward_over_reverse else jax.value_and_grad
    loss_and_gradient = differentiate(support_loss, has_aux=True)

    def step(carry, _):
        adapted, stats, optimizer_state, k = carry
        key_k = None if key is None else jax.random.fold_in(key, k)
        (loss, stats), gradient = loss_and_gradient(adapted, fixed, stats, k, key_k, support_x, support_y)
        gradient = lax.stop_gradient(gradient) if inner.first_order else gradient
        if inner.proximal:
            gradient = jax.tree.map(lambda g, at, start: g + inner.proximal * (at - start), gradient, adapted, first)
        if inner.precondition:
            gradient = inner.precondition.apply(params["precondition"], gradient)
        rates = inner.rates.at(params["rates"], k) if inner.rates else None
        update, optimizer_state = optimizer.update(gradient, optimizer_state, adapted, rates=rates)
        adapted = optax.apply_updates(adapted, update)
        return (adapted, stats, optimizer_state, k + 1), watch(loss, tree.merge(adapted, fixed), stats, k)

    begin = first, stats, optimizer.init(first), jnp.int32(0)
    (adapted, stats, *_), watched = scan(step, begin, steps, inner.checkpoint)
    return tree.merge(adapted, fixed), stats, watched


def sgd(rates: Rates, momentum: float = 0.0, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """The default inner rule: SGD.

    g ← ∇L + λθ;  b ← g + μb;  θ ← θ − α b, with b = 0 at the start of an episode.

    Args:
      rates: α, a number, or a tree such as `{"encoder": 0.01, "head": 0.1}`; learned rates go before.
      momentum: μ, in [0, 1).
      weight_decay: λ, on every adapted tensor.
    """
    return descent(optax.trace(momentum) if momentum else optax.identity(), rates, weight_decay)


def descent(
    direction: optax.GradientTransformation, rates: Rates, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """θ ← θ − α d(∇L + λθ) with any direction d, such as `optax.scale_by_adam` gives.

    The direction must be differentiable wherever gradients may vanish, as √v is not at v = 0: with Adam or RMSProp, put
    their ε under the root (`eps_root`, `eps_in_sqrt`).

    Args:
      direction: d.
      rates: α, a number or a tree of numbers; learned rates go before.
      weight_decay: λ, on every adapted tensor.
    """
    given = rates

    def update(updates, state, params=None, *, rates=None, **_):
        del params
        return descend(given if rates is None else rates, updates), state

    return optax.chain(
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        direction,
        optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update),
    )
