"""The inner loop: adapting parameters to one task's support set."""

import functools
import math
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from maml_jax import tree
from maml_jax.meta.rates import LearnedRates, descend
from maml_jax.nn.model import Model
from maml_jax.nn.norm import Pass
from maml_jax.tree import PyTree


class InnerLoop(NamedTuple):
    """What adapts in an episode, and by which rule.

    Attributes:
      optimizer: the update rule, any optax transformation; its state starts anew in every episode. Learned rates come
        to it as the argument `rates`, which those of `sgd` and `descent` heed.
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
    """

    optimizer: optax.GradientTransformation
    is_adapted: Callable[[str], bool]
    first_order: bool = False
    checkpoint: Literal["none", "step", "nested"] = "step"
    forward_over_reverse: bool = False
    rates: LearnedRates | None = None


def split(model: Model, inner: InnerLoop, params: PyTree) -> tuple[PyTree, PyTree]:
    """Where an episode starts: the parameters that adapt, and those that do not, each with None for the rest."""
    return tree.partition(
        model.episode_params(params), lambda name: name != "head/temperature" and inner.is_adapted(name)
    )


def adapt(
    model: Model,
    inner: InnerLoop,
    params: PyTree,
    stats: PyTree,
    support_x: jax.Array,
    support_y: jax.Array,
    steps: int,
    train: bool,
    watch: Callable[[jax.Array, PyTree, PyTree, jax.Array], PyTree] = lambda loss, *_: loss,
) -> tuple[PyTree, PyTree, PyTree]:
    """Adapts to one task by gradient descent on its support loss.

    θ'₀ = θ;  θ'ₖ₊₁ = θ'ₖ − α ∇ L_support(θ'ₖ)   (Finn et al. 2017, equation 1), for the adapted part of θ and with the
    optimizer's rule in place of plain descent.

    Args:
      model: the classifier.
      inner: what adapts, and how.
      params: meta-parameters θ, and learned rates; differentiable.
      stats: the statistics of `global` layers.
      support_x: `[way * shot, height, width, channels]`.
      support_y: `[way * shot]` int32.
      steps: number of gradient steps, at least 0.
      train: meta-training; see `Model.apply`.
      watch: what to keep of step k, a function of the support loss before it, the parameters and the statistics after
        it, and k from 0.

    Returns:
      The adapted parameters with their head, the statistics after the last support pass, and what `watch` gave for each
      step: unless told otherwise the support losses, `[steps]`.
    """
    adapted, fixed = split(model, inner, params)
    optimizer = optax.with_extra_args_support(inner.optimizer)

    def support_loss(adapted, fixed, stats, k, x, y):
        logits, stats = model.apply(tree.merge(adapted, fixed), stats, x, Pass.SUPPORT, train, k)
        return model.loss(logits, y), stats

    differentiate = _by_forward_over_reverse if inner.forward_over_reverse else jax.value_and_grad
    loss_and_gradient = differentiate(support_loss, has_aux=True)

    def step(carry, _):
        adapted, stats, optimizer_state, k = carry
        (loss, stats), gradient = loss_and_gradient(adapted, fixed, stats, k, support_x, support_y)
        if inner.first_order:
            gradient = lax.stop_gradient(gradient)
        rates = inner.rates.at(params["rates"], k) if inner.rates else None
        update, optimizer_state = optimizer.update(gradient, optimizer_state, adapted, rates=rates)
        adapted = optax.apply_updates(adapted, update)
        return (adapted, stats, optimizer_state, k + 1), watch(loss, tree.merge(adapted, fixed), stats, k)

    start = (adapted, model.episode_stats(stats), optimizer.init(adapted), jnp.int32(0))
    (adapted, stats, *_), watched = _scan(step, start, steps, inner.checkpoint)
    return tree.merge(adapted, fixed), stats, watched


def _scan(step: Callable, carry: PyTree, length: int, checkpoint: str) -> tuple[PyTree, PyTree]:
    """`lax.scan` without inputs, checkpointed as `InnerLoop.checkpoint` says."""
    if checkpoint == "none":
        return lax.scan(step, carry, length=length)
    remat = functools.partial(jax.checkpoint, prevent_cse=False)  # a scan keeps its iterations apart by itself
    step = remat(step)
    if checkpoint == "step":
        return lax.scan(step, carry, length=length)
    size = max(math.isqrt(length), 1)
    chunks, left = divmod(length, size)
    carry, outputs = lax.scan(remat(lambda carry, _: lax.scan(step, carry, length=size)), carry, length=chunks)
    outputs = jax.tree.map(lambda o: o.reshape(-1, *o.shape[2:]), outputs)
    if not left:
        return carry, outputs
    carry, rest = lax.scan(step, carry, length=left)
    return carry, jax.tree.map(lambda o, r: jnp.concatenate([o, r]), outputs, rest)


def _by_forward_over_reverse(loss: Callable, has_aux: bool) -> Callable[..., tuple[Any, PyTree]]:
    """`jax.value_and_grad(loss)` whose own derivative is taken forward over reverse.

    With g(θ, φ) = ∂L/∂θ, the cotangents of θ and φ for a cotangent v of g are (∂²L/∂θ²) v and (∂²L/∂φ∂θ) v, which is
    the derivative of (∂L/∂θ, ∂L/∂φ) in the direction (v, 0). The loss and what comes beside it are not differentiated.

    Args:
      loss: (θ, φ, *constants) -> scalar, and more.
      has_aux: as in `jax.value_and_grad`.
    """

    @jax.custom_vjp
    def value_and_gradient(theta, phi, *constants):
        return jax.value_and_grad(loss, has_aux=has_aux)(theta, phi, *constants)

    def forward(theta, phi, *constants):
        return value_and_gradient(theta, phi, *constants), (theta, phi, constants)

    def backward(at, cotangents):
        theta, phi, constants = at
        both = jax.grad(loss, argnums=(0, 1), has_aux=has_aux)
        _, products = jax.jvp(lambda theta: both(theta, phi, *constants)[0], (theta,), (cotangents[1],))
        return *products, *(None for _ in constants)

    value_and_gradient.defvjp(forward, backward)
    return value_and_gradient


def sgd(encoder_rate: float, head_rate: float, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """The default inner rule: SGD with one rate for the encoder and one for the head.

    g ← ∇L + λθ;  b ← g + μb;  θ ← θ − α b, with b = 0 at the start of an episode.

    Args:
      encoder_rate: α for 'encoder/...'.
      head_rate: α for 'head/...'.
      momentum: μ, in [0, 1).
      weight_decay: λ, on every adapted tensor.
    """
    return descent(optax.trace(momentum) if momentum else optax.identity(), encoder_rate, head_rate, weight_decay)


def descent(
    direction: optax.GradientTransformation, encoder_rate: float, head_rate: float, weight_decay: float
) -> optax.GradientTransformation:
    """θ ← θ − α d(∇L + λθ) with any direction d, such as `optax.scale_by_adam` gives; learned rates α go before.

    The direction must be differentiable wherever gradients may vanish, as √v is not at v = 0: with Adam or RMSProp, put
    their ε under the root (`eps_root`, `eps_in_sqrt`).

    Args:
      direction: d.
      encoder_rate: α for 'encoder/...', unless learned.
      head_rate: α for 'head/...', unless learned.
      weight_decay: λ, on every adapted tensor.
    """
    given = {"encoder": encoder_rate, "head": head_rate}

    def update(updates, state, params=None, *, rates=None, **_):
        del params
        return descend(given if rates is None else rates, updates), state

    return optax.chain(
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        direction,
        optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update),
    )


def all_but(fixed: str) -> Callable[[str], bool]:
    """Adapts every parameter in whose name the regular expression `fixed` is not found; '' fixes none."""
    return lambda name: not (fixed and re.search(fixed, name))
