"""Images that several splits have are found, whichever they are."""

import numpy as np

from maml_jax.audit.provenance import duplicates, provenance
from maml_jax.data.store import ClassStore
from tests.helpers import pixels


def stored(split, names, *images):
    return ClassStore(np.stack(images), np.arange(0, len(images) + 1, 2), tuple(names), split)


def test_images_of_two_splits():
    image = [pixels(i) for i in range(20)]
    stores = {
        "train": stored("train", "abc", *image[:6]),
        "val": stored("val", "de", *image[6:9], image[2]),
        "test": stored("test", "fgh", image[10], image[0], *image[11:13], image[6], image[4]),
    }
    found = duplicates(stores, "test", "")
    assert found == {
        "pairs": {
            "train and val": {"images": 1, "examples": ["e"]},
            "train and test": {"images": 2, "examples": ["f", "h"]},
            "val and test": {"images": 1, "examples": ["h"]},
        },
        "of_the_tested_split": 3,
    }
    told = provenance({"data": {"name": "omniglot"}}, stores, found)
    assert (told["value"], told["duplicates"]) == (3, found["pairs"])
    assert told["splits"]["test"]["images"] == 6


def test_one_bit_makes_another_image():
    image = pixels(0)
    other = image.copy()
    other[3, 4, 1] ^= 1
    stores = {"train": stored("train", "a", image, pixels(1)), "test": stored("test", "b", other, pixels(2))}
    assert duplicates(stores, "test", "") == {"pairs": {}, "of_the_tested_split": 0}
