"""Ink on paper becomes bright ink on black, whatever the light, and of one size, wherever it lies."""

import contextlib

import numpy as np
import pytest
from PIL import Image

from maml_jax.data import paper
from maml_jax.errors import DataError


def page(light=1.0, left=60, top=40, thick=12):
    """An L of ink of 120 x 80 pixels on a page of 400 x 300, float `[300, 400]`."""
    image = np.full((300, 400), 220.0)
    image[top : top + 120, left : left + thick] = 50
    image[top + 120 - thick : top + 120, left : left + 80] = 50
    return image * light


def ink(image):
    return paper.ink(Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)), 28, "it")[..., 0].astype(int)


def test_it_is_bright_on_black_in_the_middle_and_keeps_its_proportions():
    made = ink(page())
    rows, columns = (np.flatnonzero((made > 127).any(axis)) for axis in (1, 0))
    assert made.max() == 255
    assert np.median(made) == 0
    assert abs(len(rows) - 0.7 * 28) <= 1
    assert abs(len(columns) - 0.7 * 28 * 80 / 120) <= 1
    assert abs(rows[0] + rows[-1] - 27) <= 1
    assert abs(columns[0] + columns[-1] - 27) <= 1
    assert made[10, columns[0] : columns[0] + 2].max() > 200
    assert made[10, columns[-1]] == 0, "upside down, or mirrored"


SLOPE = np.linspace(0.4, 1, 400)
CHANGES = {
    "elsewhere": page(left=250, top=150),
    "dim": page(0.4),
    "slope": page(SLOPE),
    "slope down": page(np.linspace(1, 0.5, 300)[:, None]),
    "shadow": page(1 - 0.4 / (1 + np.exp((np.arange(400) - 100) / 8))),
    "dark corner": page(1 - 0.5 * ((np.arange(400) > 360) & (np.arange(300) > 260)[:, None])),
    "grain": page() + np.random.default_rng(0).normal(0, 6, (300, 400)),
    "specks": page() - 150 * (np.indices((300, 400)).sum(0) % 350 == 349) * (np.indices((300, 400))[0] % 40 == 3),
    "large": np.kron(page(), np.ones((3, 3))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_neither_light_nor_place_nor_dirt_makes_a_difference(change):
    assert np.abs(ink(CHANGES[change]) - ink(page())).mean() < 8  # of 255; black alone is off by 30


def test_a_fine_pen_is_as_bright():
    assert ink(page(thick=3)).max() == 255


@pytest.mark.parametrize("grain", [0, 5])
def test_an_empty_page_is_refused(grain):
    empty = np.full((300, 400), 200.0) + np.random.default_rng(0).normal(0, 1, (300, 400)) * grain
    with pytest.raises(DataError, match="cannot use the picture it: there is no ink"):
        ink(empty * SLOPE)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 2)])
def test_tiny_pictures_are_refused_or_used(shape):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(float)
    with contextlib.suppress(DataError):
        assert ink(image).shape == (28, 28)
