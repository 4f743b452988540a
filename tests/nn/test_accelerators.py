"""The kernels for accelerators, run here, in double precision: they are the same functions as those for a CPU."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from maml_jax.nn import moments as differentiable
from maml_jax.nn.kernels import conv_gpu, moments
from maml_jax.nn.kernels.conv import conv
from maml_jax.nn.kernels.pool import max_pool

pytestmark = pytest.mark.usefixtures("x64")


def draw(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def assert_same(actual, expected):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-12), actual, expected)


def by_sums(x, kernel, padding):
    """A convolution by its definition, one shifted product after the other."""
    x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
    rows, columns = kernel.shape[:2]
    h, w = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    places = itertools.product(range(rows), range(columns))
    return sum(jnp.einsum("nhwc,co->nhwo", x[:, i : i + h, j : j + w], kernel[i, j]) for i, j in places)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("window", [(1, 1), (3, 3), (2, 3)])
@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((1, 1), (0, 2))])
def test_convolutions_are_plain_sums_and_their_gradients(groups, window, padding):
    if window == (1, 1):
        padding = ((0, 0), (0, 0))
    x, kernel = draw((groups, 2, 5, 4, 3)), draw((groups, *window, 3, 2), 1)
    plain = jax.vmap(functools.partial(by_sums, padding=padding))
    y, pull = jax.vjp(plain, x, kernel)
    cotangent = draw(y.shape, 2)
    to_x, to_kernel = pull(cotangent)
    opposite = tuple((k - 1 - a, k - 1 - b) for k, (a, b) in zip(window, padding, strict=True))
    assert_same(conv_gpu.conv(x, kernel, padding=padding, flipped=False), y)
    assert_same(conv_gpu.conv(cotangent, kernel, padding=opposite, flipped=True), to_x)
    assert_same(conv_gpu.weight_gradient(x, cotangent, padding=padding), to_kernel)


def test_a_weight_gradient_is_what_a_gpu_compiler_recognises():
    """A window as large as the images, but summed over images, and groups of the batch: never groups of channels."""
    x, y = draw((4, 2, 6, 6, 3)), draw((4, 2, 6, 6, 5))
    program = str(jax.make_jaxpr(functools.partial(conv_gpu.weight_gradient, padding=((1, 1), (1, 1))))(x, y))
    assert "batch_group_count=4" in program
    assert "feature_group_count=1" in program


@pytest.mark.parametrize("mapped", [(), (3,), (2, 3)])
@pytest.mark.parametrize("places", [0, 2])
def test_moments_read_once_are_those_read_twice(mapped, places):
    x = 2 + draw((*mapped, 4, *(5, 3)[:places], 6))
    assert_same(moments.read_once(x, places=places), moments.read_twice(x, places=places))


@pytest.mark.parametrize("mapped", [(), (3,)])
def test_moments_of_a_batch_in_one_sum_are_those_in_two(mapped):
    mean, variance = draw((*mapped, 4, 6)), jnp.square(draw((*mapped, 4, 6), 1))
    assert_same(moments.at_once(mean, variance), moments.one_after_other(mean, variance))


def test_read_once_a_constant_image_has_no_variance_and_none_is_negative():
    x = jnp.full((2, 7, 7, 3), 0.1, jnp.float32)
    _, variance = moments.read_once(x, places=2)
    assert 0 <= variance.min() <= variance.max() < 1e-7


def test_moments_of_a_batch_follow_from_those_of_its_images_in_every_derivative():
    x = draw((4, 5, 3, 2))

    def of_images(x):
        return differentiable.image_moments(x).batch

    def at_once(x):
        return x.mean((0, 1, 2)), x.var((0, 1, 2))

    def second(function):
        wave = lambda x: sum(jnp.sin(m).sum() for m in function(x))  # noqa: E731
        return jax.grad(lambda x: jnp.sin(jax.grad(wave)(x)).sum())(x)

    assert_same(of_images(x), at_once(x))
    assert_same(second(of_images), second(at_once))


def lowered_for_gpu(function, *args):
    return jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def test_platforms_take_their_forms():
    x, kernel = draw((4, 2, 6, 6, 3)), draw((4, 3, 3, 3, 5))
    loss = jax.vmap(jax.grad(lambda kernel, x: jnp.square(conv(x, kernel)).sum()))
    gpu = lowered_for_gpu(loss, kernel, x)
    assert "batch_group_count = 4" in gpu
    assert "batch_group_count = 4" not in jax.jit(loss).lower(kernel, x).as_text()


def test_mapped_pooling_does_not_join_tasks_to_images():
    x = draw((3, 2, 5, 4, 2))
    pooled = lambda x: jnp.sin(max_pool(x)).sum()  # noqa: E731
    one_by_one = jnp.stack([jax.grad(pooled)(task) for task in x])
    assert_same(jax.vmap(jax.grad(pooled))(x), one_by_one)
    assert "tensor<6x" not in lowered_for_gpu(jax.vmap(jax.grad(pooled)), x)  # 3 tasks of 2 images


def test_a_sum_for_every_place_is_a_convolution():
    """`by_sums` itself, against the compiler's."""
    x, kernel = draw((2, 5, 4, 3)), draw((3, 3, 3, 2), 1)
    theirs = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert_same(by_sums(x, kernel, ((1, 1), (1, 1))), theirs)
