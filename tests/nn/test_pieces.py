"""Batches in pieces: the same result whatever the size of a piece, and no more than that at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax.nn.convnet import ConvNet
from maml_jax.nn.kernels import budget
from maml_jax.nn.kernels.budget import default_piece
from maml_jax.nn.kernels.pieces import Lazy, computed, each, lazily, measured, piecewise, piecewise_and, settled


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
    assert (both.shape, both.dtype) == (x.shape, x.dtype)
    limited = [dataclasses.replace(both, limit=limit) for limit in (0, 1, 40 * float_bytes, 10**6)]
    assert [images.at_once for images in limited] == [4, 1, 2, 4]
    np.testing.assert_array_equal(limited[2].compute(), 10 * y)
    one_by_one = dataclasses.replace(narrow, limit=1)
    np.testing.assert_array_equal(one_by_one.compute(lambda x: x.sum((1, 2))), x.sum((1, 2)))


def test_what_layers_do_is_the_same_for_arrays_and_for_images_yet_to_be_computed():
    x, shift = jnp.arange(24.0).reshape(4, 2, 3, 1), jnp.arange(4.0).reshape(4, 1, 1, 1)
    plus, mean = (lambda x, shift: x + shift), (lambda x: x.mean((1, 2)))
    for limit in (0, 1):
        images = lazily(x, limit)
        assert isinstance(images, Lazy) == bool(limit)
        moved = settled(each(plus, images, shift))
        assert isinstance(moved, Lazy) == bool(limit)
        for keep in (True, False):
            for after in ((), (plus, shift)):
                moments, rest = measured(moved, mean, *after, keep=keep)
                np.testing.assert_array_equal(moments, (x + shift).mean((1, 2)))
                np.testing.assert_array_equal(computed(rest), x + (2 if after else 1) * shift)


def test_images_that_are_there_are_not_copied():
    x = jnp.ones((4, 2, 3, 1))
    assert computed(lazily(x, 1)) is x
    assert settled(lazily(x, 1)).inputs[0] is x


def test_on_an_accelerator_all_is_computed_at_once(monkeypatch):
    """Whose memory holds it, and whose kernels are few."""
    encoder, images = ConvNet(32), (75, 84, 84, 3)
    monkeypatch.setattr(budget, "device_memory", lambda: 2**30)
    assert default_piece(encoder, images) > 0
    monkeypatch.setattr(budget, "device_memory", lambda: 2**50)
    assert default_piece(encoder, images) == 0
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(budget, "device_memory", lambda: 2**30)
    assert default_piece(encoder, images) == 0
