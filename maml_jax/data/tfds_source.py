"""Image classification data sets of tensorflow-datasets, read without TensorFlow."""

import difflib
import functools
import os
import re
import socket
import urllib.request
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maml_jax.data import cars, dogs, dtd, folder, pixels
from maml_jax.data.account import Account
from maml_jax.data.dataset import DataSet
from maml_jax.data.images import Look
from maml_jax.data.source import Source, stamp
from maml_jax.data.split import JsonSplit, Listing, check_name, images_split, random_split
from maml_jax.data.tfrecords import TFRecords
from maml_jax.errors import ConfigError, DataError

PREFIX = "tfds:"
VERSION = 1
"""Raise it with any change to the pixels, so that stores are built anew."""
TERMS = "From tensorflow-datasets; its catalogue (https://www.tensorflow.org/datasets/catalog) names origin and terms."
_CHANNELS = {1: 1, 2: 1, 3: 3, 4: 3}
"""Of the stored images, by those of the data set's, of which the even ones have transparency."""
_PUBLISHED = {"cars196": cars.SPLIT, "dtd": dtd.SPLIT, "stanford_dogs": dogs.SPLIT}
"""Splits by others of what tensorflow-datasets has, too."""
_SPLITS = {"train": "train", "validation": "val", "val": "val", "test": "test"}


def source(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    image_size: int,
    split: str = "",
    seed: int = 0,
    download: bool = False,
    background: tuple[int, int, int] = pixels.WHITE,
) -> Source:
    """A data set of tensorflow-datasets: uint8 `[images, size, size, channels]` per class, sorted by label.

    All its images count, in whichever of its own splits they are, since those do not separate classes. Where they do,
    as in the builders of `maml_jax.data.builders`, they are kept.

    Args:
      name: as `tfds.builder` takes it, such as 'stanford_dogs'. It must have one image and one class label.
      data_dir: where prepared data sets lie; None is its own default, `~/tensorflow_datasets`. Files of the formats
        array_record and tfrecord can be read.
      image_size: side of the images in pixels, to which they are resized, bilinearly with antialiasing.
      split: '' for the above and else 64, 16 and 20 % of the classes, drawn by `seed`; 'random' for these in any case;
        'images' for splits that share classes, its own if it has several of the usual names; or a JSON file of the
        classes of each split; or a published split of `_PUBLISHED`, by its name.
      seed: of the random split.
      download: whether to download and prepare it if it is not there. Many of its data sets need TensorFlow for that.
      background: red, green and blue that transparent pixels are laid on.

    Raises:
      ConfigError: if the package is not installed, or there is no such data set or split.
      DataError: if it is not prepared, or no image classification data set.
    """
    published = _published(name, split)
    builder = _builder(name, data_dir, download)
    examples, account = _Examples(builder), Account()
    chosen = JsonSplit(Path(split)) if split.endswith(".json") else None
    listing = functools.partial(_listing, examples, account, split, seed, published or chosen)
    files = [examples.stamp(), *([chosen.stamp()] if chosen else [])]
    fingerprint = {"version": VERSION, "name": builder.info.full_name, "split": split, "seed": seed, "files": files}
    look = Look(image_size, examples.channels, background)
    return folder.image_source(
        f"tfds-{re.sub('[/:]', '-', name)}-{image_size}",
        examples,
        listing,
        look,
        fingerprint,
        account,
        split == "images",
    )


def _listing(examples: "_Examples", account: Account, split: str, seed: int, chosen: Any) -> Listing:
    """The examples of each class of each split; tells the account which rule made the split.

    Args:
      examples: of the data set.
      account: of its source.
      split: as of `source`.
      seed: of the random split.
      chosen: a published split, or one of a file; None if neither is asked for.
    """
    by_split = examples.by_split()
    merged = _merged(by_split)
    if chosen:
        account.rule = f"as {split} has it" if isinstance(chosen, JsonSplit) else chosen.origin
        return chosen.pick(merged)
    known = set(by_split) <= set(_SPLITS) and len(by_split) > 1
    if split == "images" and not known:
        account.rule = f"drawn at random with seed {seed}: 64, 16 and 20 % of the images of every class"
        return images_split(merged, seed, examples)
    together = sum(map(len, by_split.values())) > len(merged)
    if split == "random" or not known or (together and split != "images"):
        account.rule = f"drawn at random with seed {seed}: 64, 16 and 20 % of all classes"
        return random_split(merged, seed, examples)
    account.rule = "the data set's own"
    return {_SPLITS[own]: classes for own, classes in by_split.items()}


def _published(name, split):
    """The published split of that name; None if it is another's, which must make sense then."""
    published = _PUBLISHED.get(re.split("[/:]", name)[0])
    if published is not None and split == published.name:
        return published
    check_name(split)
    return None


def _builder(name: str, data_dir: str | os.PathLike[str] | None, download: bool) -> Any:
    """The builder of a data set that is prepared."""
    try:
        import tensorflow_datasets as tfds

        from maml_jax.data import builders  # registers ours
    except ImportError as error:
        raise ConfigError(
            f"data.name='tfds:{name}' needs tensorflow-datasets ({error}); install it with pip install 'maml-jax[tfds]'"
        ) from error
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        close = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False), 3)
        hint = f"; did you mean {' or '.join(close)}?" if close else "; see https://www.tensorflow.org/datasets/catalog"
        raise ConfigError(f"data.name='tfds:{name}': tensorflow-datasets has no such data set{hint}") from error
    except (ValueError, AssertionError, ImportError) as error:  # no such version or variant, or it needs more packages
        raise ConfigError(f"data.name='tfds:{name}': {' '.join(str(error).split())[:300]}") from error
    if builder.info.splits:
        return builder
    way_out = (
        f"it can be prepared where TensorFlow is installed, by: tfds build {name} --file_format=array_record, and the "
        "folder copied"
    )
    if not download:
        ways = {"data.download": True, "data.dir": "FOLDER"}
        raise DataError(f"{name} is not prepared in {builder.data_dir}; {way_out}", ways)
    try:
        if not isinstance(builder, builders.FewShot) and not urllib.request.getproxies():
            # Without any network it would try for minutes on end to reach a host. Ours look at manual files first.
            socket.getaddrinfo("www.tensorflow.org", 443)
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # whatever its script raises
        reason = " ".join(str(getattr(error, "facts", error)).split())[:300]
        ways = {"data.dir": "FOLDER"}
        raise DataError(f"tensorflow-datasets could not prepare {name}: {reason}; {way_out}", ways) from error
    return builder


class _Examples:
    """The images of a prepared data set as a tree: its members are '<split>/<number>'."""

    def __init__(self, builder: Any):
        import tensorflow_datasets as tfds

        self.path = Path(builder.data_dir)
        self._builder, self._info = builder, builder.info
        features = dict(self._info.features.items()) if hasattr(self._info.features, "items") else {}
        self._image = _only(features, tfds.features.Image, self._info)
        self._label = _only(features, tfds.features.ClassLabel, self._info)
        self._decoders = {key: tfds.decode.SkipDecoding() for key in features if key != self._label}
        with_alpha = features[self._image].shape[-1] or 3
        if with_alpha not in _CHANNELS:
            raise DataError(f"{self._info.full_name} has images of {with_alpha} channels; 1 to 4 can be read")
        self.channels = _CHANNELS[with_alpha]
        self.left_out: dict[str, list[str]] = {}

    @functools.cached_property
    def _records(self) -> Mapping[str, Sequence[bytes]]:
        """The serialised examples of each of its splits."""
        import tensorflow_datasets as tfds

        kind = self._info.file_format.value
        if kind == "tfrecord":
            return {split: TFRecords(info) for split, info in self._info.splits.items()}
        if kind != "array_record":
            raise DataError(f"{self.path} is in the format {kind}; array_record and tfrecord can be read")
        return self._builder.as_data_source(deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)

    @property
    def members(self) -> list[str]:
        """See `Tree`."""
        return [f"{split}/{i}" for split, records in self._records.items() for i in range(len(records))]

    def stamp(self) -> dict[str, Any]:
        """The stamps of its files."""
        files = sorted(Path(file) for info in self._info.splits.values() for file in info.filepaths)
        try:
            return {"files": [stamp(file) for file in files]}
        except OSError as error:
            raise DataError(f"{self.path} is incomplete: {error}") from error

    def read(self, member: str) -> bytes:
        """An image file's content."""
        split, _, i = member.rpartition("/")
        return self._example(split, int(i))[self._image]

    def by_split(self) -> dict[str, dict[str, list[str]]]:
        """The members of each class of its own splits, sorted by label; images without a label are left out."""
        found = {}
        name_of = self._info.features[self._label].int2str
        for split, records in self._records.items():
            classes: dict[int, list[str]] = defaultdict(list)
            for i in range(len(records)):
                label = int(self._example(split, i)[self._label])
                if label >= 0:
                    classes[label].append(f"{split}/{i}")
            unlabelled = len(records) - sum(map(len, classes.values()))
            reason = f"examples of '{split}' without a label"
            self.left_out |= {reason: [f"{split}/?"] * unlabelled} if unlabelled else {}
            if classes:
                found[split] = {name_of(label): classes[label] for label in sorted(classes)}
        return found

    def _example(self, split: str, i: int) -> dict[str, Any]:
        try:
            record = self._records[split][i]
            return self._info.features.deserialize_example_np(record, decoders=self._decoders)
        except Exception as error:  # a damaged record may raise anything
            raise DataError(f"cannot read example {i} of '{split}' in {self.path}: {error!r}") from error


def _only(features: dict[str, Any], kind: type, info: Any) -> str:
    """The name of the one feature of a kind."""
    keys = [key for key, feature in features.items() if isinstance(feature, kind)]
    preferred = [key for key in info.supervised_keys or () if key in keys]
    if len(keys) != 1 and len(preferred) != 1:
        raise DataError(
            f"{info.full_name} is no image classification data set: it has {len(keys)} features of kind "
            f"{kind.__name__}, expected one"
        )
    return (preferred or keys)[0]


def _merged(by_split: dict[str, dict[str, list[str]]]) -> dict[str, list[str]]:
    merged: dict[str, list[str]] = defaultdict(list)
    for classes in by_split.values():
        for name, members in classes.items():
            merged[name] += members
    return dict(merged)


def data_set(name: str) -> DataSet:
    """The data set 'tfds:<name>'."""
    return DataSet(
        name,
        lambda data, root: source(
            name.removeprefix(PREFIX),
            data.dir or None,
            data.image_size,
            data.split,
            data.split_seed,
            data.download,
            pixels.color(data.background),
        ),
        TERMS,
    )
