"""CUB-200-2011 (Wah et al. 2011): 200 species of birds, 11,788 images, in either of two published splits."""

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path

from maml_jax.data import folder, hdf5
from maml_jax.data.account import Account
from maml_jax.data.archive import Tree
from maml_jax.data.augment import IMAGENET_STATISTICS
from maml_jax.data.dataset import DataSet
from maml_jax.data.download import Download
from maml_jax.data.images import Look
from maml_jax.data.layout import by_last_folder
from maml_jax.data.lists import listed
from maml_jax.data.source import SPLITS, MissingFiles, Source, published_split
from maml_jax.data.split import Listing
from maml_jax.errors import ConfigError

VERSION = 1
"""Raise it with any change to the pixels, so that stores are built anew."""
_PAPERS = {"closerlook": "'A Closer Look at Few-shot Classification'", "feat": "FEAT"}
CLASS_SPLITS = tuple(_PAPERS)
TERMS = (
    "Caltech-UCSD Birds-200-2011 (https://www.vision.caltech.edu/datasets/cub_200_2011/), photographs of Flickr users, "
    "who hold the rights: non-commercial research and education only; cite Wah et al. (2011), and, for the split, "
    "Chen et al., 'A Closer Look at Few-shot Classification' (2019: closerlook), or Ye et al., 'Few-Shot Learning via "
    "Embedding Adaptation with Set-to-Set Functions' (2020: feat)."
)
ARCHIVE = Download(
    "CUB_200_2011.tgz",
    "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1",
    1_150_585_339,
    "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
)
_CLASS = re.compile(r"(\d{3})\.\w")


def source(root: str | os.PathLike[str], split: str = "", image_size: int = 84) -> Source:
    """CUB-200-2011 as a data set: RGB, uint8 `[images, size, size, 3]` per class, classes sorted by name.

    Args:
      root: folder with `CUB_200_2011.tgz`, or with the class folders `001.Black_footed_Albatross`, ... at whatever
        depth. For 'feat', lists `{train,val,test}.csv` of lines `path,label`, in `fs-splits/`, in `split/` or in
        itself, go first where they are given.
      split: 'closerlook' (or ''), the split of 'A Closer Look at Few-shot Classification': of the classes numbered
        from 0, the even ones for training, i mod 4 = 1 for validation, i mod 4 = 3 for the test: 100, 50 and 50. Or
        'feat', the split of 'Few-Shot Learning via Embedding Adaptation with Set-to-Set Functions': another 100, 50
        and 50.
      image_size: side of the images in pixels, to which they are resized, bilinearly with antialiasing.

    Raises:
      ConfigError: if there is no such split.
      MissingFiles: if there are no images. That files are undamaged shows as they are read.
    """
    split = split or CLASS_SPLITS[0]
    if split not in CLASS_SPLITS:
        raise ConfigError(f"data.split is '{split}'; choose one of {', '.join(CLASS_SPLITS)}")
    root = Path(root)
    if not root.exists():
        raise _missing(root)
    if found := hdf5.find(root, "cub200", image_size, "as the JSON files of labels have it", ["cub"]):
        return found
    tree = folder.open_root(root, ARCHIVE.file)
    fingerprint = {"version": VERSION, "split": split, "files": [tree.stamp()]}
    listing = functools.partial(_feat if split == "feat" else _closerlook, tree)
    account = Account(f"that of {_PAPERS[split]}")
    return folder.image_source(f"cub200-{split}-{image_size}", tree, listing, Look(image_size), fingerprint, account)


def _closerlook(tree: Tree) -> Listing:
    return _by_number(tree, {n: ("train", "val", "train", "test")[(n - 1) % 4] for n in range(1, 201)})


def _feat(tree: Tree) -> Listing:
    if listing := listed(tree):
        return listing
    return _by_number(tree, {int(n): split for split, numbers in published_split("cub_feat").items() for n in numbers})


def _by_number(tree: Tree, split_of: Mapping[int, str]) -> Listing:
    """The images of class folders, whose split the number says that their name begins with."""
    listing: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    for name, found in by_last_folder(tree).items():
        if (match := _CLASS.match(name)) and int(match[1]) in split_of:
            listing[split_of[int(match[1])]][name] = found
    if not any(listing.values()):
        raise _missing(tree.path)
    return listing


def _missing(root: Path) -> MissingFiles:
    return MissingFiles(
        f"CUB-200-2011 is not in {root.absolute()}: it needs {ARCHIVE.file}, or the images in class folders such as "
        "images/001.Black_footed_Albatross; get it from https://www.vision.caltech.edu/datasets/cub_200_2011/",
        {"data.dir": "FOLDER"},
    )


DATA_SET = DataSet(
    "cub200",
    lambda data, root: source(root, data.split, data.image_size),
    TERMS,
    IMAGENET_STATISTICS,
    {"train": 100, "val": 50, "test": 50},
    (ARCHIVE,),
)
