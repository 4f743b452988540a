import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from maml_jax.data import glyphs, store

GOLDEN = [
    [0, 0, 0, 0, 0, 0, 0],
    [0, 28.7, 6.1, 92.4, 23.1, 0, 0],
    [0, 82.3, 88.9, 4.6, 113.8, 53.1, 0],
    [0, 0, 0, 3.8, 138.1, 16.3, 0],
    [0, 0, 0, 49.9, 38.2, 20.1, 0],
    [0, 0, 0, 4.7, 70.8, 21.3, 0],
    [0, 0, 0, 0, 0, 0, 0],
]
"""Image 0 of character 0 of seed 0, as means of blocks of 4 by 4 pixels."""


def test_default_alphabet():
    source = glyphs.source()
    assert {split: len(classes) for split, classes in source.splits.items()} == {"train": 900, "val": 100, "test": 200}
    names = [c.name for classes in source.splits.values() for c in classes]
    assert len(set(names)) == 1200
    assert {c.count for classes in source.splits.values() for c in classes} == {20}


@hypothesis.given(classes=st.integers(12, 3000))
def test_every_class_is_in_one_split(classes):
    splits = glyphs.source(classes=classes).splits
    names = [c.name for split in splits.values() for c in split]
    assert len(names) == len(set(names)) == classes
    assert all(splits.values())


def test_source_builds(tmp_path):
    path = store.build(glyphs.source(16, classes=12, images_per_class=3), tmp_path, progress=False)
    opened = store.open_store(path, "test")
    assert opened.images.shape == (6, 16, 16, 1)
    np.testing.assert_array_equal(opened.class_images(1), glyphs.render(0, 11, 3, 16))


@pytest.mark.parametrize("size", [1, 14, 28, 84])
def test_sizes(size):
    images = glyphs.render(0, 5, 2, size)
    assert images.shape == (2, size, size, 1)
    assert images.dtype == np.uint8


def test_images_depend_on_seed_class_and_index_only():
    images = glyphs.render(0, 7, 20, 28)
    np.testing.assert_array_equal(images, glyphs.render(0, 7, 20, 28))
    np.testing.assert_array_equal(images[:4], glyphs.render(0, 7, 4, 28))
    few, many = glyphs.source(classes=12).splits, glyphs.source(classes=1200).splits
    np.testing.assert_array_equal(few["train"][7].load(), many["train"][7].load())
    np.testing.assert_array_equal(few["train"][7].load(), images)
    assert len({image.tobytes() for image in images}) == 20
    assert not np.array_equal(images, glyphs.render(0, 8, 20, 28))
    assert not np.array_equal(images, glyphs.render(1, 7, 20, 28))


def test_fingerprint_tells_settings_apart():
    sources = [glyphs.source(), glyphs.source(32), glyphs.source(classes=100), glyphs.source(seed=1)]
    sources.append(glyphs.source(images_per_class=21))
    assert len({source.digest() for source in sources}) == 5
    assert glyphs.source().digest() == glyphs.source().digest()


def test_pixels_stay_as_released():
    """Fails when the pixels change: then raise `glyphs.VERSION`. Tolerates rounding on other processors."""
    image = glyphs.render(0, 0, 1, 28)[0, ..., 0].astype(float)
    blocks = image.reshape(7, 4, 7, 4).mean((1, 3))
    np.testing.assert_allclose(blocks, GOLDEN, atol=1.0)


def test_bright_ink_on_black():
    images = np.concatenate([glyphs.render(0, c, 5, 28) for c in range(40)]).astype(float)
    assert images.max() == 255
    assert 0.05 < images.mean() / 255 < 0.15
    assert np.median(images) == 0
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]])
    assert border.mean() < 0.15 * images.mean(), "characters run out of their images"


def test_one_shot_by_pixels_is_neither_trivial_nor_hopeless():
    images = np.stack([glyphs.render(0, c, 6, 28) for c in range(1000, 1060)]).reshape(60, 6, -1).astype(np.float32)
    images /= np.linalg.norm(images, axis=-1, keepdims=True)
    rng = np.random.default_rng(0)
    right = []
    for _ in range(300):
        task = images[rng.choice(60, 5, replace=False)]
        nearest = np.argmax(task[:, 1:] @ task[:, 0].T, axis=-1)
        right.append(np.mean(nearest == np.arange(5)[:, None]))
    assert 0.5 < np.mean(right) < 0.75


def test_spline_passes_through_its_knots():
    knots = np.random.default_rng(0).normal(size=(3, 5, 2))
    np.testing.assert_allclose(glyphs._spline(knots, 41)[:, ::10], knots, atol=1e-12)


def test_spline_of_two_knots_is_their_line():
    knots = np.array([[[0.0, 1.0], [2.0, 5.0]]])
    np.testing.assert_allclose(glyphs._spline(knots, 5)[0], [[0, 1], [0.5, 2], [1, 3], [1.5, 4], [2, 5]], atol=1e-12)


def test_ink_of_a_dot():
    """A dot of radius 2 pixels in the middle of pixel (4, 6): x is the column, y the row."""
    image = glyphs._ink(np.array([[[0.65, 0.45]]]), np.array([0.2]), 10)[0].astype(int)
    assert (image[4, 6], image[4, 7], image[5, 6]) == (255, 255, 255)
    assert image[4, 8] == pytest.approx(128, abs=1)  # half a pixel of the edge
    assert (image[4, 9], image[0, 0]) == (0, 0)
    np.testing.assert_allclose(image[:, 4:9], image[:, 8:3:-1], atol=1)
