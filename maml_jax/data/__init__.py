"""Image data: data sets by name, and their class stores."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from maml_jax.data import glyphs, mini_imagenet, omniglot, store
from maml_jax.data.source import Source
from maml_jax.data.store import ClassStore
from maml_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class DataSet:
    """An entry of `DATA_SETS`.

    Attributes:
      source: Makes the source from `config.data` and the folder of raw files.
      terms: Where the images come from and under which terms they may be used.
      statistics: Published mean and standard deviation per channel of the training images, in units of [0, 1]; None if
        none are in use.
    """

    source: Callable[[Any, Path], Source]
    terms: str
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None


IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

DATA_SETS = {
    "glyphs": DataSet(
        lambda data, folder: glyphs.source(data.image_size, seed=data.split_seed),
        "Drawn by this program; no terms.",
    ),
    "omniglot": DataSet(
        lambda data, folder: omniglot.source(folder, data.split, data.image_size, data.split_seed), omniglot.TERMS
    ),
    "mini_imagenet": DataSet(
        lambda data, folder: mini_imagenet.source(folder, data.image_size), mini_imagenet.TERMS, IMAGENET_STATISTICS
    ),
}
"""Every data set that `config.data.name` can name."""


def default_cache_dir() -> Path:
    """Returns `$MAML_JAX_CACHE`, or `$XDG_CACHE_HOME/maml_jax`, or `~/.cache/maml_jax`: the first that is set."""
    if os.environ.get("MAML_JAX_CACHE"):
        return Path(os.environ["MAML_JAX_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maml_jax"


def build_store(data: Any, progress: bool = True) -> Path:
    """Builds the store that `config.data` describes, or finds it.

    Args:
      data: `config.data`: `name`, `dir` (folder of the raw files; '' is `datasets/<name>`), `cache_dir` (''
        is `default_cache_dir()`), `image_size` in pixels, `split` and `split_seed`.
      progress: Whether to tell on standard error how far it is.

    Returns:
      The store's folder.

    Raises:
      ConfigError: If a field is unusable.
      DataError: If the raw files or the store are missing or damaged.
    """
    if data.name not in DATA_SETS:
        raise ConfigError(f"data.name is '{data.name}'; choose one of {', '.join(DATA_SETS)}")
    if data.image_size < 1:
        raise ConfigError(f"data.image_size is {data.image_size}; it must be at least 1 pixel")
    if data.split_seed < 0:
        raise ConfigError(f"data.split_seed is {data.split_seed}; it must not be negative")
    folder = Path(data.dir or Path("datasets") / data.name).expanduser()
    cache_dir = Path(data.cache_dir or default_cache_dir()).expanduser() / "stores"
    return store.build(DATA_SETS[data.name].source(data, folder), cache_dir, progress)


def open_stores(data: Any, progress: bool = True) -> dict[str, ClassStore]:
    """Opens the stores of all splits of the data set that `config.data` describes; builds them the first time.

    Arguments and errors are those of `build_store`.

    Returns:
      The stores by split: 'train', 'val', 'test', of which a data set may lack some.
    """
    path = build_store(data, progress)
    return {split: store.open_store(path, split) for split in store.split_names(path)}


def prepare(data: Any, progress: bool = True) -> dict[str, Any]:
    """Builds or finds the store that `config.data` describes, reads it all to verify it, and describes it.

    Arguments and errors are those of `build_store`.

    Returns:
      `name`, `path`, `image_shape`, `terms` (origin and terms of use) and `splits`: for each split the number of
      `classes`, of `images` and of `bytes`, and per channel `mean` and `std` of the pixels, scaled to [0, 1].
    """
    path = build_store(data, progress)
    store.verify(path)
    stores = {split: store.open_store(path, split) for split in store.split_names(path)}
    return {
        "name": data.name,
        "path": str(path),
        "image_shape": list(next(iter(stores.values())).image_shape),
        "terms": DATA_SETS[data.name].terms,
        "splits": {split: _describe(opened) for split, opened in stores.items()},
    }


def _describe(opened: ClassStore) -> dict[str, Any]:
    """Returns one split's entry of `prepare`, read class by class."""
    channels = opened.image_shape[-1]
    total, total_squares = np.zeros(channels), np.zeros(channels)
    for c in range(opened.num_classes):
        pixels = opened.class_images(c).reshape(-1, channels)
        total += pixels.sum(0, dtype=np.uint64)
        total_squares += np.square(pixels, dtype=np.uint16).sum(0, dtype=np.uint64)
    count = opened.nbytes / channels
    mean = total / count
    std = np.sqrt(np.maximum(total_squares / count - mean**2, 0))
    return {
        "classes": opened.num_classes,
        "images": len(opened.images),
        "bytes": opened.nbytes,
        "mean": (mean / 255).tolist(),
        "std": (std / 255).tolist(),
    }
