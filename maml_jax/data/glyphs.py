"""Procedural handwriting: characters of an alphabet that nobody has ever written, for use without any download.

A character is a few smooth strokes through random points. An image of it is one writer's attempt: every point misses
its place a little, every stroke too, and the whole is turned, sheared, stretched and shifted, with a pen of some width.

In 5-way 1-shot tasks of test characters, the support image nearest in pixel space is right for 55 % (Euclidean
distance) or 63 % (cosine) of the query images; on Omniglot that is 42 and 47 %.
"""

import functools

import numpy as np

from maml_jax.data.account import Account
from maml_jax.data.dataset import DataSet
from maml_jax.data.source import ClassImages, Source

VERSION = 1
"""Raise it with any change to the pixels, so that stores are built anew."""
_SPLIT_ENDS = {"train": 9 / 12, "val": 10 / 12, "test": 1.0}  # as shares of the classes

# Lengths are in units of the image's side; the body of a character fits a square of side 0.62.
_BODY = 0.62
_POINT_JITTER = 0.030
_RELATIVE_JITTER = 0.15  # of the distance to the next point, where points are close
_STROKE_JITTER = 0.022
_SHIFT = 0.035
_ROTATION = 0.17  # radians
_SHEAR = 0.16
_LOG_STRETCH = 0.12
_PEN_RADII = (0.021, 0.036)
_POINT_SPACING = 0.018


def source(image_size: int = 28, classes: int = 1200, images_per_class: int = 20, seed: int = 0) -> Source:
    """The procedural characters as a data set: bright ink on black, uint8 `[images, size, size, 1]`.

    Nine twelfths of the classes are for training, one for validation, two for the test: 900, 100 and 200 of 1200.
    Image `i` of class `c` depends on nothing but `(seed, c, i, image_size)`.

    Args:
      image_size: side of the images in pixels.
      classes: number of characters in all.
      images_per_class: images of each character.
      seed: which alphabet; not negative.
    """
    splits, start = {}, 0
    for split, end in _SPLIT_ENDS.items():
        stop = round(classes * end)
        splits[split] = [
            ClassImages(
                f"glyph{c:05d}", images_per_class, functools.partial(render, seed, c, images_per_class, image_size)
            )
            for c in range(start, stop)
        ]
        start = stop
    return Source(
        name=f"glyphs-{image_size}",
        fingerprint={"version": VERSION, "classes": classes, "images_per_class": images_per_class, "seed": seed},
        image_shape=(image_size, image_size, 1),
        splits=splits,
        account=Account("drawn with the characters: nine twelfths, one and two of them"),
    )


def render(seed: int, c: int, images: int, image_size: int) -> np.ndarray:
    """Draws the first `images` images of character `c` of alphabet `seed`: uint8 `[images, size, size, 1]`."""
    # Stream 0 is the character's, streams 1, 2, ... are its images'. Were the images to begin at 0, the first would
    # repeat the character's draws, even if those were seeded by [seed, c] alone: NumPy pads seeds with zeros.
    strokes = _character(np.random.default_rng([seed, c, 0]))
    written = [_write(strokes, np.random.default_rng([seed, c, 1 + i])) for i in range(images)]
    radii = np.array([radius for _, radius in written])
    traces = []
    for s, stroke in enumerate(strokes):
        length = _BODY * np.linalg.norm(np.diff(stroke, axis=0), axis=1).sum()
        knots = np.stack([written_strokes[s] for written_strokes, _ in written])
        traces.append(_spline(knots, max(2, round(length / _POINT_SPACING))))
    return _ink(np.concatenate(traces, axis=1), radii, image_size)[..., None]


def _character(rng: np.random.Generator) -> list[np.ndarray]:
    """Invents a character: the knots of 2-4 strokes, float64 `[knots, 2]`, which fill a centred square of side 1."""
    strokes: list[np.ndarray] = []
    for _ in range(rng.choice([2, 3, 4], p=[0.35, 0.45, 0.2])):
        start = rng.uniform(-0.5, 0.5, 2)
        if strokes and rng.random() < 0.5:  # strokes of letters tend to begin on one another
            other = strokes[rng.integers(len(strokes))]
            start = other[rng.integers(len(other))]
        strokes.append(_stroke(rng, start))
    everything = np.concatenate(strokes)
    low, high = everything.min(0), everything.max(0)
    extent = np.maximum(high - low, 0.6 * (high - low).max())  # a flat character is stretched less than to full height
    return [(stroke - (low + high) / 2) / extent for stroke in strokes]


def _stroke(rng: np.random.Generator, start: np.ndarray) -> np.ndarray:
    """Invents a stroke from `start`: a line, an arc, or a curve through 3 or 4 points; its knots `[knots, 2]`."""
    kind = rng.random()
    if kind < 0.3:
        angle, length = rng.integers(8) * np.pi / 4 + rng.normal(0, 0.15), rng.uniform(0.4, 1.0)
        return np.stack([start, start + length * np.array([np.cos(angle), np.sin(angle)])])
    if kind < 0.6:
        radius, turn = rng.uniform(0.2, 0.4), rng.uniform(0.8, 1.8) * np.pi * rng.choice([-1, 1])
        first = rng.uniform(0, 2 * np.pi)
        angles = first + turn * np.linspace(0, 1, 6)
        circle = radius * np.stack([np.cos(angles), np.sin(angles)], -1)
        return start + circle - circle[0]
    steps = rng.uniform(0.3, 0.6, (rng.integers(2, 4), 1))
    angles = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.uniform(0.6, 2.2, len(steps)) * rng.choice([-1, 1], len(steps)))
    return np.concatenate([start[None], start + np.cumsum(steps * np.stack([np.cos(angles), np.sin(angles)], -1), 0)])


def _write(strokes: list[np.ndarray], rng: np.random.Generator) -> tuple[list[np.ndarray], float]:
    """Writes a character once: its strokes' knots `[knots, 2]` in the unit square, and the pen's radius."""
    rotation, shear = rng.normal(0, _ROTATION), rng.normal(0, _SHEAR)
    stretch = np.exp(rng.normal(0, _LOG_STRETCH, 2))
    turn = np.array([[np.cos(rotation), -np.sin(rotation)], [np.sin(rotation), np.cos(rotation)]])
    affine = _BODY * turn @ np.array([[1, shear], [0, 1]]) * stretch
    centre = 0.5 + rng.normal(0, _SHIFT, 2)
    radius = rng.uniform(*_PEN_RADII)
    knots = []
    for stroke in strokes:
        spacing = _BODY * np.linalg.norm(np.diff(stroke, axis=0), axis=1).mean()
        wobble = rng.normal(0, min(_POINT_JITTER, _RELATIVE_JITTER * spacing), stroke.shape)
        knots.append(stroke @ affine.T + centre + rng.normal(0, _STROKE_JITTER, 2) + wobble)
    return knots, radius


def _spline(knots: np.ndarray, samples: int) -> np.ndarray:
    """Points on the uniform Catmull-Rom spline through `knots`: `[images, knots, 2]` to `[images, samples, 2]`.

    Between the middle two of four knots, at `t` in [0, 1]: `(w0 p0 + w1 p1 + w2 p2 + w3 p3) / 2` with the weights
    below. A knot reflected beyond each end makes the outer pieces like the others; two knots give a straight line.
    """
    first, last = 2 * knots[:, :1] - knots[:, 1:2], 2 * knots[:, -1:] - knots[:, -2:-1]
    padded = np.concatenate([first, knots, last], axis=1)
    position = np.linspace(0, knots.shape[1] - 1, samples)
    piece = np.minimum(position.astype(int), knots.shape[1] - 2)
    t = (position - piece)[:, None]
    weights = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3)
    return sum(w * padded[:, piece + i] for i, w in enumerate(weights)) / 2


def _ink(points: np.ndarray, radii: np.ndarray, image_size: int) -> np.ndarray:
    """Draws dots: `points` `[images, points, 2]` as x and y, `radii` `[images]`; uint8 `[images, size, size]`.

    A pixel is as bright as a pen of that radius covers it, taken to fall linearly over one pixel at the edge.
    """
    pixels = (np.arange(image_size, dtype=np.float32) + 0.5) / image_size
    squared = (points.astype(np.float32)[..., None] - pixels) ** 2  # [images, points, x and y, size]
    nearest = np.full((len(points), image_size, image_size), np.inf, np.float32)
    for i in range(points.shape[1]):  # point by point, because all distances at once do not fit the processor's cache
        np.minimum(nearest, squared[:, i, 1, :, None] + squared[:, i, 0, None, :], out=nearest)
    edge = (radii.astype(np.float32)[:, None, None] - np.sqrt(nearest)) * image_size + 0.5
    return np.round(255 * np.clip(edge, 0, 1)).astype(np.uint8)


DATA_SET = DataSet(
    "glyphs",
    lambda data, root: source(data.image_size, seed=data.split_seed),
    "Drawn by this program; no terms.",
)
