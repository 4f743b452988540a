"""CAVIA: context parameters start at zero, are all that adapts, and are not meta-learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax import tree
from maml_jax.config import check, default
from maml_jax.errors import ConfigError
from maml_jax.experiment.method import build_method
from maml_jax.meta.inner import InnerLoop, all_but, sgd
from maml_jax.meta.learner import Pass, Phase
from maml_jax.meta.outer import Maml
from maml_jax.nn.classifier import Classifier
from maml_jax.nn.context import ZeroContext
from maml_jax.nn.convnet import ConvNet
from maml_jax.nn.head import LinearHead
from maml_jax.nn.model import learner
from maml_jax.nn.starts import STARTS, Learned
from tests.helpers import assert_same, episodes, one_task
from tests.meta.test_outer import along, dot, gradient, random_like

pytestmark = pytest.mark.usefixtures("x64")

ALL_BUT_CONTEXT = "^(?!encoder/film/context$)"


def model(context=3, starts=None, **how):
    encoder = ConvNet(width=2, blocks=2, context=context, context_block=2, **how)
    return learner(Classifier(encoder, LinearHead(2)), starts=starts or ZeroContext(Learned()))


def cavia(steps=2, **how):
    return Maml(model(**how), InnerLoop(sgd(0.5), all_but(ALL_BUT_CONTEXT)), steps)


def start(method):
    params, stats = method.init(jax.random.key(0), one_task())
    return jax.tree.map(lambda p, d: p + 0.1 * d, params, random_like(params, 0)), stats


def test_only_the_context_adapts_and_it_starts_at_zero():
    method, task = cavia(), one_task()
    params, stats = start(method)
    assert "encoder/film/context" not in tree.names(params)
    end, _, _ = method.adapted(params, stats, task.support_x, task.support_y)
    after = tree.by_name(end)
    assert jnp.any(after.pop("encoder/film/context"))
    assert_same(after, tree.by_name(params), 0)
    end, _, _ = method.adapted(params, stats, task.support_x, task.support_y, steps=0)
    assert_same(end["encoder"]["film"]["context"], jnp.zeros(3), 0)


@pytest.mark.parametrize("others", STARTS.values(), ids=STARTS)
def test_what_it_says_of_classes_is_what_the_head_says(others):
    start = ZeroContext(others)
    assert (start.any_way, start.alike) == (others.any_way, others.alike)


def test_it_changes_nothing_before_it_is_learned():
    phase, x = Phase(Pass.SUPPORT, True), one_task().support_x
    with_context, without = model(starts=Learned()), model(context=0, starts=Learned())
    params, stats = with_context.init(jax.random.key(0), x)
    plain = {**params, "encoder": {n: p for n, p in params["encoder"].items() if n != "film"}}
    assert_same(with_context.apply(params, stats, x, phase)[0], without.apply(plain, stats, x, phase)[0])


def test_channels_are_scaled_and_shifted_between_pooling_and_relu():
    """In the last block, whose features are seen; also where a scale is negative."""
    phase, x = Phase(Pass.SUPPORT, True), one_task().support_x
    with_context, without = model(starts=Learned()), model(context=0, starts=Learned())
    params, stats = with_context.init(jax.random.key(0), x)
    film = params["encoder"].pop("film")
    shifted = jax.tree.map(lambda p: p, params)
    shifted["encoder"]["block2"]["norm"]["bias"] += 100.0  # no entry is cut off, so that what was before ReLU is seen
    entries = without.features(shifted, stats, x, phase)[0] - 100.0
    film = {name: jnp.asarray(np.random.default_rng(0).standard_normal(leaf.shape)) for name, leaf in film.items()}
    film["scale"] = film["scale"].at[0].set(-3.0)
    change = film["context"] @ film["kernel"]
    scale, shift = film["scale"] + change[:2], film["shift"] + change[2:]
    assert scale[0] < 0
    expected = jax.nn.relu(entries.reshape(len(x), -1, 2) * scale + shift).reshape(len(x), -1)
    params["encoder"]["film"] = film
    assert_same(with_context.features(params, stats, x, phase)[0], expected, 1e-10)


def test_everything_else_is_meta_learned():
    method, tasks = cavia(steps=3), episodes()
    params, stats = start(method)
    grads, _ = gradient(method, params, stats, tasks)
    assert all(jnp.any(g) for name, g in tree.by_name(grads).items() if "conv/bias" not in name)
    direction = random_like(params, 1)
    np.testing.assert_allclose(dot(grads, direction), along(method, params, stats, tasks, direction), rtol=1e-5)


def test_as_a_configuration():
    """With any start of the head; the options are checked."""
    config = default()
    config.model.options, config.inner.fixed = "context=7, blocks=3", ALL_BUT_CONTEXT
    check(config)
    shapes = jax.eval_shape(lambda: build_method(config, 2).learner.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1))))
    assert tree.by_name(shapes[0])["encoder/film/kernel"].shape == (7, 64)
    config.model.options = "context=7, blocks=2"
    with pytest.raises(ConfigError, match="context_block=3 is none of the 2 blocks"):
        build_method(config, 2)
