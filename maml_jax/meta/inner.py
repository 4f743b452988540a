"""The inner loop: adapting parameters to one task's support set."""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from maml_jax import tree
from maml_jax.nn.model import Model
from maml_jax.nn.norm import Pass
from maml_jax.tree import PyTree


class InnerLoop(NamedTuple):
    """What adapts in an episode, and by which rule.

    Attributes:
      optimizer: the update rule, any optax transformation; its state starts anew in every episode.
      is_adapted: whether the parameter of this name adapts; the others stay as they are, but are meta-learned all the
        same.
      first_order: treat the inner gradients as constants (FOMAML; Finn et al. 2017, section 5.2).
      checkpoint: recompute each step's activations in the backward pass, so that memory does not grow with the number
        of steps but for one copy of the adapted parameters each; the result is the same.
    """

    optimizer: optax.GradientTransformation
    is_adapted: Callable[[str], bool]
    first_order: bool = False
    checkpoint: bool = True


def adapt(
    model: Model,
    inner: InnerLoop,
    params: PyTree,
    stats: PyTree,
    support_x: jax.Array,
    support_y: jax.Array,
    steps: int,
    train: bool,
) -> tuple[PyTree, PyTree, jax.Array]:
    """Adapts to one task by gradient descent on its support loss.

    θ'₀ = θ;  θ'ₖ₊₁ = θ'ₖ − α ∇ L_support(θ'ₖ)   (Finn et al. 2017, equation 1), for the adapted part of θ and with the
    optimizer's rule in place of plain descent.

    Args:
      model: the classifier.
      inner: what adapts, and how.
      params: meta-parameters θ, differentiable.
      stats: the statistics of `global` layers.
      support_x: `[way * shot, height, width, channels]`.
      support_y: `[way * shot]` int32.
      steps: number of gradient steps, at least 0.
      train: meta-training; see `Model.apply`.

    Returns:
      The adapted parameters with their head, the statistics after the last support pass, and the support loss before
      each step, `[steps]`.
    """
    adapted, fixed = tree.partition(
        model.episode_params(params), lambda name: name != "head/temperature" and inner.is_adapted(name)
    )

    def support_loss(adapted, stats):
        logits, stats = model.apply(tree.merge(adapted, fixed), stats, support_x, Pass.SUPPORT, train)
        return cross_entropy(logits, support_y), stats

    def step(carry, _):
        adapted, stats, optimizer_state = carry
        (loss, stats), gradient = jax.value_and_grad(support_loss, has_aux=True)(adapted, stats)
        if inner.first_order:
            gradient = lax.stop_gradient(gradient)
        update, optimizer_state = inner.optimizer.update(gradient, optimizer_state, adapted)
        return (optax.apply_updates(adapted, update), stats, optimizer_state), loss

    if inner.checkpoint:
        step = jax.checkpoint(step, prevent_cse=False)  # a scan keeps its iterations apart by itself
    start = (adapted, model.episode_stats(stats), inner.optimizer.init(adapted))
    (adapted, stats, _), losses = lax.scan(step, start, length=steps)
    return tree.merge(adapted, fixed), stats, losses


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of logits `[..., way]` against int labels `[...]`."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def sgd(encoder_rate: float, head_rate: float, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """The default inner rule: SGD with one rate for the encoder and one for the head.

    g ← ∇L + λθ;  b ← g + μb;  θ ← θ − α b, with b = 0 at the start of an episode.

    Args:
      encoder_rate: α for 'encoder/...'.
      head_rate: α for 'head/...'.
      momentum: μ, in [0, 1).
      weight_decay: λ, on every adapted tensor.
    """

    def descend(updates, params):
        del params
        rate = {"encoder": encoder_rate, "head": head_rate}
        return tree.map_named(lambda name, g: -rate[name.split("/")[0]] * g, updates)

    return optax.chain(
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.trace(momentum) if momentum else optax.identity(),
        optax.stateless(descend),
    )


def all_but(fixed: str) -> Callable[[str], bool]:
    """Adapts every parameter in whose name the regular expression `fixed` is not found; '' fixes none."""
    return lambda name: not (fixed and re.search(fixed, name))


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of rows of logits `[batch, way]` whose largest entry is at the label `[batch]`."""
    return jnp.mean(jnp.argmax(logits, -1) == labels)
