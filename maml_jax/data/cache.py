"""The stores of the user's data sets: built the first time, found, opened, verified."""

import os
from pathlib import Path
from typing import Any

import platformdirs

from maml_jax.data import store
from maml_jax.data.account import in_words
from maml_jax.data.dataset import DataSettings
from maml_jax.data.sets import data_set, make_source
from maml_jax.data.source import Source
from maml_jax.data.store import ClassStore
from maml_jax.errors import DataError
from maml_jax.progress import say


def default_cache_dir() -> Path:
    """Returns `$MAML_JAX_CACHE` if that is set, else the user's cache folder, such as `~/.cache/maml_jax`."""
    return Path(os.environ.get("MAML_JAX_CACHE") or platformdirs.user_cache_path("maml_jax", appauthor=False))


def build_store(settings: DataSettings, progress: bool = True) -> Path:
    """Builds the store that the settings describe, or finds it.

    Args:
      settings: which data set, and how.
      progress: whether to tell on standard error how far it is.

    Returns:
      The store's folder.

    Raises:
      ConfigError: if a setting is unusable.
      DataError: if the raw files or the store are missing or damaged.
    """
    return _build(settings, progress)[0]


def _build(settings: DataSettings, progress: bool) -> tuple[Path, Source]:
    source = make_source(settings, progress)
    return store.build(source, _stores_dir(settings), progress), source


def _account(path: Path, source: Source) -> dict[str, Any]:
    """What the store says of its source; the rule of the split even if it was built before stores did."""
    return {"left_out": {}, "notes": {}, **source.account.to_json(), **store.account(path)}


def _stores_dir(settings: DataSettings) -> Path:
    return Path(settings.cache_dir or default_cache_dir()).expanduser() / "stores"


def open_stores(settings: DataSettings, progress: bool = True) -> dict[str, ClassStore]:
    """Opens the stores of all splits of a data set; builds them the first time. Says which rule made the split.

    Arguments and errors are those of `build_store`.

    Returns:
      The stores by split: 'train', 'val', 'test', of which a data set may lack some; none if its tasks are not made of
      images.
    """
    if data_set(settings.name).tasks:
        return {}
    path, source = _build(settings, progress)
    if progress:
        _say(settings.name, _account(path, source))
    return {split: store.open_store(path, split) for split in store.split_names(path)}


def _say(name: str, account: dict[str, Any]) -> None:
    say(f"{name}: the split is {account['split_rule']}")
    for line in in_words(account["left_out"]):
        say(f"{name}: left out {line}")
    for line in in_words(account["notes"]):
        say(f"{name}: {line}")


def prepare(settings: DataSettings, progress: bool = True, check: bool = False) -> dict[str, Any]:
    """Builds or finds a data set's store, reads it all to verify it, and describes it.

    Args:
      settings: see `build_store`, as for errors.
      progress: whether to tell on standard error how far it is.
      check: whether to do with a store that is there already, and fail if there is none.

    Returns:
      `name`, `path`, `image_shape`, `terms` (origin and terms of use) and `splits`: for each split the number of
      `classes`, of `images` and of `bytes`, per channel `mean` and `std` of the pixels, scaled to [0, 1], and the
      number of `published` classes, None if there is no telling; `split_rule`, what follows 'the split is'; and
      `left_out` and `notes`, by reason the `count` and a few `examples` of what the store does not have and of what is
      to be known of it (see `account.in_words`).
    """
    if check:
        source = make_source(settings, progress)
        path = store.folder_of(source, _stores_dir(settings))
        if not path.exists():
            raise DataError(f"there is no store {path} yet; preparing the data set without a check builds it")
    else:
        path, source = _build(settings, progress)
    moments = store.verify(path, progress)
    stores = {split: store.open_store(path, split) for split in moments}
    entry = data_set(settings.name)
    return {
        "name": settings.name,
        "path": str(path),
        "image_shape": list(next(iter(stores.values())).image_shape),
        "terms": entry.terms,
        **_account(path, source),
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
