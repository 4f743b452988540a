"""tensorflow-datasets builders of the few-shot data sets that it lacks.

    import tensorflow_datasets as tfds
    import maml_jax.data.builders
    images = tfds.data_source("mini_imagenet", split="train", builder_kwargs={"file_format": "array_record"})

Each reads the raw files that `config.data.dir` would name from its manual folder, by default
`~/tensorflow_datasets/downloads/manual`, or downloads them where that is possible. TensorFlow is needed only for
`tfds.load`, which makes a `tf.data` pipeline of them. The splits are `train`, `validation` and `test`, of which classes
do not cross; labels count through all three.
"""

import io
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from maml_jax.data import cifar, cub200, inat2017, mini_imagenet, tiered_imagenet
from maml_jax.data.dataset import DataSet, DataSettings, source_of
from maml_jax.data.source import ClassImages

_SPLITS = {"train": "train", "val": "validation", "test": "test"}


class FewShot(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set of this library.

    Attributes:
      DATA_SET: its entry.
      IMAGE_SIZE: side of the images in pixels.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the raw files there that maml_jax's README lists for this data set."
    DATA_SET: DataSet
    IMAGE_SIZE: int

    def _info(self) -> tfds.core.DatasetInfo:
        shape = (self.IMAGE_SIZE, self.IMAGE_SIZE, 3)
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DATA_SET.terms,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=shape, encoding_format="png"),
                    "label": tfds.features.ClassLabel(),  # names follow with the files
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        settings = DataSettings(
            name=self.DATA_SET.name,
            dir=str(_raw_files(dl_manager)),
            image_size=self.IMAGE_SIZE,
            split=self.builder_config.name if self.BUILDER_CONFIGS else "",
        )
        source = source_of(self.DATA_SET, settings, progress=False)
        splits = dict(source.checked_splits())
        names = [c.name for classes in splits.values() for c in classes]
        self.info.features["label"].names = names
        label_of = {name: label for label, name in enumerate(names)}
        shape = source.image_shape
        return {_SPLITS[split]: _examples(classes, label_of, shape) for split, classes in splits.items()}

    def _generate_examples(self) -> None:
        """Abstract in the parent class; `_split_generators` makes the generators itself."""


def _raw_files(dl_manager: tfds.download.DownloadManager) -> Any:
    """The manual folder, or where downloads go if there is none."""
    try:
        return dl_manager.manual_dir
    except AssertionError:
        return dl_manager.download_dir


def _examples(
    classes: list[ClassImages], label_of: dict[str, int], shape: tuple[int, int, int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the examples of a split, PNG-encoded: given as arrays, TensorFlow would be needed to encode them."""
    key = 0
    for c in classes:
        for image in c.read(shape):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            png.seek(0)
            yield key, {"image": png, "label": label_of[c.name]}
            key += 1


class MiniImagenet(FewShot):
    """mini-ImageNet, Ravi & Larochelle's split."""

    DATA_SET, IMAGE_SIZE = mini_imagenet.DATA_SET, 84


class TieredImagenet(FewShot):
    """tiered-ImageNet."""

    DATA_SET, IMAGE_SIZE = tiered_imagenet.DATA_SET, 84


class CifarFs(FewShot):
    """CIFAR-FS."""

    DATA_SET, IMAGE_SIZE = cifar.CIFAR_FS, 32


class Fc100(FewShot):
    """FC100."""

    DATA_SET, IMAGE_SIZE = cifar.FC100, 32


class Cub200(FewShot):
    """CUB-200-2011, in either of two published splits: `cub200/closerlook` (the default) and `cub200/feat`."""

    DATA_SET, IMAGE_SIZE = cub200.DATA_SET, 84
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="closerlook"), tfds.core.BuilderConfig(name="feat")]  # noqa: RUF012


class Inat2017(FewShot):
    """meta-iNat, of iNaturalist 2017."""

    DATA_SET, IMAGE_SIZE = inat2017.DATA_SET, 84
