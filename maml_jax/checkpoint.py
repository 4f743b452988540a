"""Checkpoints of a run: the latest, to resume from, and the best by validation, to keep."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from maml_jax import tree
from maml_jax.errors import DataError
from maml_jax.meta.step import MetaState
from maml_jax.nn.norm import OPTIONAL
from maml_jax.tree import PyTree

KINDS = ("latest", "best")


class Checkpoints:
    """The checkpoints under a run's work directory, written by Orbax, each whole or not at all.

    A state is stored as a flat mapping from names to arrays, so that a checkpoint can be read without this library's
    classes.

    Args:
      folder: such as `workdir/checkpoints`; made on the first save.
    """

    def __init__(self, folder: Path):
        self._folder = folder.absolute()
        self._managers: dict[str, ocp.CheckpointManager] = {}

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        for manager in self._managers.values():
            manager.close()

    def save(self, kind: str, step: int, state: PyTree, **facts: Any) -> None:
        """Writes `state` as the new 'latest' or 'best' checkpoint, and removes the one before once it is safe.

        Args:
          kind: 'latest' or 'best'.
          step: meta-steps taken.
          state: a pytree of arrays.
          **facts: plain values to keep with it.
        """
        manager = self._manager(kind)
        if manager.latest_step() == step:
            return  # after a crash between two saves, the same step with the same content comes again
        arrays = ocp.args.StandardSave(_flatten(state))
        manager.save(step, args=ocp.args.Composite(state=arrays, facts=ocp.args.JsonSave(facts)), force=True)
        manager.wait_until_finished()

    def latest_step(self, kind: str) -> int | None:
        """The meta-step of the checkpoint of that kind; None if there is none."""
        if not (self._folder / kind).is_dir():
            return None
        return self._manager(kind).latest_step()

    def facts(self, kind: str) -> dict[str, Any]:
        """The values kept with the checkpoint of that kind; empty if there is none."""
        step = self.latest_step(kind)
        if step is None:
            return {}
        return self._manager(kind).restore(step, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))["facts"]

    def restore(self, kind: str, like: PyTree) -> PyTree:
        """Reads the checkpoint of that kind.

        Args:
          kind: 'latest' or 'best'.
          like: arrays or shapes, the structure to fill.

        Raises:
          DataError: there is none, it cannot be read, or it is of another model.
        """
        stored, path = self.read(kind)
        expected = _flatten(like)
        # The optimiser's state last, whose names say less than those of the parameters it is about.
        for name in sorted(stored.keys() | expected.keys(), key=lambda name: (name.startswith("optimizer."), name)):
            got = stored[name].shape if name in stored else "lacking"
            want = expected[name].shape if name in expected else "unknown"
            if got != want:
                raise DataError(f"the checkpoint {path} is of another model: {name} is {got}, expected {want}")
        return jax.tree.unflatten(jax.tree.structure(like), [stored[name] for name in expected])

    def restore_model(self, kind: str, like: MetaState) -> MetaState:
        """Reads a checkpoint's step, parameters and statistics; see `fit_model`.

        Raises:
          DataError: as `restore`.
        """
        return fit_model(*self.read(kind), like)

    def read(self, kind: str) -> tuple[dict[str, np.ndarray], Path]:
        """All arrays of the checkpoint of that kind by name, such as 'params.encoder.block1.conv.kernel', and its path.

        Raises:
          DataError: there is none, or it cannot be read.
        """
        step = self.latest_step(kind)
        if step is None:
            raise DataError(f"no checkpoint in {self._folder / kind}; train first, with the same --workdir")
        path = self._folder / kind / str(step)
        try:
            restore = ocp.args.Composite(state=ocp.args.StandardRestore())
            stored = self._manager(kind).restore(step, args=restore)["state"]
        except Exception as error:  # whatever a damaged file makes Orbax raise
            reason = str(error).strip().split("\n")[0]
            raise DataError(f"cannot read the checkpoint {path}: {reason}") from error
        # Version 0.1 kept statistics that last without their collection's name.
        return {re.sub(r"^stats\.(?=encoder\.)", "stats.lasting_stats.", n): leaf for n, leaf in stored.items()}, path

    def _manager(self, kind: str) -> ocp.CheckpointManager:
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
        if kind not in self._managers:
            options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
            self._managers[kind] = ocp.CheckpointManager(self._folder / kind, options=options)
        return self._managers[kind]


def fit_model(stored: Mapping[str, np.ndarray], path: Path, like: MetaState) -> MetaState:
    """A state with the step, parameters and statistics that are stored; the optimiser's state is that of `like`.

    The model may differ from the trained one in how it normalises: statistics that it has no use for are left, and
    what TaskNorm adds to a layer starts as in `like`.

    Args:
      stored: arrays by name, as of `Checkpoints.read`.
      path: where they come from, for messages.
      like: the state to fill.

    Raises:
      DataError: they are of another model.
    """
    trained = {name.replace(".", "/"): leaf for name, leaf in stored.items() if not name.startswith("optimizer.")}
    wanted = {"step": like.step, "params": like.params, "stats": like.stats}
    named = tree.by_name(wanted)
    for name in [*named, *trained]:
        if name in named and name in trained:
            fits = named[name].shape == trained[name].shape
        else:
            fits = name.endswith(OPTIONAL) or (name in trained and name.startswith("stats/"))
        if not fits:
            got = trained[name].shape if name in trained else "lacking"
            want = named[name].shape if name in named else "unknown"
            raise DataError(f"the checkpoint {path} is of another model: {name} is {got}, expected {want}")
    return like.replace(**tree.map_named(lambda name, leaf: trained.get(name, leaf), wanted))


def _flatten(state: PyTree) -> dict[str, Any]:
    names = [name.replace("/", ".") for name in tree.names(state)]
    return dict(zip(names, jax.device_get(jax.tree.leaves(state)), strict=True))
