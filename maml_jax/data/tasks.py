"""Tasks of a data set in one call, for a program of one's own."""

from typing import Any

import jax.numpy as jnp

from maml_jax.data.cache import open_stores
from maml_jax.data.dataset import DataSettings
from maml_jax.data.sampler import ImageTasks, TaskSpec, check_fit
from maml_jax.data.sets import data_set
from maml_jax.episode import Tasks
from maml_jax.errors import DataError


def load_tasks(
    name: str, split: str = "train", *, way: int = 5, shot: int = 1, query: int = 15, seed: int = 0, **settings: Any
) -> Tasks:
    """The tasks of a split of a data set, whose images are put on the default device.

    Args:
      name: of the data set, such as 'glyphs' or 'folder'; see `maml_jax.data.DATA_SETS`.
      split: 'train', 'val' or 'test'.
      way: classes of a task.
      shot: support images per class.
      query: query images per class.
      seed: of the tasks.
      **settings: fields of `DataSettings`, such as `dir` and `image_size`; and of `TaskSpec`, such as `rotations`.

    Raises:
      ConfigError: the tasks do not fit the data.
      DataError: the files are missing or damaged, or there is no such split.
    """
    of_data = {field: settings.pop(field) for field in DataSettings.__dataclass_fields__ if field in settings}
    entry = data_set(name)
    if entry.tasks:
        return entry.tasks(seed, split, shot, query)
    stores = open_stores(DataSettings(name, **of_data))
    if split not in stores:
        raise DataError(f"{name} has no {split!r} split; it has {', '.join(stores)}")
    spec, store = TaskSpec(seed, split, way, shot, query, **settings), stores[split]
    check_fit(spec, store, "task")
    return ImageTasks(spec, jnp.asarray(store.images), jnp.asarray(store.offsets, jnp.int32))
