"""Stanford Cars (Krause et al. 2013): 196 models of cars, 16,185 images, in the split of DN4."""

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from maml_jax.data import folder, matlab
from maml_jax.data.archive import Tree, is_image
from maml_jax.data.dataset import DataSet
from maml_jax.data.images import Look
from maml_jax.data.layout import by_last_folder
from maml_jax.data.matlab import MatFiles
from maml_jax.data.published import Classes, PublishedSplit
from maml_jax.data.several import Several
from maml_jax.data.source import MissingFiles, Source
from maml_jax.errors import DataError

VERSION = 1
"""Raise it with any change to the pixels, so that stores are built anew."""
TERMS = (
    "Stanford Cars (Jonathan Krause, https://ai.stanford.edu/~jkrause/cars/car_dataset.html, no longer there), images "
    "from the web, whose owners hold the rights: non-commercial research only; cite Krause et al., '3D Object "
    "Representations for Fine-Grained Categorization' (2013), and, for the split, Li et al., 'Revisiting Local "
    "Descriptor based Image-to-Class Measure for Few-shot Learning' (2019: DN4)."
)
SPLIT = PublishedSplit("dn4", "cars", "that of DN4")
_DEVKIT = "car_devkit.tgz"
_TEST = "cars_test_annos_withlabels.mat"
_FORMS: tuple[tuple[Mapping[str, str], str, str], ...] = (
    ({"cars_train": "cars_train_annos.mat", "cars_test": _TEST}, "cars_meta.mat", "fname"),
    ({"car_ims": "cars_annos.mat"}, "cars_annos.mat", "relative_im_path"),
)
"""For each form: the labels of the images of each folder, where the class names are, and the field of the paths."""


def source(root: str | os.PathLike[str], split: str = "", image_size: int = 84, seed: int = 0) -> Source:
    """Stanford Cars as a data set: RGB, uint8 `[images, size, size, 3]` per class, classes sorted by name.

    The images are whole: the bounding boxes are not used, as they are not by DN4. All its images count, those of its
    own training and test sets alike, which do not separate classes.

    Args:
      root: folder with one of these:

        - `cars_train/` and `cars_test/`, or their archives `.tgz`; the devkit, `cars_train_annos.mat` and
          `cars_meta.mat` in a folder or in `car_devkit.tgz`; and `cars_test_annos_withlabels.mat`;
        - `car_ims/`, with `cars_annos.mat`;
        - class folders `AM General Hummer SUV 2000`, ... at whatever depth, in which letters and digits count.

      split: 'dn4' (or ''): 130, 17 and 49 classes. Or 'random', or a JSON file; see `PublishedSplit.source`.
      image_size: side of the images in pixels, to which they are resized, bilinearly with antialiasing.
      seed: of a random split.

    Raises:
      ConfigError: if there is no such split.
      MissingFiles: if there are no images. That files are undamaged shows as they are read.
    """
    root = Path(root)
    if not root.exists():
        raise _missing(root)
    halves = [root / f"{half}.tgz" for half in _FORMS[0][0]]
    tree = Several(root, halves) if all(half.is_file() for half in halves) else folder.open_root(root, "car_ims.tgz")
    files = MatFiles(root, tree, _DEVKIT)
    fingerprint = {"version": VERSION, "files": [tree.stamp(), *files.stamps()]}
    return SPLIT.source(
        tree, lambda account: _classes(tree, files), _missing(root), Look(image_size), split, seed, fingerprint
    )


def _classes(tree: Tree, files: MatFiles) -> Classes:
    """The images of each class: by class folders, or else as the MATLAB files have it; nothing if there are neither."""
    folders = by_last_folder(tree)
    if any(SPLIT.known(folders).values()):
        return folders
    images = {"/".join(member.split("/")[-2:]): member for member in tree.members if is_image(member)}
    for labels, names, field in _FORMS:
        if any(path.partition("/")[0] in labels for path in images):
            return _labelled(images, files, labels, names, field)
    return {}


def _labelled(
    images: Mapping[str, str], files: MatFiles, labels: Mapping[str, str], names: str, field: str
) -> dict[str, list[str]]:
    """The images of each class as the labels of some folders have it.

    Args:
      images: the path of each image, by its last folder and its name.
      files: where the labels are.
      labels: for each folder, the file of the labels of its images.
      names: the file of the class names.
      field: of an image's path in `labels`.

    Raises:
      DataError: if a file is missing, malformed, or names an image or a class that is not there.
    """
    class_names = list(map(str, files.read(names, "class_names")))
    classes: dict[str, list[str]] = defaultdict(list)
    for place, file in labels.items():
        rows = files.read(file, "annotations")
        if not (isinstance(rows, list) and all(isinstance(row, dict) and {field, "class"} <= set(row) for row in rows)):
            raise DataError(f"'annotations' of {file} lacks {field} or class: is it the one with labels?")
        for row, number in zip(rows, matlab.integers((row["class"] for row in rows), file), strict=True):
            key = f"{place}/{str(row[field]).rpartition('/')[2]}"
            if key not in images or not 1 <= number <= len(class_names):
                raise DataError(
                    f"{file} has the image {key} of class {number}: there is no such image or no such class"
                )
            classes[class_names[number - 1]].append(images[key])
    return dict(sorted(classes.items()))


def _missing(root: Path) -> MissingFiles:
    return MissingFiles(
        f"Stanford Cars is not in {root.absolute()}: it needs cars_train/ and cars_test/, or their archives .tgz, with "
        f"{_DEVKIT} and {_TEST}; or car_ims/ with cars_annos.mat; or class folders such as AM General Hummer SUV 2000; "
        "its own page is gone: see https://github.com/pytorch/vision/issues/7545 for where copies are",
        {"data.dir": "FOLDER"},
    )


DATA_SET = DataSet(
    "cars",
    lambda data, root: source(root, data.split, data.image_size, data.split_seed),
    TERMS,
    classes={"train": 130, "val": 17, "test": 49},
)
