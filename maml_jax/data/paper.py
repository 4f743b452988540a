"""Characters photographed on paper, brought to the form of characters that are drawn: bright ink on black, centred."""

import numpy as np
from PIL import Image

from maml_jax.errors import DataError

_WORKING = 480  # pixels of the longer side
_WINDOW = 1 / 6  # of the longer side, and wider than any stroke: what is dark over more of it is shadow
_FAINTEST = 0.12  # the least that ink takes of the light
_SPECK = 0.01  # of all ink; what is less is dirt
_FILLED = 0.7  # of the square's side, by the larger side of the ink: that of glyphs is 0.75, of Omniglot 0.64


def ink(picture: Image.Image, size: int, origin: str) -> np.ndarray:
    """Finds the ink, and draws it bright on black in the middle of a square, as large as characters are in training.

    1. The brightness of the paper is what remains when all that is narrower than a window is taken away: a grey
       closing. Ink is where the picture is darker than that, by the share of light that it takes, so uneven light and
       shadows cancel.
    2. What is less than noise is black, and what is as dark as most of the ink is white.
    3. Specks are left out. The rest is cut out, and scaled with its proportions.
    4. Lines that were thinner than a pixel of the square, and so grey, are made white as those of a thicker pen.

    Args:
      picture: grey or in colour.
      size: pixels of the square's side.
      origin: of the picture, for messages.

    Returns:
      uint8 `[size, size, 1]`.

    Raises:
      DataError: there is no ink.
    """
    drawn = _contrast(_darkness(picture), origin)
    top, bottom, left, right = _box(drawn, origin)
    side = max(bottom - top, right - left) / _FILLED
    middle = (left + right) / 2, (top + bottom) / 2
    reach = int(np.ceil(side))  # so that the square lies within
    canvas = np.pad((255 * drawn).astype(np.uint8), reach)
    square = tuple(reach + m + half for half in (-side / 2, side / 2) for m in middle)
    made = Image.fromarray(canvas).resize((size, size), Image.Resampling.BILINEAR, square)
    return _white(np.asarray(made))[..., None]


def _darkness(picture: Image.Image) -> np.ndarray:
    """The share of the light that ink takes away: float32 `[height, width]`."""
    from scipy import ndimage  # takes long to import

    scale = min(1, _WORKING / max(picture.size))
    small = picture.convert("L").resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BOX)
    light = np.asarray(small, np.float32) + 1
    window = max(3, round(max(light.shape) * _WINDOW))
    # A window may reach beyond the picture, where nothing is bright: so a dark corner is paper in shadow.
    paper = ndimage.grey_closing(np.pad(light, window), window)[window:-window, window:-window]
    paper = np.maximum(ndimage.gaussian_filter(paper, window / 8), light)
    return 1 - light / paper


def _contrast(dark: np.ndarray, origin: str) -> np.ndarray:
    """Ink from 0 to 1, without the paper's grain."""
    usual = np.median(dark)
    grain = usual + 5 * 1.4826 * np.median(np.abs(dark - usual))
    darkest = np.percentile(dark, 99.9)
    full = np.median(dark[dark >= darkest / 2])
    if full < max(_FAINTEST, grain):
        raise DataError(f"cannot use the picture {origin}: there is no ink on paper to be seen")
    empty = max(grain, full / 4)
    return np.clip((dark - empty) / (0.9 * full - min(empty, full / 2)), 0, 1)


def _white(image: np.ndarray) -> np.ndarray:
    """Ink made so bright that a tenth of it is white, at most by a factor of four."""
    lit = image[image > 20]
    most = max(np.percentile(lit, 90), 64) if lit.size else 255
    return np.minimum(image * (255 / most), 255).astype(np.uint8)


def _box(drawn: np.ndarray, origin: str) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the ink; blackens specks."""
    from scipy import ndimage

    parts, _ = ndimage.label(drawn > 0.5, np.ones((3, 3)))
    areas = np.bincount(parts.ravel())
    areas[0] = 0
    kept = (areas >= _SPECK * areas.sum())[parts] & (parts > 0)
    drawn *= ndimage.binary_dilation(kept, iterations=3)
    rows, columns = np.flatnonzero(kept.any(1)), np.flatnonzero(kept.any(0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
