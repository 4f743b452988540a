"""Where a training may start: from what another has learned."""

import jax
import numpy as np

from maml_jax import tree
from maml_jax.errors import ConfigError
from maml_jax.meta.step import MetaState
from maml_jax.models import weights
from maml_jax.progress import say
from maml_jax.tree import PyTree

_SHOWN = 4


def begin_from(place: str, fresh: MetaState) -> MetaState:
    """A fresh state with what a trained model has of the same name and shape; says what was taken and what not.

    So the encoder alone is taken where heads differ in their number of ways.

    Args:
      place: a run's work directory, a folder that `export` wrote, or the name of a model that comes with this library.
      fresh: where training would start otherwise.

    Raises:
      ConfigError: nothing fits.
      DataError: there is no such model, or it cannot be read.
    """
    if place.endswith(".pth"):
        raise ConfigError(
            f"train.start={place!r} is a file of PyTorch's: python -m parity import {place} DIR makes a work "
            "directory of it, which can be started from"
        )
    trained = weights.load(place)
    started = take(trained.params, trained.stats, fresh, f"{place}, meta-step {trained.step}")
    if started is None:
        raise ConfigError(f"train.start={place!r}: none of its arrays fits this model", {"train.start": ""})
    return started


def take(params: PyTree, stats: PyTree, fresh: MetaState, origin: str, wanted: str = "") -> MetaState | None:
    """A fresh state with what is there of the same name and shape; None if no parameter is.

    Args:
      params: meta-parameters that were learned before.
      stats: their statistics.
      fresh: where training would start otherwise.
      origin: where they are from; says what was taken and what not.
      wanted: take only what has a name that begins with it, such as 'encoder/'.
    """
    there = tree.by_name({"params": params, "stats": stats})
    parts = {"params": fresh.params, "stats": fresh.stats}
    named = tree.by_name(parts)
    taken = {
        name
        for name, leaf in named.items()
        if name in there and there[name].shape == leaf.shape and name.partition("/")[2].startswith(wanted)
    }
    if not any(name.startswith("params/") for name in taken):
        return None
    filled = tree.map_named(lambda name, leaf: _like(there[name], leaf) if name in taken else leaf, parts)
    say(f"starting from {origin}: {len(taken)} of {len(named)} arrays taken")
    for what, names in (("start afresh", named.keys() - taken), ("not used of it", there.keys() - taken)):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            say(f"  {what}: {', '.join(sorted(names)[:_SHOWN])}{more}")
    return fresh.replace(**filled)


def _like(array: np.ndarray, leaf: jax.Array) -> jax.Array:
    return jax.numpy.asarray(array, leaf.dtype)
