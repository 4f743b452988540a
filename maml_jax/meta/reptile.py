"""Reptile: learning from where adaptation leads, without a derivative of it."""

import dataclasses

import jax

from maml_jax import tree
from maml_jax.episode import Episode
from maml_jax.meta.inner import adapt
from maml_jax.meta.method import ByInnerLoop, TaskResult, accuracy, keys_of, query_pass
from maml_jax.tree import PyTree


@dataclasses.dataclass(frozen=True)
class Reptile(ByInnerLoop):
    """Reptile (Nichol, Achiam & Schulman 2018, arXiv:1803.02999): θ ← θ + ε (θ'ₖ − θ), averaged over tasks.

    θ − θ'ₖ stands for the gradient of a task, and ε is the rate of the outer optimiser; the paper takes plain SGD or
    Adam. It learns from support sets only: query sets say how well it does. So in training, give more shots than at
    test, as the paper does.

    Attributes:
      learner: the model.
      inner: what adapts, and how.
      steps: inner steps in training, of which there should be several: with one, this is joint training.

    Raises:
      ValueError: something of the inner loop's rule is to be learned.
    """

    def __post_init__(self):
        if self.inner.learned:
            raise ValueError(f"Reptile takes no derivative by which {', '.join(self.inner.learned)} could be learned")

    def task_gradient(
        self, params: PyTree, stats: PyTree, episode: Episode, step: jax.Array
    ) -> tuple[PyTree, TaskResult]:
        """θ − θ'ₖ; see `Method.task_gradient`."""
        del step
        support_key, query_key = keys_of(episode)
        support = episode.support_x, episode.support_y
        adapted, stats, losses = adapt(
            self.learner, self.inner, params, stats, *support, self.steps, train=True, key=support_key
        )
        moved = tree.by_name(adapted)
        gradient = tree.map_named(lambda name, start: start - moved[name], params)
        loss, logits, stats = query_pass(self.learner, adapted, stats, episode, self.steps - 1, True, query_key)
        return gradient, TaskResult(loss, accuracy(logits, episode.query_y), logits, stats, losses)
