"""HDF5 files of images with JSON files of the classes of each split, as torchmeta makes them.

`{train,val,test}_labels.json` lists class names, or the parts of each; `{train,val,test}_data.hdf5`, or one `data.hdf5`
for all, has under each name, at the root or in the group `datasets`, the images of the class: uint8 `[images, height,
width, 3]`, or an image file as bytes for each.
"""

import functools
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maml_jax.bounded import read_bytes
from maml_jax.data import images, pixels
from maml_jax.data.account import Account
from maml_jax.data.source import SPLITS, ClassImages, LazySplits, Source, stamp
from maml_jax.errors import ConfigError, DataError

VERSION = 1
"""Raise it with any change to the pixels, so that stores are built anew."""
_MOST_COMPRESSED = 2000  # of bytes in memory to one on disk; a file may claim any number


def find(
    root: str | os.PathLike[str], name: str, image_size: int, rule: str, folders: Sequence[str] = ()
) -> Source | None:
    """The source of HDF5 files, if there are any.

    Args:
      root: where they lie.
      name: name of the data set.
      image_size: side of the images in pixels, to which they are resized, bilinearly with antialiasing.
      rule: of the split; see `Account`.
      folders: folders below `root` that they may lie in as well, of which `data.hdf5` may lie further out.
    """
    for place in (Path(root), *(Path(root) / folder for folder in folders)):
        labels = {split: place / f"{split}_labels.json" for split in SPLITS}
        labels = {split: file for split, file in labels.items() if file.is_file()}
        data = {split: _data_file(place, Path(root), split) for split in labels}
        if labels and all(data.values()):
            break
    else:
        return None
    files = list(dict.fromkeys([*labels.values(), *data.values()]))
    return Source(
        f"{name}-hdf5-{image_size}",
        {"version": VERSION, "pixels": pixels.VERSION, "files": [stamp(file) for file in files]},
        (image_size, image_size, 3),
        LazySplits(labels, lambda split: _classes(data[split], labels[split], image_size)),
        Account(rule),
    )


def _data_file(place: Path, root: Path, split: str) -> Path | None:
    own = [place / f"{split}_data.{suffix}" for suffix in ("hdf5", "h5")]
    shared = [folder / f"data.{suffix}" for folder in (place, place.parent) for suffix in ("hdf5", "h5")]
    return next((file for file in (*own, *shared) if file.is_file() and file.is_relative_to(root)), None)


def _classes(data: Path, labels: Path, image_size: int) -> list[ClassImages]:
    with _open(data) as file:
        names = _names(labels)
        counts = {name: len(_dataset(file, name, data)) for name in names}
    return [
        ClassImages(name, count, functools.partial(_load, data, name, image_size), str(data))
        for name, count in sorted(counts.items())
    ]


def _names(file: Path) -> list[str]:
    try:
        value = json.loads(read_bytes(file).decode("utf-8-sig"))
    except DataError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {file}: {error}") from error
    parts = [x if isinstance(x, list) else [x] for x in value] if isinstance(value, list) else [[None]]
    if not all(isinstance(part, str) for x in parts for part in x):
        raise DataError(f"{file} must hold a list of class names, or of the parts of each")
    return ["/".join(x) for x in parts]


def _open(file: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ConfigError(f"{file} needs h5py ({error}); install it with pip install 'maml-jax[hdf5]'") from error
    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise DataError(f"cannot read {file}: {error}; download it again") from error


def _dataset(file: Any, name: str, path: Path) -> Any:
    """The images of a class. What lies in other files is refused, and what claims to be larger than it can be."""
    import h5py

    place = next((place for place in (name, f"datasets/{name}") if place in file), None)
    if place is None:
        raise DataError(f"{path} has no class '{name}'")
    parts = place.split("/")
    links = [file.get("/".join(parts[: i + 1]), getlink=True) for i in range(len(parts))]
    found = file[place] if all(isinstance(link, h5py.HardLink) for link in links) else None
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise DataError(f"{path}: '{name}' is no data set of its own")
    encoded = h5py.check_vlen_dtype(found.dtype) == np.uint8 and found.ndim == 1
    plain = found.dtype == np.uint8 and found.ndim == 4 and found.shape[-1] in (1, 3) and math.prod(found.shape[1:])
    if not (encoded or plain):
        raise DataError(
            f"{path}: '{name}' is {found.dtype} {list(found.shape)}, expected uint8 [images, height, width, 3] or files"
        )
    if found.nbytes > _MOST_COMPRESSED * found.id.get_storage_size():
        raise DataError(f"{path}: '{name}' claims {found.nbytes} bytes, more than the file can hold")
    return found


def _load(path: Path, name: str, size: int) -> np.ndarray:
    with _open(path) as file:
        try:
            content = _dataset(file, name, path)[:]
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise DataError(f"cannot read '{name}' in {path}: {error}") from error
    if content.ndim == 4:
        return images.resize_all(content if content.shape[-1] == 3 else np.repeat(content, 3, -1), size)
    decoded = (pixels.decode(one.tobytes(), "RGB", f"{i} of '{name}' in {path}") for i, one in enumerate(content))
    return np.stack([images.to_square(image, size) for image in decoded])
