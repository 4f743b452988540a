"""The table of data sets, collected from the modules that read them."""

from maml_jax.data import (
    aircraft,
    cars,
    cifar,
    cub200,
    dogs,
    dtd,
    flowers,
    folder,
    glyphs,
    inat2017,
    mini_imagenet,
    omniglot,
    sinusoid,
    tfds_source,
    tiered_imagenet,
)
from maml_jax.data.dataset import DataSet, DataSettings, source_of
from maml_jax.data.source import Source
from maml_jax.errors import ConfigError

DATA_SETS = {
    entry.name: entry
    for entry in (
        glyphs.DATA_SET,
        omniglot.DATA_SET,
        mini_imagenet.DATA_SET,
        tiered_imagenet.DATA_SET,
        *cifar.DATA_SETS,
        cub200.DATA_SET,
        inat2017.DATA_SET,
        aircraft.DATA_SET,
        flowers.DATA_SET,
        dtd.DATA_SET,
        cars.DATA_SET,
        dogs.DATA_SET,
        folder.DATA_SET,
        sinusoid.DATA_SET,
    )
}
"""Every data set that `config.data.name` can name, but for those of tensorflow-datasets; see `data_set`."""


def data_set(name: str) -> DataSet:
    """The data set that `config.data.name` names: one of `DATA_SETS`, or 'tfds:<name>'.

    Raises:
      ConfigError: if there is none.
    """
    if name.startswith(tfds_source.PREFIX):
        return tfds_source.data_set(name)
    if name not in DATA_SETS:
        raise ConfigError(f"data.name is '{name}'; choose one of {', '.join(DATA_SETS)}, or tfds:NAME")
    return DATA_SETS[name]


def make_source(settings: DataSettings, progress: bool = True) -> Source:
    """The source that the settings describe; see `dataset.source_of`."""
    return source_of(data_set(settings.name), settings, progress)
