"""Deliberately wrong parts, each put in the place of a right one: a function of a `Port` to another.

No name of the library is patched. What is wrong is a part of one's own, given where any user could give theirs: a
normalisation, a learner, an inner rule, a method, or parameters in another layout.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from maml_jax import tree
from maml_jax.meta.learner import Pass
from maml_jax.meta.outer import Maml, task_loss
from maml_jax.nn.model import FlaxLearner
from maml_jax.nn.moments import ImageMoments
from maml_jax.nn.norm import BatchNorm, Normalization
from maml_jax.nn.starts import Zero

replace = dataclasses.replace


def of_class(kind, right, **more):
    """A dataclass of another kind with the same fields, as far as it has them."""
    same = {field.name: getattr(right, field.name) for field in dataclasses.fields(kind) if hasattr(right, field.name)}
    return kind(**same | more)


def both(port, change):
    """Changes the method, in training and in evaluation."""
    return replace(port, method=change(port.method), tested=change(port.tested))


def learner(port, change):
    return both(port, lambda method: replace(method, learner=change(method.learner)))


# Normalisation


@dataclasses.dataclass(frozen=True)
class OwnNorm(Normalization):
    """The same modes, in layers of one's own."""

    make: Callable[..., BatchNorm] = BatchNorm
    how: tuple[tuple[str, Any], ...] = ()

    def layer(self, path):
        return self.make(self.mode("/".join(path)), self.steps, name=path[-1], **dict(self.how))


def norm(port, make=BatchNorm, **how):
    """Puts other layers in the places of `BatchNorm`."""

    def change(learner):
        classifier = learner.module
        policy = of_class(OwnNorm, classifier.encoder.norm, make=make, how=tuple(how.items()))
        return replace(learner, module=classifier.clone(encoder=classifier.encoder.clone(norm=policy)))

    return learner(port, change)


def endless(like):
    """Shapes with so many pixels that n / (n - 1) is 1."""
    images, height, *rest = like.shape
    return jax.ShapeDtypeStruct((images, height * 10**15, *rest), like.dtype)


class BiasedRunning(BatchNorm):
    def affine(self, like, moments, phase, offset=None):
        return super().affine(endless(like), moments, phase, offset)


class UnbiasedBatch(BatchNorm):
    def affine(self, like, moments, phase, offset=None):
        count = like.shape[0] * like.shape[1] * like.shape[2]
        more, (mean, _) = count / (count - 1), moments.batch
        moments = ImageMoments(mean + more**0.5 * (moments.mean - mean), more * moments.var)
        return super().affine(endless(like), moments, phase, offset)


class GradientThroughRunning(BatchNorm):
    def affine(self, like, moments, phase, offset=None):
        affine = super().affine(like, moments, phase, offset)
        if phase.which is not Pass.SUPPORT or self.is_initializing():
            return affine
        collection = "lasting_stats" if self.mode == "global" else "batch_stats"
        for name, batch in zip(("mean", "var"), moments.batch, strict=True):
            leak = 0.1 * (batch - lax.stop_gradient(batch))  # nothing but a gradient
            self.put_variable(collection, name, self.get_variable(collection, name) + leak)
        return affine


def biased_running_variance(port):
    return norm(port, BiasedRunning)


def unbiased_batch_variance(port):
    return norm(port, UnbiasedBatch)


def another_epsilon(port):
    return norm(port, epsilon=1e-3)


def running_statistics_move_by_nine_tenths(port):
    return norm(port, momentum=0.9)


def gradient_through_running_statistics(port):
    return norm(port, GradientThroughRunning)


def running_statistics_never_move(port):
    return norm(port, momentum=0.0)


# Passes and statistics


@dataclasses.dataclass(frozen=True)
class OwnLearner(FlaxLearner):
    """A learner that sees other phases, or other statistics, than it should."""

    phase: Callable = lambda phase: phase
    last: Callable = lambda stats: stats
    first: Callable = lambda stats: stats

    def apply(self, params, stats, x, phase):
        return super().apply(params, stats, x, self.phase(phase))

    def lasting(self, stats):
        return self.last(super().lasting(stats))

    def start(self, params, stats, support_x, support_y):
        return super().start(params, self.first(stats), support_x, support_y)


def own_learner(port, **how):
    return learner(port, lambda right: of_class(OwnLearner, right, **how))


def query_normalised_by_its_own_batch(port):
    return own_learner(port, phase=lambda phase: phase._replace(which=Pass.SUPPORT))


def evaluation_by_batch_moments_in_global_layers(port):
    return own_learner(port, phase=lambda phase: phase._replace(train=True))


def training_by_running_statistics_in_global_layers(port):
    return own_learner(port, phase=lambda phase: phase._replace(train=False))


def episodic_statistics_never_reset(port):
    port = learner(port, lambda right: replace(right, lasts=("lasting_stats", "batch_stats")))
    image = jax.ShapeDtypeStruct((1, port.case.image_size, port.case.image_size, 3), port.case.dtype)
    _, stats = port.method.learner.init(jax.random.key(0), jnp.zeros(image.shape, image.dtype))
    return replace(port, stats=stats)


def global_statistics_of_the_last_episode(port):
    last = lambda leaf: leaf[-1:] if leaf.ndim > 1 else leaf  # noqa: E731
    return own_learner(port, last=lambda stats: jax.tree.map(last, stats))


def global_statistics_start_anew_at_each_step(port):
    fresh = lambda stats: tree.map_named(lambda n, x: jnp.full_like(x, n.endswith("var")), stats)  # noqa: E731
    return own_learner(port, first=fresh)


# Methods and starts


def one_step_more(port):
    return both(port, lambda method: replace(method, steps=method.steps + 1))


class Ones(Zero):
    def complete(self, learner, params, stats, shapes, support_x, support_y):
        given = tree.by_name(params)
        return tree.map_named(lambda n, s: given[n] if n in given else jnp.ones(s.shape, s.dtype), shapes)


def head_of_ones_instead_of_zeros(port):
    return replace(port, tested=replace(port.tested, learner=replace(port.tested.learner, starts=Ones())))


class Summed(Maml):
    """Each task's gradient so many times as large as there are tasks."""

    tasks = 2

    def task_gradient(self, *arguments):
        gradient, result = super().task_gradient(*arguments)
        return jax.tree.map(lambda g: g * self.tasks, gradient), result


def meta_gradient_summed_over_tasks(port):
    assert port.case.n_episode == Summed.tasks
    return replace(port, method=of_class(Summed, port.method))


# No mutations: they leave out what is not looked at, which takes most of the time.


class Forward(Maml):
    """The right results, and no gradient."""

    def task_gradient(self, params, stats, episode, step):
        _, result = task_loss(self.learner, self.inner, params, stats, episode, self.steps)
        return jax.tree.map(jnp.zeros_like, params), result


class Silent(FlaxLearner):
    """Computes nothing."""

    def start(self, params, stats, support_x, support_y):
        return params, stats

    def apply(self, params, stats, x, phase):
        return params["head"]["bias"] * jnp.zeros((len(x), 1)), stats


def without_gradient(port):
    return replace(port, method=of_class(Forward, port.method))


def without_evaluation(port):
    return replace(port, tested=replace(port.tested, learner=of_class(Silent, port.tested.learner)))


# Layouts


def parameters(port, change):
    return replace(port, params=change(port.params), tested_params=change(port.tested_params))


def head_layout_not_permuted(port):
    kernel = jnp.asarray(port.case.params["classifier.linear.weight"].T)
    return parameters(port, lambda params: {**params, "head": {**params["head"], "kernel": kernel}})


def kernels_mirrored(port):
    flip = lambda leaf: leaf[::-1] if leaf.ndim == 4 else leaf  # noqa: E731
    return parameters(port, lambda params: jax.tree.map(flip, params))
