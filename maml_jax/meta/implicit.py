"""iMAML: the meta-gradient at the end of the inner loop, without a derivative through it."""

import dataclasses

import jax
import jax.numpy as jnp

from maml_jax import tree
from maml_jax.episode import Episode
from maml_jax.meta.inner import adapt
from maml_jax.meta.learner import Pass, Phase
from maml_jax.meta.method import ByInnerLoop, TaskResult, accuracy, keys_of, query_pass
from maml_jax.solve import conjugate_gradients
from maml_jax.tree import PyTree


@dataclasses.dataclass(frozen=True)
class ImplicitMaml(ByInnerLoop):
    """Implicit MAML (Rajeswaran et al. 2019, arXiv:1909.04630).

    Let θ be the part of the meta-parameters that adapts, and ψ that which does not. Adaptation goes towards

        φ = argmin L_support(φ, ψ) + λ/2 ‖φ − θ‖²,   where   ∇_φ L_support(φ, ψ) + λ (φ − θ) = 0.

    The derivative of this condition gives those of φ. With H = ∂²L_support/∂φ² and u = (I + H/λ)⁻¹ ∂L_query/∂φ,

        dL_query/dθ = u                                               (equation 6 there)
        dL_query/dψ = ∂L_query/∂ψ − (∂²L_support/∂ψ∂φ) u / λ.

    u comes of conjugate gradients. Nothing of the inner steps is kept: memory does not depend on their number. How near
    this is to the derivative depends on how near they come to φ, of which λ and enough of them must take care; the
    optimiser of the inner loop may be any that ends where this gradient vanishes, so without weight decay.

    Attributes:
      learner: the model.
      inner: what adapts, and how; its `proximal` is λ.
      steps: inner steps in training.
      cg_steps: of conjugate gradients, each with one product of H; 0: one product, and u = ∂L_query/∂φ.

    Raises:
      ValueError: λ is not positive, or something of the inner loop's rule is to be learned.
    """

    cg_steps: int = 5

    def __post_init__(self):
        if self.inner.proximal <= 0:
            raise ValueError(f"iMAML needs InnerLoop(proximal=λ) with λ > 0, got {self.inner.proximal}")
        if self.inner.learned:
            raise ValueError(f"where the inner loop ends does not depend on {', '.join(self.inner.learned)}")

    def task_gradient(
        self, params: PyTree, stats: PyTree, episode: Episode, step: jax.Array
    ) -> tuple[PyTree, TaskResult]:
        """dL_query/dθ and dL_query/dψ; see `Method.task_gradient`."""
        del step
        learner, inner, strength = self.learner, self.inner, self.inner.proximal
        support, (support_key, query_key) = (episode.support_x, episode.support_y), keys_of(episode)
        (_, fixed), to_params = jax.vjp(lambda params: inner.start(learner, params, stats, *support)[:2], params)
        end, stats, losses = adapt(learner, inner, params, stats, *support, self.steps, train=True, key=support_key)
        adapted, _ = tree.partition(end, inner.is_adapted)
        last = max(self.steps - 1, 0)
        key = None if support_key is None else jax.random.fold_in(support_key, last)

        def support_loss(adapted, fixed):
            outputs, _ = learner.apply(
                tree.merge(adapted, fixed), stats, support[0], Phase(Pass.SUPPORT, True, last, key)
            )
            return learner.loss(outputs, support[1])

        def query_loss(adapted, fixed):
            both = tree.merge(adapted, fixed)
            loss, *rest = query_pass(learner, both, stats, episode, self.steps - 1, True, query_key)
            return loss, rest

        def products(u):
            """H u / λ and (∂²L_support/∂ψ∂φ) u / λ."""
            gradients = jax.grad(support_loss, (0, 1))
            _, of_both = jax.jvp(lambda adapted: gradients(adapted, fixed), (adapted,), (u,))
            return jax.tree.map(lambda p: p / strength, of_both)

        (loss, (logits, stats_after)), (by_adapted, by_fixed) = jax.value_and_grad(query_loss, (0, 1), has_aux=True)(
            adapted, fixed
        )
        u = conjugate_gradients(lambda u: jax.tree.map(jnp.add, u, products(u)[0]), by_adapted, self.cg_steps)
        (gradient,) = to_params((u, jax.tree.map(jnp.subtract, by_fixed, products(u)[1])))
        return gradient, TaskResult(loss, accuracy(logits, episode.query_y), logits, stats_after, losses)
