"""tiered-ImageNet (Ren et al. 2018): 608 classes of ImageNet, split by superclass into 351, 97 and 160.

Read in the forms in which it is handed around: NumPy archives of BGR images, pickled lists of PNG files, or JPEG images
in class folders.
"""

import os
from pathlib import Path

from maml_jax.data import arrays, folder, hdf5, npz, pickled
from maml_jax.data.account import Account
from maml_jax.data.archive import Folder
from maml_jax.data.dataset import DataSet
from maml_jax.data.images import Look
from maml_jax.data.layout import class_folders, split_folders
from maml_jax.data.source import SPLITS, LazySplits, MissingFiles, Source, published_split, stamp

VERSION = 1
"""Raise it with any change to the pixels, so that stores are built anew."""
TERMS = (
    "tiered-ImageNet, images of ImageNet (https://www.image-net.org): non-commercial research and education only, "
    "under ImageNet's terms of access; cite Ren et al., 'Meta-Learning for Semi-Supervised Few-Shot Classification' "
    "(2018)."
)
_STATISTICS = ((0.478, 0.456, 0.410), (0.279, 0.274, 0.286))
_FORMS = (
    ("_images.npz", npz.read_npz),
    ("_images_png.pkl", npz.read_encoded),
    ("_images_png.pickle", npz.read_encoded),
    ("_images.pkl", npz.read_encoded),
)
_PREFIXES = ("tiered-imagenet-cache-", "tiered_imagenet_", "tieredimagenet_", "tiered-imagenet-", "tieredImageNet_", "")


def source(root: str | os.PathLike[str], image_size: int = 84) -> Source:
    """tiered-ImageNet as a data set: RGB, uint8 `[images, size, size, 3]` per class, classes sorted by label.

    Args:
      root: folder with `{train,val,test}_labels.pkl`, each a dict of `labels` (or `label_specific`, and perhaps its
        names, `label_specific_str`), and either `{train,val,test}_images.npz`, of which `images` is uint8
        `[images, 84, 84, 3]` in the order blue, green, red, or `{train,val,test}_images_png.pkl`, each a list of PNG
        files; or with class folders in `train/`, `val/` and `test/`; or with class folders by WordNet number, as in
        ImageNet, of which others than these 608 are left out. Pickles of whole splits and HDF5 files are read as well;
        see `pickled` and `hdf5`.
      image_size: side of the images in pixels; images of another size are resized, bilinearly with antialiasing.

    Raises:
      MissingFiles: if no form is complete. That files are undamaged shows as they are read.
    """
    root = Path(root)
    name, shape = f"tiered_imagenet-{image_size}", (image_size, image_size, 3)
    account = Account("Ren et al.'s, as the files have it")
    labels = arrays.find(root, {split: [f"{split}_labels.pkl", f"{split}_labels.pickle"] for split in SPLITS})
    for suffix, read in _FORMS:
        files = arrays.find(root, {split: [f"{split}{suffix}"] for split in SPLITS})
        if len(files) == len(labels) == len(SPLITS):
            read_split = lambda split: read(files[split], labels[split])  # noqa: B023, E731
            splits = arrays.ArraySplits(read_split, files, image_size, account)
            fingerprint = {"version": VERSION, "files": [stamp(file) for file in (*files.values(), *labels.values())]}
            return Source(name, fingerprint, shape, LazySplits(SPLITS, splits.classes_of), account)
    names = {s: [f"{prefix}{s}.{end}" for prefix in _PREFIXES for end in ("pkl", "pickle")] for s in SPLITS}
    whole = arrays.find(root, names)
    if len(whole) == len(SPLITS):
        splits = arrays.ArraySplits(lambda split: pickled.read(whole[split]), whole, image_size, account)
        fingerprint = {"version": VERSION, "files": [stamp(file) for file in whole.values()]}
        return Source(name, fingerprint, shape, LazySplits(SPLITS, splits.classes_of), account)
    if found := hdf5.find(root, "tiered_imagenet", image_size, account.rule, ["tieredimagenet"]):
        return found
    if root.is_dir():
        tree = Folder(root)
        listing = split_folders(tree)
        if len(listing) < len(SPLITS):
            classes, names = class_folders(tree, depth=1), published_split("tiered_imagenet")
            listing = {split: {n: classes[n] for n in names[split] if n in classes} for split in SPLITS}
        if all(listing.values()):
            fingerprint = {"version": VERSION, "files": [tree.stamp()]}
            return folder.image_source(name, tree, lambda: listing, Look(image_size), fingerprint, account)
    raise MissingFiles(
        f"tiered-ImageNet is not complete in {root.absolute()}: it needs {{train,val,test}}_labels.pkl with "
        "{train,val,test}_images.npz or _images_png.pkl, or class folders by WordNet number, in train/, val/ and test/ "
        "or all in one. Get the files that https://github.com/renmengye/few-shot-ssl-public distributes, or the images "
        "of ImageNet",
        {"data.dir": "FOLDER"},
    )


DATA_SET = DataSet(
    "tiered_imagenet",
    lambda data, root: source(root, data.image_size),
    TERMS,
    _STATISTICS,
    {"train": 351, "val": 97, "test": 160},
)
