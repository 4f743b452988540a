"""mini-ImageNet (Vinyals et al. 2016) with the split of Ravi & Larochelle (2017): 64, 16 and 20 classes of 600 images.

Read in the forms in which it is handed around: three pickles, the split's three CSV files with the JPEG images, or a
folder of class folders for each split.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from maml_jax.data import arrays, folder, hdf5, pickled
from maml_jax.data.account import Account
from maml_jax.data.archive import Folder
from maml_jax.data.augment import IMAGENET_STATISTICS
from maml_jax.data.dataset import DataSet
from maml_jax.data.images import Look
from maml_jax.data.layout import split_folders
from maml_jax.data.lists import listed
from maml_jax.data.source import SPLITS, LazySplits, MissingFiles, Source, stamp

VERSION = 2
"""Raise it with any change to the pixels or the classes' names, so that stores are built anew."""
TERMS = (
    "mini-ImageNet, images of ImageNet (https://www.image-net.org): non-commercial research and education only, under "
    "ImageNet's terms of access; cite Vinyals et al., 'Matching Networks for One Shot Learning' (2016), and, for the "
    "split, Ravi and Larochelle, 'Optimization as a Model for Few-Shot Learning' (2017)."
)
_LONG_PREFIX = "miniImageNet_category_split_"


def _others(split: str) -> list[str]:
    names = ("mini-imagenet-cache-", "mini_imagenet_", "miniimagenet_", "mini-imagenet-", "miniImageNet_", "")
    return [f"{name}{split}.{suffix}" for name in names for suffix in ("pkl", "pickle")]


# The other two pickles of the set, train_phase_val and train_phase_test, hold more images of the training classes.
_PICKLES = {
    "train": (
        f"{_LONG_PREFIX}train_phase_train.pickle",
        "train_phase_train.pickle",
        "mini_imagenet_train.pickle",
        "train.pickle",
        *_others("train"),
    ),
    "val": (f"{_LONG_PREFIX}val.pickle", "val.pickle", "mini_imagenet_val.pickle", *_others("val")),
    "test": (f"{_LONG_PREFIX}test.pickle", "test.pickle", "mini_imagenet_test.pickle", *_others("test")),
}


def source(root: str | os.PathLike[str], image_size: int = 84) -> Source:
    """mini-ImageNet as a data set: RGB, uint8 `[images, size, size, 3]` per class, classes sorted by label.

    Args:
      root: folder with the pickles, `[miniImageNet_category_split_]{train_phase_train,val,test}.pickle`, each a dict of
        `data` (uint8 `[images, 84, 84, 3]`) and `labels` (one integer per image); or with `images/` and the lists
        `[ravi_]{train,val,test}.csv` of lines `filename,label`, which may also be in `splits/`; or with class folders
        in `train/`, `val/` and `test/`. Pickles of other forms and names, and HDF5 files, are read as well; see
        `pickled` and `hdf5`. Pickles go first, then HDF5, then lists.
      image_size: side of the images in pixels; images of another size are resized, bilinearly with antialiasing.

    Raises:
      MissingFiles: if no form is complete.
      DataError: if a list is malformed. That files are undamaged shows as they are read.
    """
    root = Path(root)
    name, shape = f"mini_imagenet-{image_size}", (image_size, image_size, 3)
    account = Account("Ravi and Larochelle's, as the files have it")
    pickles = arrays.find(root, _PICKLES)
    if len(pickles) == len(SPLITS):
        splits = arrays.ArraySplits(lambda split: pickled.read(pickles[split]), pickles, image_size, account)
        fingerprint = {"version": VERSION, "files": [stamp(file) for file in pickles.values()]}
        return Source(name, fingerprint, shape, LazySplits(SPLITS, splits.classes_of), account)
    if found := hdf5.find(root, "mini_imagenet", image_size, account.rule, ["miniimagenet"]):
        return found
    tree = Folder(root)
    if root.is_dir():
        for form in (listed, split_folders):
            if len(listing := form(tree)) == len(SPLITS):
                fingerprint = {"version": VERSION, "files": [tree.stamp()]}
                return folder.image_source(name, tree, lambda: listing, Look(image_size), fingerprint, account)
    raise _missing(root, pickles)


def _missing(root: Path, pickles: Mapping[str, Path]) -> MissingFiles:
    no_pickles = [names[0] for split, names in _PICKLES.items() if split not in pickles]
    return MissingFiles(
        f"mini-ImageNet is not complete in {root.absolute()}: as pickles it lacks {', '.join(no_pickles)} (or the same "
        f"without '{_LONG_PREFIX}'); as images it needs train.csv, val.csv, test.csv and images/, or class folders in "
        "train/, val/ and test/. Get the pickles that https://github.com/kjunelee/MetaOptNet distributes, or the lists "
        "of https://github.com/twitter-archive/meta-learning-lstm and the images of ImageNet",
        {"data.dir": "FOLDER"},
    )


DATA_SET = DataSet(
    "mini_imagenet",
    lambda data, root: source(root, data.image_size),
    TERMS,
    IMAGENET_STATISTICS,
    {"train": 64, "val": 16, "test": 20},
)
