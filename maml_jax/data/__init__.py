"""Image data: data sets by name, and their class stores."""

from maml_jax.data.augment import IMAGENET_STATISTICS, Statistics
from maml_jax.data.cache import build_store, default_cache_dir, open_stores, prepare
from maml_jax.data.dataset import DataSet, DataSettings
from maml_jax.data.sets import DATA_SETS, data_set, make_source
from maml_jax.data.store import ClassStore

__all__ = [
    "DATA_SETS",
    "IMAGENET_STATISTICS",
    "ClassStore",
    "DataSet",
    "DataSettings",
    "Statistics",
    "build_store",
    "data_set",
    "default_cache_dir",
    "make_source",
    "open_stores",
    "prepare",
]
