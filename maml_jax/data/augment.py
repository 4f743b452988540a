"""From stored pixels to what the model sees: augmentation and normalisation, on the device.

An augmentation is a pair of functions: `draw` makes its random choices from a key, `apply` does what was chosen.
Choices are whole numbers or exact fractions, so that a key means the same ones on every device. The definitions are
those of torchvision's transforms on float images: nothing is rounded to whole pixel values on the way.

Images come at the size they are stored at, side `data.stored_size`, and leave at the size the model sees, side
`data.image_size`. Where the two differ, `resize` and `enlarge` work from the larger stored images; the others first
scale them down.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

Draws = Mapping[str, jax.Array]
"""What an augmentation chose, by name; the leading axis of each is the batch."""

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel, of images in [0, 1]."""

IMAGENET_STATISTICS: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_PADDING = 8  # black pixels that a crop may reach over each edge
_JITTER = 0.4  # brightness, contrast and saturation change by up to this fraction
_STEPS = 4096  # a power of two, so that multiples of its inverse are exact
_ORDERS = np.array(list(itertools.permutations(range(3))), np.int32)
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601
_AREAS = (0.08, 1.0)  # of a random resized crop, as a share of the image's
_RATIOS = (3 / 4, 4 / 3)  # of its width to its height


def draw_flip(key: jax.Array, batch: int, side: int) -> Draws:
    """`mirrored`, bool `[batch]`, true with probability 1/2."""
    return {"mirrored": jax.random.bernoulli(key, 0.5, (batch,))}


def draw_crop(key: jax.Array, batch: int, side: int) -> Draws:
    """`corner`, int32 `[batch, 2]` uniform in 0 .. 16: top and left of the crop in the padded image; and a flip."""
    crop_key, flip_key = jax.random.split(key)
    corner = jax.random.randint(crop_key, (batch, 2), 0, 2 * _PADDING + 1)
    return {"corner": corner, **draw_flip(flip_key, batch, side)}


def draw_color(key: jax.Array, batch: int, side: int) -> Draws:
    """What `jitter_color` takes, and a crop and a flip.

    `factors`, float32 `[batch, 3]`, are uniform in 0.6 .. 1.4 in steps of 1/4096; `order`, int32 `[batch, 3]`, is a
    uniform permutation.
    """
    factor_key, order_key, crop_key = jax.random.split(key, 3)
    most = int(_JITTER * _STEPS)
    changes = jax.random.randint(factor_key, (batch, 3), -most, most + 1)
    order = jnp.asarray(_ORDERS)[jax.random.randint(order_key, (batch,), 0, len(_ORDERS))]
    return {"factors": 1 + changes.astype(jnp.float32) / _STEPS, "order": order, **draw_crop(crop_key, batch, side)}


def draw_resized_crop(key: jax.Array, batch: int, side: int) -> Draws:
    """`box`, int32 `[batch, 4]`: top, left, height and width of a crop; and a flip.

    Its area is uniform in 8 .. 100 % of the image, the logarithm of its aspect ratio uniform in ± log 4/3, both given
    that it lies in the image; its place is uniform.
    """
    shape_key, place_key, flip_key = jax.random.split(key, 3)
    shapes = jnp.asarray(_crop_shapes(side))
    shape = shapes[jax.random.randint(shape_key, (batch,), 0, len(shapes))]
    corner = jax.random.randint(place_key, (batch, 2), 0, side - shape + 1)
    return {"box": jnp.concatenate([corner, shape], 1), **draw_flip(flip_key, batch, side)}


@functools.cache
def _crop_shapes(side: int, grid: int = 128) -> np.ndarray:
    """Heights and widths of equally likely crops of a square image, int32 `[shapes, 2]`.

    A table, because square roots and logarithms may differ in the last bit from device to device.
    """
    middles = (np.arange(grid) + 0.5) / grid
    area, log_ratio = (
        low + middles * (high - low) for low, high in ((side**2 * _AREAS[0], side**2 * _AREAS[1]), np.log(_RATIOS))
    )
    height, width = (np.rint(np.sqrt(area[:, None] * np.exp(sign * log_ratio))) for sign in (-1, 1))
    shapes = np.stack([height, width], -1).reshape(-1, 2).astype(np.int32)
    return shapes[((shapes >= 1) & (shapes <= side)).all(1)]


def flip(images: jax.Array, mirrored: jax.Array) -> jax.Array:
    """Mirrors those of `[batch, height, width, channels]` left to right that `mirrored`, bool `[batch]`, says."""
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def crop(images: jax.Array, corner: jax.Array) -> jax.Array:
    """Pads images by 8 black pixels and cuts the size they had at `corner`, int32 `[batch, 2]` (top, left)."""
    padded = jnp.pad(images, ((0, 0), (_PADDING, _PADDING), (_PADDING, _PADDING), (0, 0)))
    cut = lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), images.shape[1:])  # noqa: E731
    return jax.vmap(cut)(padded, corner)


def jitter_color(images: jax.Array, factors: jax.Array, order: jax.Array) -> jax.Array:
    """Changes brightness (0), contrast (1) and saturation (2), one after another.

    Each is x ← clip(b + f · (x − b)) to [0, 1], where b is black for brightness, the image's mean grey for contrast and
    the pixel's grey for saturation.

    Args:
      images: `[batch, height, width, channels]` in [0, 1], one or three channels.
      factors: float `[batch, 3]`: f of each.
      order: int32 `[batch, 3]`, a permutation: which comes first, second and third.
    """
    luma = jnp.array(_LUMA if images.shape[-1] == 3 else (1.0,))
    for which in order.T:
        grey = (images * luma).sum(-1, keepdims=True)
        kind = which[:, None, None, None]
        base = jnp.where(kind == 2, grey, jnp.where(kind == 1, grey.mean((1, 2), keepdims=True), 0))
        factor = jnp.take_along_axis(factors, which[:, None], 1)[:, :, None, None]
        images = jnp.clip(base + factor * (images - base), 0, 1)
    return images


def resize(images: jax.Array, size: int) -> jax.Array:
    """Scales square images to side `size`, bilinear; on the way down each pixel averages all that it covers."""
    if images.shape[1] == size:
        return images
    return jax.image.resize(images, (images.shape[0], size, size, images.shape[3]), "linear")


def resized_crop(images: jax.Array, box: jax.Array, size: int) -> jax.Array:
    """Cuts `box`, int32 `[batch, 4]` (top, left, height, width), and scales it to side `size` as `resize` does."""
    down, across = (
        jax.vmap(_scaling, (0, 0, None, None))(box[:, i], box[:, i + 2], images.shape[i + 1], size) for i in (0, 1)
    )
    return jnp.einsum("bph,bhwc,bqw->bpqc", down, images, across, precision=jax.lax.Precision.HIGHEST)


def _scaling(start, length, pixels, size):
    """Weights `[size, pixels]` that scale `length` pixels from `start` on to `size`: a triangle around each centre.

    Unlike those of `jax.image.scale_and_translate`, they do not reach over the ends of the crop.
    """
    scale = length / size
    at = jnp.arange(pixels)
    centres = start + (jnp.arange(size) + 0.5) * scale - 0.5
    weights = jnp.maximum(0, 1 - jnp.abs(at - centres[:, None]) / jnp.maximum(scale, 1))
    weights = jnp.where((at >= start) & (at < start + length), weights, 0)
    return weights / weights.sum(1, keepdims=True)


def enlarge(images: jax.Array, size: int) -> jax.Array:
    """Scales images to 256/224 of side `size` and cuts the middle."""
    side = size * 256 // 224
    start = round((side - size) / 2)
    return resize(images, side)[:, start : start + size, start : start + size]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """An entry of `AUGMENTATIONS`.

    Attributes:
      draw: `(key, batch, side) -> Draws`: makes the choices for a batch of images of a side.
      apply: `(images, size, **draws) -> images`: augments `[batch, side, side, channels]` float in [0, 1], and brings
        it to side `size`.
    """

    draw: Callable[[jax.Array, int, int], Draws]
    apply: Callable[..., jax.Array]


def _nothing(key: jax.Array, batch: int, side: int) -> Draws:
    return {}


AUGMENTATIONS = {
    "none": Augmentation(_nothing, resize),
    "flip": Augmentation(draw_flip, lambda images, size, mirrored: flip(resize(images, size), mirrored)),
    "crop": Augmentation(
        draw_crop, lambda images, size, corner, mirrored: flip(crop(resize(images, size), corner), mirrored)
    ),
    "color": Augmentation(
        draw_color,
        lambda images, size, factors, order, corner, mirrored: flip(
            jitter_color(crop(resize(images, size), corner), factors, order), mirrored
        ),
    ),
    "resize": Augmentation(
        draw_resized_crop, lambda images, size, box, mirrored: flip(resized_crop(images, box, size), mirrored)
    ),
    "enlarge": Augmentation(_nothing, enlarge),
}
"""Every augmentation that `data.support_augment` and `data.query_augment` can name."""


def prepare(
    key: jax.Array, images: jax.Array, augmentation: str, size: int, normalization: Statistics | None
) -> jax.Array:
    """Turns stored images into model input.

    Args:
      key: for the augmentation's draws.
      images: uint8 `[batch, side, side, channels]`.
      augmentation: a key of `AUGMENTATIONS`.
      size: side that the model sees, in pixels.
      normalization: mean and standard deviation per channel, or None.

    Returns:
      float32 `[batch, size, size, channels]`: in [0, 1], less the mean and over the deviation where normalised.
    """
    chosen = AUGMENTATIONS[augmentation]
    draws = chosen.draw(key, *images.shape[:2])
    images = chosen.apply(images.astype(jnp.float32) / 255, size, **draws)
    if normalization is None:
        return images
    mean, deviation = normalization
    return (images - jnp.array(mean)) / jnp.array(deviation)
