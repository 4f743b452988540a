"""mini-ImageNet (Vinyals et al. 2016) with the split of Ravi & Larochelle (2017): 64, 16 and 20 classes of 600 images.

Read in the forms in which it is handed around: three pickles, or the split's three CSV files with the JPEG images.
"""

import csv
import functools
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maml_jax.data import images, safe_pickle
from maml_jax.data.source import SPLITS, ClassImages, LazySplits, Source, stamp, stamp_all
from maml_jax.errors import DataError

VERSION = 1
"""Raise it with any change to the pixels, so that stores are built anew."""
TERMS = (
    "mini-ImageNet, images of ImageNet (https://www.image-net.org): non-commercial research and education only, under "
    "ImageNet's terms of access; cite Vinyals et al., 'Matching Networks for One Shot Learning' (2016), and, for the "
    "split, Ravi and Larochelle, 'Optimization as a Model for Few-Shot Learning' (2017)."
)
# The other two pickles of the set, train_phase_val and train_phase_test, hold more images of the training classes.
_PICKLES = {"train": "train_phase_train.pickle", "val": "val.pickle", "test": "test.pickle"}
_LONG_PREFIX = "miniImageNet_category_split_"
_CSV_FOLDERS = (".", "splits")
_CSV_PREFIXES = ("", "ravi_")


def source(root: str | os.PathLike[str], image_size: int = 84) -> Source:
    """Returns mini-ImageNet as a data set: RGB, uint8 `[images, size, size, 3]` per class, classes sorted by label.

    Args:
      root: Folder with the pickles, `[miniImageNet_category_split_]{train_phase_train,val,test}.pickle`, each a dict of
        `data` (uint8 `[images, 84, 84, 3]`) and `labels` (one integer per image); or with `images/` and the lists
        `[ravi_]{train,val,test}.csv` of lines `filename,label`, which may also be in `splits/`. Pickles go first.
      image_size: Side of the images in pixels; images of another size are resized, bilinearly with antialiasing.

    Raises:
      DataError: If neither form is complete, or a list is malformed. That files are undamaged shows as they are read.
    """
    root = Path(root)
    pickles = _find_pickles(root)
    lists = _find_lists(root)
    if len(pickles) == len(SPLITS):
        classes_of, files = _Pickles(pickles, image_size).classes_of, [stamp(file) for file in pickles.values()]
    elif len(lists) == len(SPLITS) and (root / "images").is_dir():
        listed = {split: _read_list(file) for split, file in lists.items()}
        classes_of = functools.partial(_listed_classes, root / "images", listed, image_size)
        files = [*(stamp(file) for file in lists.values()), _stamp_images(root / "images", listed)]
    else:
        raise _missing(root, pickles, lists)
    fingerprint = {"version": VERSION, "files": files}
    return Source(
        f"mini_imagenet-{image_size}", fingerprint, (image_size, image_size, 3), LazySplits(SPLITS, classes_of)
    )


def _find_pickles(root: Path) -> dict[str, Path]:
    """Returns the pickles that are there, by split."""
    found = {}
    for split, name in _PICKLES.items():
        for file in (root / f"{_LONG_PREFIX}{name}", root / name):
            if file.is_file():
                found.setdefault(split, file)
    return found


def _find_lists(root: Path) -> dict[str, Path]:
    """Returns the CSV lists that are there, by split."""
    found = {}
    for split in SPLITS:
        for file in (root / folder / f"{prefix}{split}.csv" for folder in _CSV_FOLDERS for prefix in _CSV_PREFIXES):
            if file.is_file():
                found.setdefault(split, file)
    return found


def _missing(root: Path, pickles: Mapping[str, Path], lists: Mapping[str, Path]) -> DataError:
    no_pickles = [f"{_LONG_PREFIX}{name}" for split, name in _PICKLES.items() if split not in pickles]
    no_lists = [f"{split}.csv" for split in SPLITS if split not in lists]
    if not (root / "images").is_dir():
        no_lists.append("images/")
    return DataError(
        f"mini-ImageNet is not complete in {root.absolute()}: as pickles it lacks {', '.join(no_pickles)} (or the same "
        f"without '{_LONG_PREFIX}'); as images it lacks {', '.join(no_lists)}. Get the pickles that "
        "https://github.com/kjunelee/MetaOptNet distributes, or the lists of "
        "https://github.com/twitter-archive/meta-learning-lstm and the images of ImageNet, and set "
        "--config.data.dir=FOLDER"
    )


class _Pickles:
    """Reads classes from the pickles, of which it keeps one in memory: the largest has 813 MB of images."""

    def __init__(self, files: Mapping[str, Path], image_size: int):
        self._files = files
        self._image_size = image_size
        self._held: tuple[str, np.ndarray, np.ndarray] | None = None

    def classes_of(self, split: str) -> list[ClassImages]:
        """Lists the classes of a split."""
        _, labels = self._read(split)
        origin = str(self._files[split])
        # The split is part of the name because some pickles number the classes of every split from 0.
        return [
            ClassImages(f"{split}/{label}", int(count), functools.partial(self._load, split, label), origin)
            for label, count in zip(*np.unique(labels, return_counts=True), strict=True)
        ]

    def _load(self, split: str, label: int) -> np.ndarray:
        data, labels = self._read(split)
        chosen = data[labels == label]
        if chosen.shape[1:3] == (self._image_size, self._image_size):
            return chosen
        return np.stack([_square(Image.fromarray(image), self._image_size) for image in chosen])

    def _read(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns data and labels of a split."""
        if self._held is None or self._held[0] != split:
            self._held = None  # freed before the next is read, not after
            self._held = (split, *_read_pickle(self._files[split]))
        return self._held[1:]


def _read_pickle(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns a pickle's `data`, uint8 `[images, height, width, 3]`, and `labels`, integer `[images]`, checked."""
    content = safe_pickle.load(file)
    if not isinstance(content, dict):
        raise DataError(f"{file} holds a {type(content).__name__}, expected a dict with 'data' and 'labels'")
    content = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}
    if not {"data", "labels"} <= content.keys():
        raise DataError(f"{file} has the keys {', '.join(map(repr, content))}, expected 'data' and 'labels'")
    data = _as_array(content["data"], file, "data")
    labels = _as_array(content["labels"], file, "labels")
    if data.dtype != np.uint8 or data.ndim != 4 or data.shape[-1] != 3:
        raise DataError(f"{file}: 'data' is {data.dtype} {list(data.shape)}, expected uint8 [images, height, width, 3]")
    if labels.dtype.kind not in "iu" or labels.shape != data.shape[:1]:
        found = f"{labels.dtype} {list(labels.shape)}"
        raise DataError(f"{file}: 'labels' is {found}, expected one integer for each of {len(data)} images")
    return data, labels


def _as_array(value: Any, file: Path, key: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise DataError(f"{file}: the elements of '{key}' differ in shape") from error


def _read_list(file: Path) -> dict[str, list[str]]:
    """Returns the file names of each label of a CSV list, sorted by label."""
    by_label = defaultdict(list)
    with file.open(encoding="utf-8", newline="") as lines:
        for number, line in enumerate(csv.reader(lines), 1):
            if not line or line == ["filename", "label"]:
                continue
            if len(line) != 2:
                raise DataError(f"{file} line {number} is '{','.join(line)}', expected 'filename,label'")
            by_label[line[1].strip()].append(line[0].strip())
    return dict(sorted(by_label.items()))


def _stamp_images(folder: Path, listed: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, Any]:
    """Returns one stamp for all images that the lists name."""
    names = [name for by_label in listed.values() for files in by_label.values() for name in files]
    try:
        return stamp_all(folder, names)
    except OSError as error:
        raise DataError(f"the lists of mini-ImageNet name an image that cannot be read: {error}") from error


def _listed_classes(
    folder: Path, listed: Mapping[str, Mapping[str, Sequence[str]]], image_size: int, split: str
) -> list[ClassImages]:
    def load(names: Sequence[str]) -> np.ndarray:
        return np.stack([_square(_open_image(folder / name), image_size) for name in names])

    return [
        ClassImages(label, len(names), functools.partial(load, names), str(folder))
        for label, names in listed[split].items()
    ]


def _open_image(file: Path) -> Image.Image:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error}") from error
    return images.decode(content, "RGB", str(file))


def _square(image: Image.Image, image_size: int) -> np.ndarray:
    return images.to_square(image, image_size, Image.Resampling.BILINEAR)
