"""Stanford Dogs (Khosla et al. 2011): 120 breeds, 20,580 images of ImageNet, in the split of DN4.

The images are ImageNet's: a model that was trained on ImageNet, or on mini-ImageNet, may have seen some of them.
"""

import os
import re
from pathlib import Path

from maml_jax.data import folder
from maml_jax.data.dataset import DataSet
from maml_jax.data.download import Download
from maml_jax.data.images import Look
from maml_jax.data.layout import by_last_folder
from maml_jax.data.published import PublishedSplit
from maml_jax.data.source import MissingFiles, Source

VERSION = 1
"""Raise it with any change to the pixels, so that stores are built anew."""
TERMS = (
    "Stanford Dogs (http://vision.stanford.edu/aditya86/ImageNetDogs/), images of ImageNet "
    "(https://www.image-net.org): non-commercial research and education only, under ImageNet's terms of access; cite "
    "Khosla et al., 'Novel Dataset for Fine-Grained Image Categorization' (2011), and, for the split, Li et al., "
    "'Revisiting Local Descriptor based Image-to-Class Measure for Few-shot Learning' (2019: DN4)."
)
ARCHIVE = Download(
    "images.tar",
    "http://vision.stanford.edu/aditya86/ImageNetDogs/images.tar",
    793_579_520,
    "a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
)


def _wordnet(name: str) -> str:
    match = re.match(r"n\d{8}(?!\d)", name)
    return match[0] if match else ""


SPLIT = PublishedSplit("dn4", "dogs", "that of DN4", _wordnet)


def source(root: str | os.PathLike[str], split: str = "", image_size: int = 84, seed: int = 0) -> Source:
    """Stanford Dogs as a data set: RGB, uint8 `[images, size, size, 3]` per class, classes sorted by name.

    The images are whole: the bounding boxes are not used, as they are not by DN4.

    Args:
      root: folder with `images.tar`, or with the class folders `n02085620-Chihuahua`, ... at whatever depth.
      split: 'dn4' (or ''): 70, 20 and 30 classes. Or 'random', or a JSON file; see `PublishedSplit.source`.
      image_size: side of the images in pixels, to which they are resized, bilinearly with antialiasing.
      seed: of a random split.

    Raises:
      ConfigError: if there is no such split.
      MissingFiles: if there are no images. That files are undamaged shows as they are read.
    """
    root = Path(root)
    if not root.exists():
        raise _missing(root)
    tree = folder.open_root(root, ARCHIVE.file)
    fingerprint = {"version": VERSION, "files": [tree.stamp()]}
    return SPLIT.source(
        tree, lambda account: by_last_folder(tree), _missing(root), Look(image_size), split, seed, fingerprint
    )


def _missing(root: Path) -> MissingFiles:
    return MissingFiles(
        f"Stanford Dogs is not in {root.absolute()}: it needs {ARCHIVE.file}, or the images in class folders such as "
        "Images/n02085620-Chihuahua; get it from http://vision.stanford.edu/aditya86/ImageNetDogs/ (or "
        "https://www.kaggle.com/datasets/jessicali9530/stanford-dogs-dataset)",
        {"data.dir": "FOLDER"},
    )


DATA_SET = DataSet(
    "dogs",
    lambda data, root: source(root, data.split, data.image_size, data.split_seed),
    TERMS,
    classes={"train": 70, "val": 20, "test": 30},
    downloads=(ARCHIVE,),
)
