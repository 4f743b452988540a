"""What a data set is to this library, and what is asked of it: an entry of the table, and the user's settings."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from maml_jax.data.augment import Statistics
from maml_jax.data.download import Download, fetch
from maml_jax.data.source import ClassImages, LazySplits, MissingFiles, Source
from maml_jax.episode import Tasks
from maml_jax.errors import ConfigError, DataError

_CHANNELS = ("auto", "1", "3")


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """What is asked of a data set. The fields are those of `config.data` of the same names.

    Attributes:
      name: which data set; see `sets.data_set`.
      dir: folder of the raw files; '' is `datasets/<name>`.
      download: whether raw files that are missing may be downloaded.
      cache_dir: folder for built stores; '' is `cache.default_cache_dir()`.
      image_size: side of the stored images in pixels.
      split: which split of the classes, where there is a choice; '' is the data set's own.
      split_seed: of random splits.
      channels: of the stored images, 1 for grey or 3 for colour; 'auto' is what the data set has.
      background: colour that transparent pixels are laid on.
      class_depth: how many folders make up a class of the data set 'folder'; 0 is what is plain.
      skip_small: classes with fewer images are left out.
    """

    name: str
    dir: str = ""
    download: bool = True
    cache_dir: str = ""
    image_size: int = 28
    split: str = ""
    split_seed: int = 0
    channels: int | str = "auto"
    background: str = "white"
    class_depth: int = 0
    skip_small: int = 0


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set that can be named. The module that reads it ends with its own.

    Attributes:
      name: what it is called.
      source: makes the source from the settings and the folder of raw files.
      terms: where the images come from and under which terms they may be used.
      statistics: published mean and standard deviation per channel of the training images; None if none are in use.
      classes: number of classes of each split as published; empty if there is no telling.
      downloads: files that can be had without more ado.
      folder: name of the folder of raw files; '' is the data set's own.
      tasks: for tasks that are not made of images, and so have no source: makes those of a seed, a split, a number of
        shots and a number of queries.
    """

    name: str
    source: Callable[[DataSettings, Path], Source] | None
    terms: str
    statistics: Statistics | None = None
    classes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    downloads: tuple[Download, ...] = ()
    folder: str = ""
    tasks: Callable[[int, str, int, int], Tasks] | None = None


def source_of(data_set: DataSet, settings: DataSettings, progress: bool = True) -> Source:
    """The source of a data set; downloads its raw files if they are missing and can be had.

    Args:
      data_set: which.
      settings: what is asked of it.
      progress: whether to tell on standard error how far it is.

    Raises:
      ConfigError: if a setting is unusable.
      DataError: if the raw files are missing.
    """
    if data_set.source is None:
        raise ConfigError(f"data.name={data_set.name!r} has no images: there is nothing to prepare")
    if settings.image_size < 1:
        raise ConfigError(f"data.image_size is {settings.image_size}; it must be at least 1 pixel")
    if settings.split_seed < 0:
        raise ConfigError(f"data.split_seed is {settings.split_seed}; it must not be negative")
    if str(settings.channels) not in _CHANNELS:
        raise ConfigError(f"data.channels is {settings.channels!r}; choose auto, 1 or 3")
    return _with_channels(_without_small(_found(data_set, settings, progress), settings), settings)


def _found(data_set: DataSet, settings: DataSettings, progress: bool) -> Source:
    """The source of a data set as it is; downloads its raw files if they are missing and can be had."""
    root = Path(settings.dir or Path("datasets") / (data_set.folder or data_set.name)).expanduser()
    try:
        return data_set.source(settings, root)
    except MissingFiles as missing:
        if not (data_set.downloads and settings.download):
            raise
        try:
            for download in data_set.downloads:
                fetch(download, root, progress)
        except DataError as error:
            raise MissingFiles(f"{missing.facts} ({error.facts})", missing.settings) from error
    return data_set.source(settings, root)


def _without_small(source: Source, settings: DataSettings) -> Source:
    """The source without classes of fewer images than `skip_small`."""
    least = int(settings.skip_small)
    if least < 2:
        return source

    def classes_of(split: str) -> list[ClassImages]:
        classes = source.splits[split]
        small = [f"{c.name} ({split}, {c.count})" for c in classes if c.count < least]
        source.account.left_out.add(f"classes of fewer than {least} images", small)
        if len(small) == len(classes):
            raise DataError(f"every class of split '{split}' of {source.name} has fewer than {least} images")
        return [c for c in classes if c.count >= least]

    fingerprint = {**source.fingerprint, "skip_small": least}
    return dataclasses.replace(source, fingerprint=fingerprint, splits=LazySplits(lambda: source.splits, classes_of))


def _with_channels(source: Source, settings: DataSettings) -> Source:
    """The source in grey or colour as asked for, if it is in the other."""
    wanted, (height, width, channels) = settings.channels, source.image_shape
    if wanted == "auto" or int(wanted) == channels:
        return source
    convert = _to_grey if int(wanted) == 1 else _to_color

    def classes_of(split: str) -> list[ClassImages]:
        return [dataclasses.replace(c, load=lambda c=c: convert(c.load())) for c in source.splits[split]]

    return dataclasses.replace(
        source,
        fingerprint={**source.fingerprint, "channels": int(wanted)},
        image_shape=(height, width, int(wanted)),
        splits=LazySplits(lambda: source.splits, classes_of),
    )


def _to_grey(images: np.ndarray) -> np.ndarray:
    """Grey of colour images as Pillow makes it."""
    return np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])[..., None]


def _to_color(images: np.ndarray) -> np.ndarray:
    return np.repeat(images, 3, axis=-1)
