"""meta-iNat (Wertheimer & Hariharan 2019): 1,135 species of iNaturalist 2017, 908 for training and 227 for the test."""

import os
from pathlib import Path

from maml_jax.data import folder
from maml_jax.data.account import Account
from maml_jax.data.archive import Folder
from maml_jax.data.dataset import DataSet
from maml_jax.data.images import Look
from maml_jax.data.lists import listed
from maml_jax.data.source import MissingFiles, Source

VERSION = 1
"""Raise it with any change to the pixels, so that stores are built anew."""
TERMS = (
    "iNaturalist 2017 (https://github.com/visipedia/inat_comp/tree/master/2017), photographs of iNaturalist's users, "
    "who hold the rights: non-commercial research and education only; cite Van Horn et al., 'The iNaturalist Species "
    "Classification and Detection Dataset' (2018), and, for the split, Wertheimer and Hariharan, 'Few-Shot Learning "
    "with Localization in Realistic Settings' (2019)."
)


def source(root: str | os.PathLike[str], image_size: int = 84) -> Source:
    """meta-iNat as a data set: RGB, uint8 `[images, size, size, 3]` per class, classes sorted by label.

    There is no validation split.

    Args:
      root: folder with `images/` and `fs-splits/{train,test}.csv`, lists of lines `path,label`.
      image_size: side of the images in pixels, to which they are resized, bilinearly with antialiasing.

    Raises:
      MissingFiles: if the lists are not there.
      DataError: if a list is malformed or names what is not there.
    """
    root = Path(root)
    tree = Folder(root)
    listing = listed(tree) if root.is_dir() else {}
    if not {"train", "test"} <= set(listing):
        raise MissingFiles(
            f"meta-iNat is not complete in {root.absolute()}: it needs images/ with the training images of iNaturalist "
            "2017 (https://github.com/visipedia/inat_comp/tree/master/2017; 186 GB) and fs-splits/train.csv and "
            "test.csv of lines 'path,label' (https://github.com/daviswer/fewshotlocal makes them)",
            {"data.dir": "FOLDER"},
        )
    fingerprint, account = {"version": VERSION, "files": [tree.stamp()]}, Account("as the lists have it")
    return folder.image_source(f"inat2017-{image_size}", tree, lambda: listing, Look(image_size), fingerprint, account)


DATA_SET = DataSet(
    "inat2017",
    lambda data, root: source(root, data.image_size),
    TERMS,
    ((0.4905, 0.4961, 0.4330), (0.1737, 0.1713, 0.1779)),
    {"train": 908, "test": 227},
)
