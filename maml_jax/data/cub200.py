"""CUB-200-2011 (Wah et al. 2011): 200 species of birds, 11,788 images, in either of two published splits."""

import functools
import os
import re
from pathlib import Path

from maml_jax.data import folder
from maml_jax.data.download import Download
from maml_jax.data.source import SPLITS, MissingFiles, Source
from maml_jax.data.tree import Tree
from maml_jax.errors import ConfigError, DataError

VERSION = 1
"""Raise it with any change to the pixels, so that stores are built anew."""
CLASS_SPLITS = ("closerlook", "feat")
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
    """Returns CUB-200-2011 as a data set: RGB, uint8 `[images, size, size, 3]` per class, classes sorted by name.

    Args:
      root: Folder with `CUB_200_2011.tgz`, or with the class folders `001.Black_footed_Albatross`, ... at whatever
        depth; for 'feat' also with its `{train,val,test}.csv` of lines `path,label`, in `fs-splits/`, in `split/` or in
        itself.
      split: 'closerlook' (or ''), the split of 'A Closer Look at Few-shot Classification': of the classes numbered
        from 0, the even ones for training, i mod 4 = 1 for validation, i mod 4 = 3 for the test: 100, 50 and 50. Or
        'feat', another split in 100, 50 and 50, that of 'Few-Shot Learning via Embedding Adaptation with Set-to-Set
        Functions': what the lists say, which are not given here.
      image_size: Side of the images in pixels, to which they are resized, bilinearly with antialiasing.

    Raises:
      ConfigError: If there is no such split.
      MissingFiles: If there are no images. That files are undamaged shows as they are read.
    """
    split = split or CLASS_SPLITS[0]
    if split not in CLASS_SPLITS:
        raise ConfigError(f"data.split is '{split}'; choose one of {', '.join(CLASS_SPLITS)}")
    root = Path(root)
    if not root.exists():
        raise _missing(root)
    tree = folder.open_root(root, ARCHIVE.file)
    fingerprint = {"version": VERSION, "split": split, "files": [tree.stamp()]}
    listing = functools.partial(_feat if split == "feat" else _closerlook, tree)
    return folder.image_source(f"cub200-{split}-{image_size}", tree, listing, image_size, fingerprint)


def _closerlook(tree: Tree) -> folder.Listing:
    classes = {name: found for name, found in folder.by_last_folder(tree).items() if _CLASS.match(name)}
    if not classes:
        raise _missing(tree.path)
    listing = {split: {} for split in SPLITS}
    for name, found in classes.items():
        listing[("train", "val", "train", "test")[(int(name[:3]) - 1) % 4]][name] = found
    return listing


def _feat(tree: Tree) -> folder.Listing:
    if listing := folder.listed(tree):
        return listing
    raise DataError(
        f"{tree.path.absolute()} has no fs-splits/train.csv, val.csv and test.csv of lines 'path,label', which "
        "data.split=feat goes by; put those of https://github.com/Sha-Lab/FEAT (data/cub/split) there, or use "
        "--config.data.split=closerlook"
    )


def _missing(root: Path) -> MissingFiles:
    return MissingFiles(
        f"CUB-200-2011 is not in {root.absolute()}: it needs {ARCHIVE.file}, or the images in class folders such as "
        "images/001.Black_footed_Albatross; get it from https://www.vision.caltech.edu/datasets/cub_200_2011/ and set "
        "--config.data.dir=FOLDER"
    )
