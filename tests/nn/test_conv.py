"""The closed convolution against XLA's own, in all derivatives that second-order MAML can ask for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from maml_jax.nn.kernels import conv as module
from maml_jax.nn.kernels import conv_gpu, winograd
from maml_jax.nn.kernels.conv import conv, conv_same

pytestmark = pytest.mark.usefixtures("x64")


def plain(x, kernel, padding="SAME"):
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def draw(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def operands(batch=2, size=(5, 4), window=(3, 3), channels=(2, 3), seed=0):
    return draw((batch, *size, channels[0]), seed), draw((*window, *channels), seed + 1)


def assert_same(actual, expected):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-11, atol=1e-11), actual, expected)


def objective(operation, x, kernel):
    return jnp.sum(jnp.sin(operation(x, kernel)))  # not linear, so that higher derivatives are not zero


def nth_gradient(operation, order):
    """∇ of the sum of sines of ∇ of ..., with respect to image and kernel."""
    function = functools.partial(objective, operation)
    for _ in range(order):
        lower = jax.grad(function, argnums=(0, 1))
        function = lambda *args, lower=lower: sum(jnp.sum(jnp.sin(g)) for g in lower(*args))  # noqa: E731
    return lower


@given(
    st.sampled_from([(1, 1), (3, 3), (2, 3), (5, 1), (4, 4)]),
    st.sampled_from(["SAME", "VALID", "most"]),
    st.integers(1, 5),
    st.integers(1, 3),
)
@settings(max_examples=8, deadline=None)
def test_forward_and_gradient_for_any_window_and_padding(window, padding, c_in, c_out):
    if padding == "most":
        padding = tuple((k - 1, k // 2) for k in window)
    x, kernel = operands(window=window, channels=(c_in, c_out), size=(6, 5))
    ours, theirs = (functools.partial(f, padding=padding) for f in (conv, plain))
    both = lambda f: jax.jit(lambda *args: (f(*args), nth_gradient(f, 1)(*args)))(x, kernel)  # noqa: E731
    assert_same(both(ours), both(theirs))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("c_in", [2, 6])  # by patches, and by XLA
def test_derivatives(order, c_in):
    args = operands(channels=(c_in, 3))
    assert_same(jax.jit(nth_gradient(conv, order))(*args), jax.jit(nth_gradient(plain, order))(*args))


def test_forward_over_reverse():
    args, tangents = operands(), operands(seed=7)

    def push(operation):
        gradient = jax.grad(functools.partial(objective, operation), argnums=(0, 1))
        return jax.jit(lambda a, t: jax.jvp(gradient, a, t))(args, tangents)

    assert_same(push(conv), push(plain))


def test_reverse_over_forward():
    args, tangents = operands(), operands(seed=7)

    def pull(operation):
        slope = lambda *args: jax.jvp(functools.partial(objective, operation), args, tangents)[1]  # noqa: E731
        return jax.jit(jax.grad(slope, argnums=(0, 1)))(*args)

    assert_same(pull(conv), pull(plain))


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0), (1, 2)])
@pytest.mark.parametrize("order", [0, 2])
def test_vmap_of_derivatives(axes, order):
    x, kernel = operands()
    args = [
        a if axis is None else jnp.stack([a, 0.5 * a, a - 0.3], axis) for a, axis in zip((x, kernel), axes, strict=True)
    ]
    ours, theirs = (f if order == 0 else nth_gradient(f, order) for f in (conv, plain))
    assert_same(jax.jit(jax.vmap(ours, axes))(*args), jax.jit(jax.vmap(theirs, axes))(*args))


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_derivatives_of_vmap(axes):
    x, kernel = operands()
    args = [a if axis is None else jnp.stack([a, 0.5 * a]) for a, axis in zip((x, kernel), axes, strict=True)]
    ours, theirs = (nth_gradient(jax.vmap(f, axes), 2) for f in (conv, plain))
    assert_same(jax.jit(ours)(*args), jax.jit(theirs)(*args))


def test_vmap_of_vmap():
    x, kernel = operands()
    xs, kernels = jnp.stack([x, 2 * x]), jnp.stack([kernel, -kernel, kernel + 1])
    grid = lambda f: jax.vmap(lambda x: jax.vmap(lambda k: nth_gradient(f, 1)(x, k))(kernels))(xs)  # noqa: E731
    assert_same(jax.jit(grid, static_argnums=0)(conv), jax.jit(grid, static_argnums=0)(plain))


def test_forward_over_reverse_under_vmap():
    args, tangents = operands(), operands(seed=7)
    args, tangents = (jax.tree.map(lambda a: jnp.stack([a, 2 * a]), pair) for pair in (args, tangents))

    def push(operation):
        gradient = jax.grad(functools.partial(objective, operation), argnums=(0, 1))
        return jax.jit(jax.vmap(lambda a, t: jax.jvp(gradient, a, t)))(args, tangents)

    assert_same(push(conv), push(plain))


@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize(("stride", "size"), [(1, (5, 4)), (2, (6, 5)), (2, (7, 8))])
def test_strides(window, stride, size):
    args = operands(size=size, window=(window, window))
    padding = ((window // 2, window // 2),) * 2

    def plain_strided(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    both = lambda f: jax.jit(lambda *args: (f(*args), nth_gradient(f, 2)(*args)))(*args)  # noqa: E731
    assert_same(both(functools.partial(conv_same, stride=stride)), both(plain_strided))


@pytest.mark.parametrize(("window", "stride"), [((2, 2), 1), ((3, 1), 1), ((3, 3), 3)])
def test_strides_and_windows_that_are_not_offered(window, stride):
    with pytest.raises(ValueError, match="conv_same wants"):
        conv_same(*operands(window=window), stride)


@pytest.mark.parametrize("groups", [1, 2])
def test_lowerings_agree(groups):
    """The kernels for other platforms are exact too; here they can only run on this one."""
    padding = ((1, 1), (0, 2))
    x, kernel, y = draw((groups, 2, 5, 4, 3)), draw((groups, 3, 3, 3, 2), 1), draw((groups, 2, 5, 4, 2), 2)
    for images, flipped in ((x, False), (y, True)):
        how = {"padding": padding, "flipped": flipped}
        assert_same(conv_gpu.conv(images, kernel, **how), module._conv_cpu(images, kernel, **how))
    assert_same(conv_gpu.weight_gradient(x, y, padding=padding), module._wgrad_cpu(x, y, padding=padding))


@pytest.mark.parametrize("cache", [2**24, 2**12])
@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 2), (2, 1)), ((0, 0), (0, 0))])
def test_winograd_is_the_same_convolution(padding, cache, monkeypatch):
    """For odd sides and even ones, all images at once and in groups, and its window transformed in both ways."""
    monkeypatch.setattr(winograd, "_CACHED", cache)
    x, kernel = operands(batch=4, size=(7, 6), channels=(3, 5))
    images, y = draw((4, 7, 6, 5), 2), module._conv_xla(x, kernel, padding, False)

    def all_three(conv, weight_gradient):
        forms = lambda: (conv(x, kernel, padding, False), conv(images, kernel, padding, True))  # noqa: E731
        return jax.jit(lambda: (*forms(), weight_gradient(x, y, padding)))()

    def direct_gradient(x, y, padding):
        return conv_gpu.weight_gradient(x[None], y[None], padding=padding)[0]

    assert_same(all_three(winograd.conv, winograd.weight_gradient), all_three(module._conv_xla, direct_gradient))
    assert winograd._at_once(x, 42, kernel.shape) == (4 if cache == 2**24 else 1)


def test_wide_float32_convolutions_take_the_winograd_form():
    x, kernel = jnp.zeros((1, 4, 4, 64), jnp.float32), jnp.zeros((3, 3, 64, 64), jnp.float32)
    multiplications = lambda x, kernel: jax.jit(conv).lower(x, kernel).as_text().count("dot_general")  # noqa: E731
    assert multiplications(x, kernel) == 4  # each of 4 products
    assert multiplications(x[..., :32], kernel[:, :, :32]) == 0
    assert multiplications(x.astype(jnp.float64), kernel.astype(jnp.float64)) == 0


def test_float32_takes_the_fast_path_and_agrees():
    x, kernel = (a.astype(jnp.float32) for a in operands(channels=(8, 4)))
    gradient = jax.grad(functools.partial(objective, conv), argnums=(0, 1))
    expected = jax.grad(functools.partial(objective, plain), argnums=(0, 1))
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-5), gradient(x, kernel), expected(x, kernel)
    )


def test_no_derivative_leaves_the_closed_pair():
    """The point of it all: a second-order gradient contains no convolution but ours."""
    jaxpr = str(jax.make_jaxpr(nth_gradient(conv, 3))(*operands()))
    assert "closed_conv" in jaxpr
    assert "closed_conv_wgrad" in jaxpr
    assert "conv_general_dilated" not in jaxpr


@pytest.mark.parametrize(
    ("x", "kernel", "padding"),
    [
        ((2, 5, 4), (3, 3, 2, 3), "SAME"),
        ((2, 5, 4, 2), (3, 3, 4, 3), "SAME"),
        ((2, 2, 2, 2), (3, 3, 2, 3), "VALID"),
        ((2, 5, 4, 2), (3, 3, 2, 3), "same"),
        ((2, 5, 4, 2), (3, 3, 2, 3), ((3, 0), (0, 0))),
    ],
)
def test_what_does_not_fit_is_refused(x, kernel, padding):
    with pytest.raises(ValueError, match=r"conv wants|padding"):
        conv(jnp.zeros(x), jnp.zeros(kernel), padding)


def test_two_dtypes_are_refused():
    with pytest.raises(ValueError, match="one dtype"):
        conv(jnp.zeros((1, 4, 4, 1)), jnp.zeros((3, 3, 1, 1), jnp.float32))
