"""Image data: data sets by name, and their class stores."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maml_jax.data import (
    cifar,
    cub200,
    folder,
    glyphs,
    inat2017,
    mini_imagenet,
    omniglot,
    sinusoid,
    store,
    tfds_source,
    tiered_imagenet,
)
from maml_jax.data.download import Download, fetch
from maml_jax.data.source import MissingFiles, Source
from maml_jax.data.store import ClassStore
from maml_jax.errors import ConfigError, DataError

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclasses.dataclass(frozen=True)
class DataSet:
    """An entry of `DATA_SETS`.

    Attributes:
      source: Makes the source from `config.data` and the folder of raw files.
      terms: Where the images come from and under which terms they may be used.
      statistics: Published mean and standard deviation per channel of the training images, in units of [0, 1]; None if
        none are in use.
      classes: Number of classes of each split as published; empty if there is no telling.
      downloads: Files that can be had without more ado.
      folder: Name of the folder of raw files; '' is the data set's own.
    """

    source: Callable[[Any, Path], Source]
    terms: str
    statistics: Statistics | None = None
    classes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    downloads: tuple[Download, ...] = ()
    folder: str = ""


IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR_STATISTICS = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


def _cifar(name: str, **classes: int) -> DataSet:
    return DataSet(
        lambda data, root: cifar.source(root, name, data.image_size),
        cifar.TERMS[name],
        _CIFAR_STATISTICS,
        classes,
        (cifar.ARCHIVE,),
        folder="cifar100",
    )


DATA_SETS = {
    "glyphs": DataSet(
        lambda data, root: glyphs.source(data.image_size, seed=data.split_seed), "Drawn by this program; no terms."
    ),
    "omniglot": DataSet(
        lambda data, root: omniglot.source(root, data.split, data.image_size, data.split_seed),
        omniglot.TERMS,
        downloads=omniglot.ARCHIVES,
    ),
    "mini_imagenet": DataSet(
        lambda data, root: mini_imagenet.source(root, data.image_size),
        mini_imagenet.TERMS,
        IMAGENET_STATISTICS,
        {"train": 64, "val": 16, "test": 20},
    ),
    "tiered_imagenet": DataSet(
        lambda data, root: tiered_imagenet.source(root, data.image_size),
        tiered_imagenet.TERMS,
        ((0.478, 0.456, 0.410), (0.279, 0.274, 0.286)),
        {"train": 351, "val": 97, "test": 160},
    ),
    "cifar_fs": _cifar("cifar_fs", train=64, val=16, test=20),
    "fc100": _cifar("fc100", train=60, val=20, test=20),
    "cub200": DataSet(
        lambda data, root: cub200.source(root, data.split, data.image_size),
        cub200.TERMS,
        IMAGENET_STATISTICS,
        {"train": 100, "val": 50, "test": 50},
        (cub200.ARCHIVE,),
    ),
    "inat2017": DataSet(
        lambda data, root: inat2017.source(root, data.image_size),
        inat2017.TERMS,
        ((0.4905, 0.4961, 0.4330), (0.1737, 0.1713, 0.1779)),
        {"train": 908, "test": 227},
    ),
    "folder": DataSet(
        lambda data, root: folder.source(root, data.image_size, data.split, data.split_seed), folder.TERMS
    ),
}
"""Every data set that `config.data.name` can name, but for those of tensorflow-datasets; see `data_set`."""


def data_set(name: str) -> DataSet:
    """Returns the data set that `config.data.name` names: one of `DATA_SETS`, or 'tfds:<name>'.

    Raises:
      ConfigError: If there is none.
    """
    if name.startswith("tfds:"):
        return DataSet(
            lambda data, root: tfds_source.source(
                name.removeprefix("tfds:"),
                data.dir or None,
                data.image_size,
                data.split,
                data.split_seed,
                data.download,
            ),
            tfds_source.TERMS,
        )
    if name not in DATA_SETS:
        raise ConfigError(f"data.name is '{name}'; choose one of {', '.join(DATA_SETS)}, or tfds:NAME")
    return DATA_SETS[name]


def default_cache_dir() -> Path:
    """Returns `$MAML_JAX_CACHE`, or `$XDG_CACHE_HOME/maml_jax`, or `~/.cache/maml_jax`: the first that is set."""
    if os.environ.get("MAML_JAX_CACHE"):
        return Path(os.environ["MAML_JAX_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maml_jax"


def make_source(data: Any, progress: bool = True) -> Source:
    """Makes the source that `config.data` describes; downloads its raw files if they are missing and can be had.

    Arguments and errors are those of `build_store`.
    """
    entry = data_set(data.name)
    if data.image_size < 1:
        raise ConfigError(f"data.image_size is {data.image_size}; it must be at least 1 pixel")
    if data.split_seed < 0:
        raise ConfigError(f"data.split_seed is {data.split_seed}; it must not be negative")
    root = Path(data.dir or Path("datasets") / (entry.folder or data.name)).expanduser()
    try:
        return entry.source(data, root)
    except MissingFiles as missing:
        if not (entry.downloads and data.download):
            raise
        try:
            for download in entry.downloads:
                fetch(download, root, progress)
        except DataError as error:
            raise MissingFiles(f"{missing} ({error})") from error
    return entry.source(data, root)


def build_store(data: Any, progress: bool = True) -> Path:
    """Builds the store that `config.data` describes, or finds it.

    Args:
      data: `config.data`: `name`, `dir` (folder of the raw files; '' is `datasets/<name>`), `cache_dir` (''
        is `default_cache_dir()`), `image_size` in pixels, `split`, `split_seed` and `download`.
      progress: Whether to tell on standard error how far it is.

    Returns:
      The store's folder.

    Raises:
      ConfigError: If a field is unusable.
      DataError: If the raw files or the store are missing or damaged.
    """
    return store.build(make_source(data, progress), _stores_dir(data), progress)


def _stores_dir(data: Any) -> Path:
    return Path(data.cache_dir or default_cache_dir()).expanduser() / "stores"


def open_stores(data: Any, progress: bool = True) -> dict[str, ClassStore]:
    """Opens the stores of all splits of the data set that `config.data` describes; builds them the first time.

    Arguments and errors are those of `build_store`.

    Returns:
      The stores by split: 'train', 'val', 'test', of which a data set may lack some.
    """
    if data.name == sinusoid.NAME:
        return sinusoid.stores()
    path = build_store(data, progress)
    return {split: store.open_store(path, split) for split in store.split_names(path)}


def prepare(data: Any, progress: bool = True, check: bool = False) -> dict[str, Any]:
    """Builds or finds the store that `config.data` describes, reads it all to verify it, and describes it.

    Args:
      data: See `build_store`, as for errors.
      progress: Whether to tell on standard error how far it is.
      check: Whether to do with a store that is there already, and fail if there is none.

    Returns:
      `name`, `path`, `image_shape`, `terms` (origin and terms of use) and `splits`: for each split the number of
      `classes`, of `images` and of `bytes`, per channel `mean` and `std` of the pixels, scaled to [0, 1], and the
      number of `published` classes, None if there is no telling.
    """
    if check:
        path = store.folder_of(make_source(data, progress), _stores_dir(data))
        if not path.exists():
            raise DataError(f"there is no store {path} yet; build it with: python launch.py prepare (without --check)")
    else:
        path = build_store(data, progress)
    moments = store.verify(path, progress)
    stores = {split: store.open_store(path, split) for split in moments}
    entry = data_set(data.name)
    return {
        "name": data.name,
        "path": str(path),
        "image_shape": list(next(iter(stores.values())).image_shape),
        "terms": entry.terms,
        "splits": {
            split: {
                "classes": opened.num_classes,
                "images": len(opened.images),
                "bytes": opened.nbytes,
                "mean": (moments[split].mean / 255).tolist(),
                "std": (moments[split].std / 255).tolist(),
                "published": entry.classes.get(split),
            }
            for split, opened in stores.items()
        },
    }
