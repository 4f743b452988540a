"""Convolution closed under differentiation.

XLA is fast on three forms of a convolution: forward, input gradient and weight gradient. The second derivatives that
JAX derives from `lax.conv_general_dilated` are other forms, with the image as the kernel, and fall off those fast
paths, which makes a second-order meta-gradient one to two orders of magnitude slower than it has to be.

A stride-1 convolution is bilinear, and its derivatives close on three operations. With flipped(x, w; p) the convolution
by w with its window reversed and its channel axes swapped, and p' = window - 1 - p the complementary padding,

    conv(x, w; p):      x̄ = flipped(ȳ, w; p')      w̄ = wgrad(x, ȳ; p)
    flipped(x, w; p):   x̄ = conv(ȳ, w; p')         w̄ = wgrad(ȳ, x; p')
    wgrad(x, y; p):     x̄ = flipped(y, W̄; p')      ȳ = conv(x, W̄; p)

All are JAX primitives declared bilinear, so every order of reverse and forward mode runs through the same
kernels. A leading group axis, one independent convolution per entry, closes them under `vmap` too: a batched image
with a shared kernel folds into the image batch, and a batched pair, one kernel per task, becomes groups.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from maml_jax.nn.kernels import conv_gpu
from maml_jax.nn.kernels import winograd as winograd_form
from maml_jax.nn.kernels.loop import sum_pieces
from maml_jax.nn.kernels.winograd import Padding

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def conv(
    x: jax.Array, kernel: jax.Array, padding: str | Sequence[Sequence[int]] = "SAME", winograd: bool = True
) -> jax.Array:
    """Stride-1 two-dimensional convolution (cross-correlation, as deep learning has it).

    Args:
      x: images, `[batch, height, width, in_channels]`.
      kernel: `[window_height, window_width, in_channels, out_channels]`, of the same dtype.
      padding: 'SAME', 'VALID', or explicit zeros `((top, bottom), (left, right))`.
      winograd: it and its derivatives may take the Winograd form, where that pays.

    Returns:
      `[batch, out_height, out_width, out_channels]`, where `out = in + padding - window + 1`.

    Raises:
      ValueError: shapes, dtypes or padding do not fit.
    """
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2]:
        raise ValueError(f"conv wants x [n, h, w, c] and kernel [kh, kw, c, o], got {x.shape} and {kernel.shape}")
    if x.dtype != kernel.dtype:
        raise ValueError(f"conv wants one dtype, got x {x.dtype} and kernel {kernel.dtype}")
    padding = _explicit(padding, kernel.shape[:2])
    out = [n + sum(p) - k + 1 for n, p, k in zip(x.shape[1:3], padding, kernel.shape[:2], strict=True)]
    if min(out) < 1 or any(not 0 <= q < k for p, k in zip(padding, kernel.shape[:2], strict=True) for q in p):
        raise ValueError(f"padding {padding} does not fit images {x.shape} and kernel {kernel.shape}")
    return _conv_p.bind(x[None], kernel[None], padding=padding, flipped=False, winograd=winograd)[0]


def conv_same(x: jax.Array, kernel: jax.Array, stride: int = 1, winograd: bool = True) -> jax.Array:
    """Convolution of an odd square window with window // 2 zeros on every side, as PyTorch-MAML's layers have it.

    Every case is a stride-1 convolution, and so as closed under differentiation: with a window of one pixel, of those
    pixels that count, and else a stride of 2 is a stride of 1 over blocks of 2x2 pixels taken as channels.

    Args:
      x: `[batch, height, width, in_channels]`.
      kernel: `[window, window, in_channels, out_channels]`, window odd.
      stride: 1 or 2.
      winograd: see `conv`.

    Returns:
      `[batch, ceil(height / stride), ceil(width / stride), out_channels]`.

    Raises:
      ValueError: another stride, or an even window.
    """
    window = kernel.shape[0]
    if stride not in (1, 2) or window % 2 == 0 or kernel.shape[1] != window:
        raise ValueError(
            f"conv_same wants a stride of 1 or 2 and an odd square window, got {stride} and {kernel.shape}"
        )
    if window == 1:
        return conv(x[:, ::stride, ::stride], kernel, winograd=winograd)
    if stride == 1:
        return conv(x, kernel, winograd=winograd)
    # The window starts window // 2 pixels before each even one; a row and column of zeros make its sides even.
    before, blocks = window // 2, (window + 1) // 2
    after = [2 * (-(-side // 2) + blocks - 1) - before - side for side in x.shape[1:3]]
    x = jnp.pad(x, [(0, 0), (before, after[0]), (before, after[1]), (0, 0)])
    kernel = jnp.pad(kernel, [(0, 1), (0, 1), (0, 0), (0, 0)]).transpose(3, 0, 1, 2)
    kernel = _blocks_as_channels(kernel).transpose(1, 2, 3, 0)
    return conv(_blocks_as_channels(x), kernel, "VALID", winograd)


def _blocks_as_channels(x):
    """`[n, h, w, c]` to `[n, h / 2, w / 2, 4 c]`."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, h // 2, w // 2, 4 * c)


def _explicit(padding, window) -> Padding:
    if padding == "SAME":
        return tuple(((k - 1) // 2, k // 2) for k in window)
    if padding == "VALID":
        return ((0, 0), (0, 0))
    if isinstance(padding, str):
        raise ValueError(f"padding must be 'SAME', 'VALID' or ((top, bottom), (left, right)), got {padding!r}")
    return tuple((int(before), int(after)) for before, after in padding)


# The primitives, of which the first has two forms. x [group, n, h, w, c], kernel [group, kh, kw, c, o] or, flipped,
# [group, kh, kw, o, c], y [group, n, h', w', o].

_conv_p = Primitive("closed_conv")
_wgrad_p = Primitive("closed_conv_wgrad")


def _conv_abstract(x, kernel, *, padding, flipped, winograd):
    del winograd
    (top, bottom), (left, right) = padding
    g, n, h, w, _ = x.shape
    _, kh, kw, *channels = kernel.shape
    return ShapedArray((g, n, h + top + bottom - kh + 1, w + left + right - kw + 1, channels[not flipped]), x.dtype)


def _wgrad_abstract(x, y, *, padding, winograd):
    del winograd
    return ShapedArray((x.shape[0], *_window(x, y, padding), x.shape[4], y.shape[4]), x.dtype)


def _window(x, y, padding):
    return tuple(n + sum(p) - m + 1 for n, m, p in zip(x.shape[2:4], y.shape[2:4], padding, strict=True))


def _complement(padding, window):
    return tuple((k - 1 - before, k - 1 - after) for (before, after), k in zip(padding, window, strict=True))


def _conv_to_x(ct, x, kernel, *, padding, flipped, **how):
    del x  # undefined: this is the cotangent with respect to it
    return _conv_p.bind(ct, kernel, padding=_complement(padding, kernel.shape[1:3]), flipped=not flipped, **how)


def _conv_to_kernel(ct, x, kernel, *, padding, flipped, **how):
    if flipped:
        return _wgrad_p.bind(ct, x, padding=_complement(padding, kernel.aval.shape[1:3]), **how)
    return _wgrad_p.bind(x, ct, padding=padding, **how)


def _wgrad_to_x(ct, x, y, *, padding, **how):
    del x
    return _conv_p.bind(y, ct, padding=_complement(padding, ct.shape[1:3]), flipped=True, **how)


def _wgrad_to_y(ct, x, y, *, padding, **how):
    del y
    return _conv_p.bind(x, ct, padding=padding, flipped=False, **how)


def _conv_batch(args, dims, **how):
    (x, kernel), (x_dim, kernel_dim) = args, dims
    if kernel_dim is None:  # shared kernel: the mapped axis joins the images
        x = jnp.moveaxis(x, x_dim, 1)
        g, b, n = x.shape[:3]
        out = _conv_p.bind(x.reshape(g, b * n, *x.shape[3:]), kernel, **how)
        return out.reshape(g, b, n, *out.shape[2:]), 1
    return _batch_as_groups(_conv_p, args, dims, how)


def _wgrad_batch(args, dims, **how):
    return _batch_as_groups(_wgrad_p, args, dims, how)


def _batch_as_groups(primitive, args, dims, how):
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    args = [
        jnp.broadcast_to(a, (size, *a.shape)) if d is None else jnp.moveaxis(a, d, 0)
        for a, d in zip(args, dims, strict=True)
    ]
    out = primitive.bind(*[a.reshape(-1, *a.shape[2:]) for a in args], **how)
    return out.reshape(size, -1, *out.shape[1:]), 0


# Kernels. Each takes one group, or all, and is compiled by XLA; choices by measurement, see the benchmark.

_WINOGRAD = 64  # channels from which on it is the faster form on a CPU
_NARROW = 32  # channels of a result up to which a fourth colour pays there


def _patch_rows(x, window, padding):
    """`[n, h, w, c]` to `[kh * kw * c, n * h' * w']`: the pixels under the window at each place, places last.

    So the product with cotangents has its rows in the order in which fast kernels read them, and all but the copies to
    shift columns are of whole stretches of memory.
    """
    h, w = (n + sum(p) - k + 1 for n, p, k in zip(x.shape[1:3], padding, window, strict=True))
    x = lax.optimization_barrier(jnp.pad(x, [(0, 0), *padding, (0, 0)]).transpose(3, 0, 1, 2))
    x = lax.optimization_barrier(jnp.concatenate([x[..., j : j + w] for j in range(window[1])]))
    rows = [x[:, :, i : i + h].reshape(len(x), -1) for i in range(window[0])]
    return lax.optimization_barrier(jnp.concatenate(rows))


def _gathered_patches(x, window, padding):
    """The same by one gather, which compiles in a fraction of the time: for float64, in tests."""
    x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
    rows, columns = (np.arange(n - k + 1)[:, None] + np.arange(k) for n, k in zip(x.shape[1:3], window, strict=True))
    patches = x[:, rows[:, None, :, None], columns[None, :, None, :]]
    return patches.reshape(-1, window[0] * window[1] * x.shape[3]).T


def _conv_xla(x, kernel, padding, flipped):
    """One group through XLA's convolution."""
    kernel = jnp.flip(kernel, (0, 1)).swapaxes(2, 3) if flipped else kernel
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=_DIMENSIONS)


def _conv_colours(x, kernel, padding, flipped):
    """One group of images of three channels, with a fourth of zeros: the sums are a third longer, and twice as fast."""
    x = jnp.pad(x, [(0, 0), (0, 0), (0, 0), (0, 1)])
    return _conv_xla(x, jnp.pad(kernel, [(0, 0), (0, 0), (0, 1), (0, 0)]), padding, flipped)


def _product(x, kernel, padding, flipped):
    """One group and a window of one pixel, as a product of matrices: with more axes, XLA copies to transpose them."""
    del padding  # of which there is none
    y = lax.dot_general(x.reshape(-1, x.shape[3]), kernel[0, 0], (((1,), (int(flipped),)), ((), ())))
    return y.reshape(*x.shape[:3], -1)


def _conv_cpu(x, kernel, *, padding, flipped, winograd=True):
    fast = winograd and winograd_form.pays(x.dtype, kernel.shape[1:3], kernel.shape[3:], least=_WINOGRAD)
    if fast:
        one = winograd_form.conv
    elif kernel.shape[1:3] == (1, 1):
        one = _product
    elif x.dtype == jnp.float32 and x.shape[4] == 3 and kernel.shape[4] <= _NARROW and not flipped:
        one = _conv_colours
    else:
        one = _conv_xla
    return _each_group(lambda x, kernel: one(x, kernel, padding, flipped), x, kernel)


def _wgrad_cpu(x, y, *, padding, winograd=True):
    window = _window(x, y, padding)
    if winograd and winograd_form.pays(x.dtype, window, (x.shape[4], y.shape[4]), least=_WINOGRAD):
        return _each_group(lambda x, y: winograd_form.weight_gradient(x, y, padding), x, y)
    if window == (1, 1):
        flat = lambda a: a.reshape(-1, a.shape[-1])  # noqa: E731
        return _each_group(lambda x, y: (flat(x).T @ flat(y))[None, None], x, y)
    patches_of = _patch_rows if x.dtype == jnp.float32 else _gathered_patches

    def one(x, y):
        def of_images(x, y):  # [kh * kw * c, o], summed over the places of any number of images
            return patches_of(x, window, padding) @ y.reshape(-1, y.shape[-1])

        at_once = 1 if x.dtype == jnp.float32 else len(x)
        return sum_pieces(of_images, (x, y), at_once).reshape(*window, x.shape[3], y.shape[3])

    return _each_group(one, x, y)


def _each_group(one, *args):
    if args[0].shape[0] == 1:
        return one(*(a[0] for a in args))[None]
    return lax.map(lambda a: one(*a), args)


def _register(primitive, abstract, transposes, batch, accelerator, cpu):
    def default(x, y, *, winograd, **how):
        del winograd
        return accelerator(x, y, **how)

    def run(x, y, **how):
        kernels = {"cpu": cpu, "default": default}
        return lax.platform_dependent(x, y, **{name: functools.partial(k, **how) for name, k in kernels.items()})

    primitive.def_impl(jax.jit(run, static_argnames=("padding", "flipped", "winograd")))
    primitive.def_abstract_eval(abstract)
    ad.defbilinear(primitive, *transposes)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(default, multiple_results=False))
    mlir.register_lowering(primitive, mlir.lower_fun(cpu, multiple_results=False), platform="cpu")


_register(_conv_p, _conv_abstract, (_conv_to_x, _conv_to_kernel), _conv_batch, conv_gpu.conv, _conv_cpu)
_register(_wgrad_p, _wgrad_abstract, (_wgrad_to_x, _wgrad_to_y), _wgrad_batch, conv_gpu.weight_gradient, _wgrad_cpu)
