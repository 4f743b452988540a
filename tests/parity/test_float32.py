"""The kernels that training runs on a CPU, in float32, against plain sums in float64.

Float64 takes other kernels than float32: no Winograd form, and another way to gather patches for weight gradients. A
comparison in float64 shows that the algorithm is right, to 1e-13, and nothing of these kernels. Here they are held to
what float32 can give: about 1e-7 of the largest entry per operation.
"""

import dataclasses

import jax
import numpy as np
import pytest

from maml_jax.nn.kernels import conv as kernels
from maml_jax.nn.kernels import winograd
from maml_jax.nn.kernels.conv import conv
from parity import golden, grid, replay
from parity.check import check_case

pytestmark = pytest.mark.usefixtures("one_thread")

EPSILON = 2.0**-24  # half of float32's spacing at 1
COLOURS, PATCHES, WINOGRAD = (3, 32), (8, 32), (64, 64)  # channels in and out


def plain_sums(x, kernel, y):
    """The convolution and its two gradients, term by term in float64."""
    x, kernel, y = (np.asarray(a, np.float64) for a in (x, kernel, y))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]), (3, 3), (1, 2))
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    cotangents = np.lib.stride_tricks.sliding_window_view(np.pad(y, [(0, 0), (1, 1), (1, 1), (0, 0)]), (3, 3), (1, 2))
    return {
        "forward": np.einsum("nhwcij,ijco->nhwo", windows, kernel),
        "to images": np.einsum("nhwoij,ijoc->nhwc", cotangents, flipped),
        "to kernel": np.einsum("nhwcij,nhwo->ijco", windows, y),
    }


@pytest.mark.parametrize(
    ("channels", "bound"), [(COLOURS, 16), (PATCHES, 16), (WINOGRAD, 64)], ids=["colours", "patches", "winograd"]
)
@pytest.mark.parametrize("sides", [(8, 8), (21, 5)], ids=str)
def test_each_kernel_is_as_exact_as_float32_is(channels, bound, sides):
    """`bound` counts roundings of the largest entry."""
    rng = np.random.default_rng(0)
    (c, o), (h, w) = channels, sides
    x, kernel, y = (rng.standard_normal(s).astype("f4") for s in ((4, h, w, c), (3, 3, c, o), (4, h, w, o)))
    assert winograd.pays(x.dtype, (3, 3), channels, 64) == (channels == WINOGRAD)
    out, transpose = jax.vjp(conv, x, kernel)
    ours = dict(zip(("forward", "to images", "to kernel"), (out, *transpose(y)), strict=True))
    for name, expected in plain_sums(x, kernel, y).items():
        error = golden.relative_error(np.asarray(ours[name]), expected)
        print(f"{name} {error / EPSILON:.1f} roundings")
        assert 0 < error < bound * EPSILON, name


@pytest.mark.parametrize(
    ("window", "padding"),
    [((3, 3), ((1, 1), (1, 1))), ((5, 5), ((2, 2), (2, 2))), ((2, 4), ((0, 1), (3, 0))), ((3, 1), ((0, 0), (0, 0)))],
)
def test_patches_are_gathered_alike(window, padding):
    """In the way of float32, and of float64."""
    x = np.random.default_rng(0).standard_normal((2, 5, 7, 3)).astype("f4")
    rows, gathered = (of(x, window, padding) for of in (kernels._patch_rows, kernels._gathered_patches))
    np.testing.assert_array_equal(rows, gathered)


@pytest.mark.parametrize("encoder", ["convnet4", "wide-convnet4"])
def test_so_is_the_meta_gradient(encoder):
    """Through an inner step and back, from the same numbers: those of float32 in float32, and in float64."""
    case = grid.make_case(encoder, encoder=encoder, width=0, dtype="float32", episodes=1, n_step=1, eval_steps=1)
    double = {name: value.astype(np.float64) for name, value in case.params.items()}
    images = {name: getattr(case, name).astype(np.float64) for name in ("support_x", "query_x")}
    exact = replay.in_torch(dataclasses.replace(case, params=double, dtype="float64", **images))
    case = dataclasses.replace(case, recorded=golden.as_recorded(exact, case.sample))
    results = {result.quantity: result for result in check_case(case)}
    print({quantity: f"{result.error:.1e}" for quantity, result in results.items()})
    assert 1e-9 < results["grad"].error < 2e-5
    assert all(result.error < 1e-5 for quantity, result in results.items() if quantity != "grad")
    tolerances = {quantity: result.tolerance for quantity, result in results.items()}
    assert tolerances.items() >= {"logits_train": 1e-4, "grad": 1e-3}.items()
