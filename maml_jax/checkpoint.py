"""Checkpoints of a run: the latest ones, to resume from, and the best by validation, to keep."""

import contextlib
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from maml_jax import tree
from maml_jax.errors import DataError
from maml_jax.files import cannot_write, make_folder, write_whole
from maml_jax.meta.step import MetaState
from maml_jax.nn.norm import OPTIONAL
from maml_jax.progress import say
from maml_jax.tree import PyTree

KINDS = ("latest", "best")
DAMAGED = "damaged"
_SUMS = "sha256.json"
_SUMMED = "summed"  # a fact of checkpoints that have a file of sums


class Checkpoints:
    """The checkpoints under a run's work directory, written by Orbax, each whole or not at all.

    A state is stored as a flat mapping from names to arrays, so that a checkpoint can be read without this library's
    classes. Beside it stand the SHA-256 sums of its files, by which damage is noticed. A latest checkpoint that is
    damaged gives way to the one before, with a warning.

    Args:
      folder: such as `workdir/checkpoints`; made on the first save.
      keep: how many of the latest ones.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self._folder, self._keep = folder.absolute(), keep
        self._managers: dict[str, ocp.CheckpointManager] = {}

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        for manager in self._managers.values():
            manager.close()

    def save(self, kind: str, step: int, state: PyTree, **facts: Any) -> None:
        """Writes `state` as the new 'latest' or 'best' checkpoint, and removes those too many once it is safe.

        Args:
          kind: 'latest' or 'best'.
          step: meta-steps taken.
          state: a pytree of arrays.
          **facts: plain values to keep with it.

        Raises:
          DiskError: it cannot be written; those before stay.
        """
        make_folder(self._folder / kind)
        manager = self._manager(kind)
        if manager.latest_step() == step:
            return  # after a crash between two saves, the same step with the same content comes again
        arrays, facts = ocp.args.StandardSave(_flatten(state)), ocp.args.JsonSave({**facts, _SUMMED: True})
        path = self._folder / kind / str(step)
        try:
            with _quiet():
                manager.save(step, args=ocp.args.Composite(state=arrays, facts=facts), force=True)
                manager.wait_until_finished()
        except (OSError, ValueError) as error:  # the latter by TensorStore, of whatever the system says
            self._remove_unfinished(kind)
            raise cannot_write(path, _reason(error)) from error
        if jax.process_index() == 0:
            _write_sums(path)

    def set_damaged_aside(self) -> None:
        """Moves damaged checkpoints into the folder 'damaged', so that a training goes on from sound ones.

        Raises:
          DataError: no latest checkpoint is sound, though there are some.
        """
        for kind in KINDS:
            self._remove_unfinished(kind)
            steps = self._steps(kind)
            bad = {step: reason for step in steps if (reason := self._damage(kind, step))}
            if kind == "latest" and steps and len(bad) == len(steps):
                kept = self._newest_sound(kind)
                del bad[kept]
                _write_sums(self._folder / kind / str(kept))
            for step, reason in bad.items() if jax.process_index() == 0 else ():
                aside = self._folder / DAMAGED / f"{kind}-{step}"
                make_folder(aside.parent)
                (self._folder / kind / str(step)).rename(_free(aside))
                say(f"warning: {reason}; it is set aside in {aside.parent}")
            if bad and (manager := self._managers.pop(kind, None)):
                manager.close()

    def latest_step(self, kind: str) -> int | None:
        """The meta-step of the newest checkpoint of that kind; None if there is none."""
        return max(self._steps(kind), default=None)

    def facts(self, kind: str) -> dict[str, Any]:
        """The values kept with the checkpoint of that kind; empty if there is none."""
        step = self.latest_step(kind)
        return {} if step is None else self._facts(kind, step)

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

        It is the newest that is sound, with a warning if a newer one is not.

        Raises:
          DataError: there is none, or none can be read.
        """
        step = self._newest_sound(kind)
        path = self._folder / kind / str(step)
        stored = self._restored(kind, step, state=ocp.args.StandardRestore())
        # Version 0.1 kept statistics that last without their collection's name.
        return {re.sub(r"^stats\.(?=encoder\.)", "stats.lasting_stats.", n): leaf for n, leaf in stored.items()}, path

    def _remove_unfinished(self, kind: str) -> None:
        """Removes what a failed or killed writer has left, which would fill the disk."""
        for left in (self._folder / kind).glob("*.orbax-checkpoint-tmp*") if jax.process_index() == 0 else ():
            shutil.rmtree(left, ignore_errors=True)

    def _steps(self, kind: str) -> list[int]:
        if not (self._folder / kind).is_dir():
            return []
        return [int(entry.name) for entry in (self._folder / kind).iterdir() if entry.name.isdigit()]

    def _newest_sound(self, kind: str) -> int:
        """The meta-step of the newest checkpoint that is as it was written, or else of one that lacks its sums only."""
        steps = sorted(self._steps(kind), reverse=True)
        if not steps:
            raise DataError(f"no checkpoint in {self._folder / kind}; train first, with the same --workdir")
        damage = {step: self._damage(kind, step) for step in steps}
        sound = [step for step in steps if not damage[step]] or [n for n in steps if damage[n].endswith(_SUMS)]
        if not sound:
            other = "eval.checkpoint=latest takes another" if kind == "best" else "put its files back from a copy"
            raise DataError(f"{damage[steps[0]]}, and no other is sound; {other}, or train anew in another --workdir")
        if damage[steps[0]]:
            say(f"warning: {damage[steps[0]]}; taking that of meta-step {sound[0]}")
        return sound[0]

    def _damage(self, kind: str, step: int) -> str:
        """What is wrong with the files of a checkpoint; '' if nothing is, or it is of a version that kept no sums."""
        folder = self._folder / kind / str(step)
        if not (folder / _SUMS).exists():
            try:
                facts = self._facts(kind, step)
            except DataError as error:
                return str(error)
            return f"the checkpoint {folder} lacks {_SUMS}" if facts.get(_SUMMED) else ""
        try:
            expected, found = json.loads((folder / _SUMS).read_text()), _sums(folder)
            wrong = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        except (OSError, ValueError, AttributeError) as error:
            return f"cannot read the checkpoint {folder}: {error}"
        return f"the checkpoint {folder} is damaged: {wrong[0]} is not as it was written" if wrong else ""

    def _facts(self, kind: str, step: int) -> dict[str, Any]:
        return self._restored(kind, step, facts=ocp.args.JsonRestore())

    def _restored(self, kind: str, step: int, **what: Any) -> Any:
        """The one item of a checkpoint that is asked for."""
        try:
            (item,) = self._manager(kind).restore(step, args=ocp.args.Composite(**what)).values()
        except Exception as error:  # whatever a damaged file makes Orbax raise
            reason = str(error).strip().split("\n")[0]
            raise DataError(f"cannot read the checkpoint {self._folder / kind / str(step)}: {reason}") from error
        return item

    def _manager(self, kind: str) -> ocp.CheckpointManager:
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
        if kind not in self._managers:
            keep = self._keep if kind == "latest" else 1
            options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
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


def _sums(folder: Path) -> dict[str, str]:
    """The SHA-256 sum of every file but that of the sums, by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _SUMS)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Orbax's own account of errors, over pages: they are raised, too."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _reason(error: Exception) -> str:
    """What the operating system said, in the words of TensorStore or its own."""
    said = re.search(r": ([^:]*) \[os_error_code", str(error))
    return said[1] if said else getattr(error, "strerror", None) or str(error).strip().split("\n")[0]


def _write_sums(folder: Path) -> None:
    content = json.dumps(_sums(folder), indent=2).encode()
    write_whole(folder / _SUMS, lambda file: file.write(content))


def _free(path: Path) -> Path:
    """The path, or if that is taken one with a number behind it."""
    paths = (path.with_name(f"{path.name}-{n}") if n else path for n in itertools.count())
    return next(path for path in paths if not path.exists())


def _flatten(state: PyTree) -> dict[str, Any]:
    names = [name.replace("/", ".") for name in tree.names(state)]
    return dict(zip(names, jax.device_get(jax.tree.leaves(state)), strict=True))
