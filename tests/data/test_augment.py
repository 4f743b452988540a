"""Augmentations against NumPy and Pillow on given draws, and what is drawn against its distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image, ImageEnhance

from maml_jax.data import IMAGENET_STATISTICS
from maml_jax.data.augment import AUGMENTATIONS, prepare

SIDE, SIZE, BATCH = 24, 20, 6  # stored, seen by the model
DRAWS = 20_000


@pytest.fixture(scope="module")
def stored():
    """Smooth enough for a picture, sharp enough to show a shift by a fraction of a pixel."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (BATCH, SIDE // 4, SIDE // 4, 3)).repeat(4, 1).repeat(4, 2)
    return np.clip(coarse + rng.integers(-30, 30, coarse.shape), 0, 255).astype(np.uint8)


def draw(name, batch, side=SIDE, seed=0):
    drawn = jax.jit(AUGMENTATIONS[name].draw, static_argnums=(1, 2))(jax.random.key(seed), batch, side)
    return {field: np.asarray(value) for field, value in drawn.items()}


def augmented(name, stored, size=SIZE):
    """Images under the draws of one key, and these draws."""
    draws = draw(name, len(stored), stored.shape[1], seed=3)
    images = AUGMENTATIONS[name].apply(jnp.asarray(stored, jnp.float32) / 255, size, **draws)
    return np.asarray(images), draws


def scaled(image, size, box=None):
    """A crop (top, left, height, width) of an image in [0, 1] brought to a size by Pillow, channel by channel."""
    top, left, height, width = box if box is not None else (0, 0, *image.shape[:2])
    planes = [Image.fromarray(image[..., c].astype(np.float32)) for c in range(image.shape[-1])]
    cut = (left, top, left + width, top + height)
    return np.stack([p.crop(cut).resize((size, size), Image.Resampling.BILINEAR) for p in planes], -1)


def mirrored(image, yes):
    return image[:, ::-1] if yes else image


def test_none_and_flip(stored):
    np.testing.assert_allclose(augmented("none", stored, SIDE)[0], stored / 255, rtol=1e-6)
    flipped, draws = augmented("flip", stored)
    assert 0 < draws["mirrored"].sum() < BATCH
    for image, result, yes in zip(stored / 255, flipped, draws["mirrored"], strict=True):
        np.testing.assert_allclose(result, mirrored(scaled(image, SIZE), yes), atol=1e-6)


def test_crop(stored):
    result, draws = augmented("crop", stored)
    for i in range(BATCH):
        padded = np.zeros((SIZE + 16, SIZE + 16, 3))
        padded[8:-8, 8:-8] = scaled(stored[i] / 255, SIZE)
        top, left = draws["corner"][i]
        expected = mirrored(padded[top : top + SIZE, left : left + SIZE], draws["mirrored"][i])
        np.testing.assert_allclose(result[i], expected, atol=1e-6)


def test_color(stored):
    result, draws = augmented("color", stored, SIDE)
    assert len({tuple(order) for order in draws["order"]}) > 1
    for i in range(BATCH):
        padded = np.pad(stored[i], ((8, 8), (8, 8), (0, 0)))
        top, left = draws["corner"][i]
        pixels = padded[top : top + SIDE, left : left + SIDE]
        image, picture = pixels / 255, Image.fromarray(pixels)
        for kind in draws["order"][i]:
            factor = float(draws["factors"][i][kind])
            grey = np.tensordot(image, [0.299, 0.587, 0.114], 1)[..., None]
            other = (np.zeros_like(image), np.full_like(image, grey.mean()), grey)[kind]
            image = np.clip(factor * image + (1 - factor) * other, 0, 1)
            enhancer = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[kind]
            picture = enhancer(picture).enhance(factor)
        np.testing.assert_allclose(result[i], mirrored(image, draws["mirrored"][i]), atol=1e-5)
        # Pillow cuts each of the three results down to a whole number.
        error = np.abs(result[i] * 255 - mirrored(np.asarray(picture, np.float64), draws["mirrored"][i]))
        assert error.max() < 6
        assert error.mean() < 1.5


def test_color_of_grey_images(stored):
    """Saturation leaves them alone; the others do what they do to a colour image that is grey."""
    grey = stored[..., :1]
    np.testing.assert_allclose(
        np.broadcast_to(augmented("color", grey)[0], (BATCH, SIZE, SIZE, 3)),
        augmented("color", grey.repeat(3, -1))[0],
        atol=1e-5,
    )


def test_resize(stored):
    result, draws = augmented("resize", stored)
    assert draws["box"][:, 2].min() < SIZE < draws["box"][:, 2].max(), "some scaled up, some down"
    for i in range(BATCH):
        expected = mirrored(scaled(stored[i] / 255, SIZE, draws["box"][i]), draws["mirrored"][i])
        np.testing.assert_allclose(result[i], expected, atol=5e-6)


@pytest.mark.parametrize(("size", "side", "start"), [(21, 24, 2), (28, 32, 2), (20, 22, 1)])
def test_enlarge(stored, size, side, start):
    result, _ = augmented("enlarge", stored, size)
    for image, enlarged in zip(stored / 255, result, strict=True):
        expected = scaled(image, side)[start : start + size, start : start + size]
        np.testing.assert_allclose(enlarged, expected, atol=1e-6)


def test_normalization(stored):
    plain = prepare(jax.random.key(0), stored, "none", SIDE, None)
    np.testing.assert_allclose(plain, stored / 255, rtol=1e-6)
    mean, deviation = IMAGENET_STATISTICS
    normalized = prepare(jax.random.key(0), stored, "none", SIDE, IMAGENET_STATISTICS)
    np.testing.assert_allclose(normalized, (stored / 255 - mean) / deviation, rtol=1e-4, atol=1e-5)


def uniform(values, choices):
    """Whether whole numbers 0 .. choices - 1 come equally often."""
    return scipy.stats.chisquare(np.bincount(values.ravel(), minlength=choices)).pvalue > 1e-4


@pytest.mark.parametrize("name", ["flip", "crop", "color", "resize"])
def test_half_are_mirrored_whatever_else_is_drawn(name):
    draws = draw(name, DRAWS)
    mirrored = draws.pop("mirrored")
    assert uniform(mirrored.astype(int), 2)
    for values in draws.values():
        here, there = (values[mirrored == yes].reshape(np.sum(mirrored == yes), -1)[:, 0] for yes in (True, False))
        assert scipy.stats.ks_2samp(here, there).pvalue > 1e-4


def test_crops_are_uniform():
    corner = draw("crop", DRAWS)["corner"]
    assert uniform(corner @ [17, 1], 17 * 17)


def test_color_factors_are_uniform_and_in_any_order():
    draws = draw("color", DRAWS)
    steps = draws["factors"] * 4096
    np.testing.assert_array_equal(steps, np.rint(steps), "not exact, so not the same on every device")
    for kind in range(3):
        assert scipy.stats.kstest(draws["factors"][:, kind], scipy.stats.uniform(0.6, 0.8).cdf).pvalue > 1e-4
    assert np.abs(np.corrcoef(draws["factors"].T) - np.eye(3)).max() < 0.04
    assert np.all(np.sort(draws["order"], 1) == [0, 1, 2])
    assert uniform(np.unique(draws["order"] @ [9, 3, 1], return_inverse=True)[1], 6)


@pytest.mark.parametrize("side", [28, 84])
def test_resized_crops_are_those_of_rejection_sampling(side):
    """Draw area and ratio until the crop lies in the image, then its place: the usual recipe."""
    top, left, height, width = draw("resize", DRAWS, side)["box"].T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= side).all()
    assert (left + width <= side).all()
    rng = np.random.default_rng(0)
    area = side**2 * rng.uniform(0.08, 1, 2 * DRAWS)
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), 2 * DRAWS))
    heights, widths = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
    fits = (heights <= side) & (widths <= side)
    pairs = (height, heights), (width, widths), (height * width, heights * widths), (height / width, heights / widths)
    for ours, usual in pairs:
        # Beside chance (1.36 / √(n / 2) = 0.014 at 5 %), the table's grid may shift what ties.
        assert scipy.stats.ks_2samp(ours, usual[fits]).statistic < 0.02
    for start, length in ((top, height), (left, width)):
        room = side - length
        place = (start + rng.uniform(size=DRAWS)) / (room + 1)
        assert scipy.stats.kstest(place, "uniform").pvalue > 1e-4
