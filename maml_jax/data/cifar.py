"""CIFAR-FS (Bertinetto et al. 2019) and FC100 (Oreshkin et al. 2018): CIFAR-100's 100 classes of 600 images, split.

Read in the forms in which they are handed around: three pickles, CIFAR-100's own archive, or images in class folders.
"""

import functools
import os
from pathlib import Path

import numpy as np

from maml_jax.data import arrays, folder, hdf5, images, pickled, safe_pickle
from maml_jax.data.account import Account
from maml_jax.data.archive import Tree, open_tree
from maml_jax.data.dataset import DataSet
from maml_jax.data.download import Download
from maml_jax.data.images import Look
from maml_jax.data.layout import by_last_folder
from maml_jax.data.source import SPLITS, ClassImages, LazySplits, MissingFiles, Source, published_split, stamp
from maml_jax.errors import DataError

VERSION = 1
"""Raise it with any change to the pixels, so that stores are built anew."""
IMAGE_SIZE = 32
_CITATIONS = {
    "cifar_fs": "Bertinetto et al., 'Meta-learning with differentiable closed-form solvers' (2019)",
    "fc100": "Oreshkin, Rodríguez López and Lacoste, 'TADAM: Task dependent adaptive metric' (2018)",
}
TERMS = {
    name: "images of CIFAR-100 (https://www.cs.toronto.edu/~kriz/cifar.html), given for research without a licence; "
    f"cite Krizhevsky, 'Learning Multiple Layers of Features from Tiny Images' (2009), and, for the split, {citation}."
    for name, citation in _CITATIONS.items()
}
ARCHIVE = Download(
    "cifar-100-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    169_001_437,
    "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
)
_STATISTICS = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
_PREFIXES = {"cifar_fs": "CIFAR_FS_", "fc100": "FC100_"}
_HDF5_FOLDERS = {"cifar_fs": ["cifar-fs", "cifar100/cifar-fs"], "fc100": ["fc100", "cifar100/fc100"]}
_OFFICIAL = "cifar-100-python"


def source(root: str | os.PathLike[str], name: str, image_size: int = IMAGE_SIZE) -> Source:
    """CIFAR-FS or FC100 as a data set: RGB, uint8 `[600, size, size, 3]` per class, classes sorted by name.

    Args:
      root: folder with `[CIFAR_FS_]{train,val,test}.pickle` (`FC100_` for FC100), each a dict of `data` (uint8
        `[images, 32, 32, 3]`) and `labels` (one integer per image); or with `cifar-100-python.tar.gz`, or the folder
        `cifar-100-python` that it unpacks to; or with class folders named as CIFAR-100's fine labels, at whatever
        depth, or a zip or tar archive of such, such as `cifar100.zip`. The first found is taken.
      name: 'cifar_fs' or 'fc100'.
      image_size: side of the images in pixels, to which they are resized, bilinearly with antialiasing.

    Raises:
      MissingFiles: if no form is complete. That files are undamaged shows as they are read.
    """
    root = Path(root)
    account = Account(f"that of {_CITATIONS[name]}")
    pickles = arrays.find(root, {split: _names(name, split) for split in SPLITS})
    if len(pickles) == len(SPLITS):
        read = functools.partial(_read_pickle, pickles, name)
        classes_of = arrays.ArraySplits(read, pickles, image_size, account).classes_of
        files = [stamp(file) for file in pickles.values()]
    elif found := hdf5.find(root, name, image_size, account.rule, _HDF5_FOLDERS[name]):
        return found
    elif tree := _find_official(root):
        classes_of = _Official(tree, name, image_size).classes_of
        files = [stamp(tree.path)] if tree.path.is_file() else [stamp(tree.path / part) for part in ("train", "test")]
    elif root.exists():
        tree = folder.open_root(root, "cifar100.zip")
        listing = functools.partial(_listing, tree, name)
        fingerprint = {"version": VERSION, "files": [tree.stamp()]}
        look = Look(image_size, native=IMAGE_SIZE)
        return folder.image_source(f"{name}-{image_size}", tree, listing, look, fingerprint, account)
    else:
        raise _missing(root, name)
    shape, fingerprint = (image_size, image_size, 3), {"version": VERSION, "files": files}
    return Source(f"{name}-{image_size}", fingerprint, shape, LazySplits(SPLITS, classes_of), account)


def _names(name: str, split: str) -> list[str]:
    return [f"{prefix}{split}.{suffix}" for suffix in ("pickle", "pkl") for prefix in (_PREFIXES[name], "")]


def fine_labels() -> list[str]:
    """The names of CIFAR-100's fine labels, in the order of their numbers, which is the alphabet's."""
    return sorted(name for names in published_split("cifar_fs").values() for name in names)


def _read_pickle(pickles: dict[str, Path], name: str, split: str) -> arrays.Labelled:
    """Reads a split's pickle; labels that are CIFAR-100's own for exactly that split's classes get their names."""
    labelled = pickled.read(pickles[split], IMAGE_SIZE)
    numbered = {label: fine for label, fine in enumerate(fine_labels()) if fine in published_split(name)[split]}
    return labelled._replace(names=numbered) if set(labelled.labels.tolist()) == set(numbered) else labelled


def _find_official(root: Path) -> Tree | None:
    for path in (root / ARCHIVE.file, root / _OFFICIAL, root):
        if path.is_file() or all((path / part).is_file() for part in ("train", "test", "meta")):
            return open_tree(path)
    return None


class _Official:
    """CIFAR-100's own archive: pickles of 50,000 and 10,000 images, held in memory (184 MB)."""

    def __init__(self, tree: Tree, name: str, image_size: int):
        self._tree = tree
        self._splits = published_split(name)
        self._image_size = image_size

    @functools.cached_property
    def _content(self) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 `[60000, 32, 32, 3]` and fine labels."""
        parts = [self._read(part) for part in ("train", "test")]
        return tuple(np.concatenate(both) for both in zip(*parts, strict=True))

    def _read(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        packed = self._tree.path.is_file()
        member = f"{_OFFICIAL}/{part}" if packed else part
        origin = f"{member} in {self._tree.path}"
        content = safe_pickle.loads(self._tree.read(member), origin)
        content = arrays.require(content, ["data", "fine_labels"], origin)
        data, labels = (arrays.as_array(content[key], origin, key) for key in ("data", "fine_labels"))
        if data.dtype != np.uint8 or data.shape != (len(labels), 3 * IMAGE_SIZE**2) or labels.dtype.kind not in "iu":
            found = f"'data' {data.dtype} {list(data.shape)} and 'fine_labels' {labels.dtype} {list(labels.shape)}"
            raise DataError(f"{origin} holds {found}, expected uint8 [images, 3072] and one integer per image")
        if not np.isin(labels, np.arange(len(fine_labels()))).all():
            raise DataError(f"{origin} has fine labels from {labels.min()} to {labels.max()}, expected 0 to 99")
        return data.reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE).transpose(0, 2, 3, 1), labels

    def classes_of(self, split: str) -> list[ClassImages]:
        """Lists the classes of a split."""
        data, labels = self._content
        numbers = {fine: number for number, fine in enumerate(fine_labels())}

        def load(number: int) -> np.ndarray:
            return images.resize_all(data[labels == number], self._image_size)

        return [
            ClassImages(
                fine,
                int(np.sum(labels == numbers[fine])),
                functools.partial(load, numbers[fine]),
                str(self._tree.path),
            )
            for fine in self._splits[split]
        ]


def _listing(tree: Tree, name: str) -> dict[str, dict[str, list[str]]]:
    """The images of class folders of CIFAR-100's names, at whatever depth."""
    members = by_last_folder(tree)
    names = published_split(name)
    lacking = [fine for split in SPLITS for fine in names[split] if fine not in members]
    if len(lacking) == len(fine_labels()):
        raise _missing(tree.path, name)
    if lacking:
        raise DataError(f"{tree.path} lacks {len(lacking)} of CIFAR-100's class folders, such as {lacking[0]}")
    return {split: {fine: members[fine] for fine in names[split]} for split in SPLITS}


def _missing(root: Path, name: str) -> MissingFiles:
    return MissingFiles(
        f"{name} is not in {root.absolute()}: it needs {_PREFIXES[name]}{{train,val,test}}.pickle, as "
        f"https://github.com/kjunelee/MetaOptNet distributes them, {ARCHIVE.file} of "
        "https://www.cs.toronto.edu/~kriz/cifar.html, or images in folders or an archive named as CIFAR-100's classes",
        {"data.dir": "FOLDER"},
    )


def _data_set(name: str, **classes: int) -> DataSet:
    return DataSet(
        name,
        lambda data, root: source(root, name, data.image_size),
        TERMS[name],
        _STATISTICS,
        classes,
        (ARCHIVE,),
        folder="cifar100",
    )


CIFAR_FS = _data_set("cifar_fs", train=64, val=16, test=20)
FC100 = _data_set("fc100", train=60, val=20, test=20)
DATA_SETS = (CIFAR_FS, FC100)
