"""Batches in pieces: the same result whatever the size of a piece, and no more than that at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax.nn import model
from maml_jax.nn.kernels.pieces import Lazy, piecewise, piecewise_and
from maml_jax.nn.norm import Pass


@pytest.mark.parametrize(("most", "size"), [(1, 1), (3, 3), (4, 3), (5, 3), (6, 6), (100, 6)])
def test_a_piece_is_the_largest_divisor_of_the_batch_that_is_allowed(most, size):
    seen = []

    def double(x, pair):
        seen.append(len(x))
        return {"sum": 2 * x + pair[0] + pair[1]}

    x = jnp.arange(12.0).reshape(6, 2)
    out = piecewise(double, (x, (x, x + 1)), most)
    np.testing.assert_array_equal(out["sum"], 4 * x + 1)
    assert set(seen) == {size}


@pytest.mark.parametrize("most", [2, 6])
def test_what_comes_after_a_piece_has_the_derivatives_it_has_after_all(most, x64):
    x, weight = jnp.linspace(-1, 1, 12).reshape(6, 2), jnp.asarray(0.3)

    def loss(pieces, x, weight):
        y, sums = pieces(x, weight)
        return jnp.sum(jnp.tanh(y)) + jnp.sum(jnp.cos(sums))

    function, after = lambda x, weight: jnp.sin(weight * x), lambda y: (y**3).sum(1)
    whole = lambda x, weight: (function(x, weight), after(function(x, weight)))  # noqa: E731
    parts = lambda x, weight: piecewise_and(lambda x: function(x, weight), after, (x,), most)  # noqa: E731
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12),
        (parts(x, weight), jax.grad(loss, (1, 2))(parts, x, weight)),
        (whole(x, weight), jax.grad(loss, (1, 2))(whole, x, weight)),
    )


def test_lazy_images_know_their_size_and_come_from_several_others():
    x, y = jnp.arange(24.0).reshape(4, 2, 3, 1), jnp.ones((4, 2, 3, 1))
    wide = Lazy.of(x).then(lambda x: jnp.concatenate([x, x, x], -1))
    narrow = wide.then(lambda x: x[..., :1])
    both = narrow.then(lambda a, b, c: a + 10 * b - c, Lazy.of(y), narrow)
    float_bytes = x.dtype.itemsize
    assert (Lazy.of(x).image_bytes, wide.image_bytes, both.image_bytes) == (
        6 * float_bytes,
        18 * float_bytes,
        18 * float_bytes,
    )
    assert both.like.shape == x.shape
    assert [both.at_once(size) for size in (0, 1, 40 * float_bytes, 10**6)] == [4, 1, 2, 4]
    np.testing.assert_array_equal(both.compute(40 * float_bytes), 10 * y)
    np.testing.assert_array_equal(narrow.compute(1, lambda x: x.sum((1, 2))), x.sum((1, 2)))


@pytest.mark.parametrize(
    ("encoder", "norm"),
    [
        ("convnet4", "batch"),
        ("convnet4", "episodic"),
        ("convnet4", "tasknorm"),
        pytest.param("resnet12", "episodic", marks=pytest.mark.slow),
        pytest.param("resnet18", "episodic", marks=pytest.mark.slow),
    ],
)
def test_pieces_change_nothing(encoder, norm, x64):
    x = jnp.asarray(np.random.default_rng(0).random((6, 16, 16, 3)))
    whole, pieces = (model.build(encoder, 4, norm, "meta", 3, (16, 16, 3), piece=p) for p in (0, 3 * 8 * 8 * 4 * 8))
    params, stats = whole.init(jax.random.key(0))

    def loss(params, net):
        logits, after = net.apply(params, net.episode_stats(stats), x, Pass.QUERY, True)
        return jnp.sum(jnp.tanh(logits)), (logits, after)

    both = [jax.jit(jax.grad(loss, has_aux=True), static_argnums=1) for _ in range(2)]
    got, expected = (f(params, net) for f, net in zip(both, (pieces, whole), strict=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11), got, expected)
    loops = str(jax.make_jaxpr(lambda p: loss(p, pieces)[0])(params)).count("scan[")
    assert loops == 2 if encoder == "convnet4" else loops > 2  # the first two blocks


def test_the_support_pass_is_taken_at_once():
    """Its derivative is differentiated in turn, which would keep what every piece makes."""
    net = model.build("convnet4", 2, "batch", "meta", 2, (16, 16, 1), piece=1)
    params, _ = jax.eval_shape(net.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((4, 16, 16, 1), jnp.float32)
    loops = {
        which: str(jax.make_jaxpr(lambda p, x, which=which: net.apply(p, {}, x, which, True))(params, x)).count("scan[")
        for which in (Pass.SUPPORT, Pass.QUERY)
    }
    assert loops[Pass.SUPPORT] == 0
    assert loops[Pass.QUERY] > 0
