"""Encoder and head together: temperature, precision, and batches in pieces."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax.meta.learner import Pass, Phase
from maml_jax.nn.classifier import Classifier
from maml_jax.nn.convnet import ConvNet
from maml_jax.nn.encoders import encoder
from maml_jax.nn.head import LinearHead
from maml_jax.nn.norm import Normalization
from tests.helpers import assert_same

SUPPORT, QUERY = Phase(Pass.SUPPORT, True), Phase(Pass.QUERY, True)


def images(count=6, side=16, channels=3):
    dtype = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
    return jnp.asarray(np.random.default_rng(0).random((count, side, side, channels)), dtype)


def started(net, x):
    """Fresh parameters, and statistics by collection."""
    variables = jax.jit(lambda x: net.init(jax.random.key(0), x, SUPPORT))(x)
    return variables.pop("params"), variables


@pytest.mark.parametrize("learned", [False, True])
def test_temperature_scales_the_logits(learned):
    features = jnp.asarray(np.random.default_rng(0).random((3, 4)), jnp.float32)
    plain, hot = LinearHead(2), LinearHead(2, 3, learned)
    params = hot.init(jax.random.key(0), features)["params"]
    assert ("temperature" in params) == learned
    without = {name: leaf for name, leaf in params.items() if name != "temperature"}
    expected = 3 * plain.apply({"params": without}, features)
    np.testing.assert_allclose(hot.apply({"params": params}, features), expected, rtol=1e-6)


@pytest.mark.parametrize("norm", ["batch", "episodic"])
def test_half_precision_keeps_parameters_and_statistics_whole(norm):
    x = images()
    whole, half = (Classifier(ConvNet(4, norm=norm), LinearHead(3), half=half) for half in (False, True))
    params, stats = started(half, x)
    assert_same(params, started(whole, x)[0], 0)

    def loss(params, net):
        logits, after = net.apply({"params": params, **stats}, x, SUPPORT, mutable=list(stats))
        return jnp.sum(jnp.tanh(logits)), (logits, after)

    grads, (logits, after) = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(params, half)
    exact, (exact_logits, _) = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(params, whole)
    assert {leaf.dtype for leaf in jax.tree.leaves((grads, logits, after))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(logits, exact_logits, atol=0.1)
    assert not np.allclose(logits, exact_logits, atol=1e-6)
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])  # noqa: E731
    cosine = flat(grads) @ flat(exact) / np.linalg.norm(flat(grads)) / np.linalg.norm(flat(exact))
    assert cosine > 0.95


@pytest.mark.parametrize(
    ("name", "width", "norm", "loops"),
    [
        ("convnet4", 8, "batch", 2),  # the first two blocks
        ("convnet4", 8, "tasknorm", 2),
        ("convnet4", 8, "per_step", 2),
        ("convnet4", 4, "episodic", 5),  # all that convolutions of so few channels give is made again
        pytest.param("resnet12", 4, "per_step", 3, marks=pytest.mark.slow),
        pytest.param("resnet12", 8, "episodic", 3, marks=pytest.mark.slow),
        pytest.param("resnet18", 4, "episodic", 3, marks=pytest.mark.slow),
    ],
)
def test_pieces_change_nothing(name, width, norm, loops, x64):
    x, policy = images(), Normalization.parse(norm, steps=3)
    body = encoder(name, width, policy)
    whole, pieces = (Classifier(body, LinearHead(3), piece) for piece in (0, 3 * 8 * 8 * width * 8))
    params, stats = started(whole, x)

    def loss(params, step, net):
        phase = QUERY._replace(step=step, key=jax.random.key(step))
        logits, after = net.apply({"params": params, **stats}, x, phase, mutable=list(stats))
        return jnp.sum(jnp.tanh(logits)), (logits, after)

    gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=2)
    assert_same(gradient(params, 1, pieces), gradient(params, 1, whole), 1e-10)
    found = str(jax.make_jaxpr(lambda p: loss(p, 1, pieces)[0])(params)).count("scan[")
    assert found == loops if name == "convnet4" else found >= loops


@pytest.mark.parametrize("name", ["convnet4", "resnet12"])
def test_variables_are_the_same_if_the_first_call_is_in_pieces(name):
    """Which is a query's, by default."""
    x, body = images(4), encoder(name, 2, "episodic")
    whole, pieces = (Classifier(body, LinearHead(3), piece) for piece in (0, 1))
    start = lambda net: jax.eval_shape(lambda: net.init(jax.random.key(0), x, Phase()))  # noqa: E731
    assert start(pieces) == start(whole)


def test_the_support_pass_is_taken_at_once():
    """Its derivative is differentiated in turn, which would keep what every piece makes."""
    x, net = images(4, channels=1), Classifier(ConvNet(2), LinearHead(2), piece=1)
    variables = jax.eval_shape(lambda: net.init(jax.random.key(0), x, SUPPORT))

    def loops(phase):
        return str(jax.make_jaxpr(lambda v: net.apply(v, x, phase))(variables)).count("scan[")

    assert loops(SUPPORT) == 0
    assert loops(QUERY) > 0


def test_encoders_of_ones_own_get_arrays_and_what_of_the_phase_they_ask_for():
    class Own(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(4)(x.mean((1, 2))) * (2 if train else 1)

    x, net = images(2), Classifier(Own(), LinearHead(3), piece=1)
    variables = net.init(jax.random.key(0), x, QUERY)
    trained, tested = (net.apply(variables, x, Phase(train=t), method="features") for t in (True, False))
    np.testing.assert_allclose(trained, 2 * tested, rtol=1e-6)


@pytest.mark.parametrize(("norm", "uses"), [("batch", False), ("block1=metabn, batch", True)])
def test_a_context_is_used_as_the_encoder_says(norm, uses):
    assert Classifier(ConvNet(2, norm=norm), LinearHead(2)).uses_context == uses
    assert not Classifier(nn.Dense(2), LinearHead(2)).uses_context
