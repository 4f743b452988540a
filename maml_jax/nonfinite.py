"""Training that came to a number which is infinite or none: what is kept of it, and `replay`, which looks closer.

What is kept is a meta-step: the state before it and its tasks, as arrays in one file, with the configuration. Nothing
else is needed to take it again.
"""

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from maml_jax import config as config_lib
from maml_jax import tree
from maml_jax.bounded import read_npz
from maml_jax.episode import Episode
from maml_jax.errors import DataError, UserError
from maml_jax.experiment import Experiment
from maml_jax.experiment.method import build_method, build_outer
from maml_jax.files import make_folder, write_whole
from maml_jax.meta.method import Method
from maml_jax.meta.step import MetaState, init_state
from maml_jax.models.arguments import Parser
from maml_jax.tree import PyTree

FOLDER = "nonfinite"
_SHOWN = 3


class NotFinite(UserError):
    """Training came to a number that is infinite or none.

    Args:
      step: the meta-step, from 1.
      what: of its numbers.
      kept: the file that the meta-step is kept in; None if it is not.
      all_of: how many meta-steps were left out before it, without one that was not; 0 if it stopped at once.
    """

    def __init__(self, step: int, what: str, kept: Path | None = None, all_of: int = 0):
        replay = f"; python launch.py replay {kept} takes it again" if kept else ""
        none = f"none of {all_of} meta-steps from here on came to finite numbers; " if all_of else ""
        skip = "" if all_of else "; or leave such meta-steps out with train.on_nonfinite=skip"
        super().__init__(
            f"meta-step {step}: {what}; {none}a checkpoint from before stays{replay}. Lower inner.encoder_rate and "
            f"inner.head_rate, or outer.rate, or clip with inner.clip or outer.clip, in a new work directory{skip}"
        )
        self.step, self.what = step, what


@dataclasses.dataclass(frozen=True)
class TaskReport:
    """What became of one task of a meta-step.

    Attributes:
      support_losses: before each inner step, `[steps]`.
      loss: of the queries.
      broken: names of the tensors of its gradient that are not finite.
      tensors: of its gradient, in all.
    """

    support_losses: np.ndarray
    loss: float
    broken: tuple[str, ...]
    tensors: int

    @property
    def first(self) -> str:
        """What is not finite, the first of it in the order of computation; '' if all is."""
        wrong = np.flatnonzero(~np.isfinite(self.support_losses))
        if len(wrong):
            return f"the support loss before inner step {wrong[0] + 1} is {self.support_losses[wrong[0]]}"
        if not np.isfinite(self.loss):
            return f"the query loss is {self.loss}"
        if self.broken:
            more = f" and {len(self.broken) - _SHOWN} more" if len(self.broken) > _SHOWN else ""
            return f"the meta-gradient of {', '.join(self.broken[:_SHOWN])}{more} is not finite"
        return ""

    def __str__(self) -> str:
        losses = " ".join(f"{loss:.4g}" for loss in self.support_losses) or "none"
        return (
            f"support losses {losses}; query loss {self.loss:.4g}; {len(self.broken)} of {self.tensors} tensors of the "
            f"gradient not finite{f': {self.first}' if self.first else ''}"
        )


def look_closer(method: Method, state: MetaState, episodes: Episode) -> list[TaskReport]:
    """Takes each task of a meta-step by itself.

    Args:
      method: what is trained.
      state: before the meta-step; its optimiser's state is not looked at.
      episodes: a batch of tasks.
    """

    @jax.jit
    def take(params, stats, episode, step):
        gradient, result = method.task_gradient(params, stats, episode, step)
        sound = {name: jax.numpy.isfinite(leaf).all() for name, leaf in tree.by_name(gradient).items()}
        return result.support_losses, result.loss, sound

    reports = []
    for i in range(len(episodes.support_y)):
        episode = jax.tree.map(lambda x, i=i: x[i], episodes)
        losses, loss, sound = jax.device_get(take(state.params, state.stats, episode, state.step))
        broken = tuple(name for name, fine in sound.items() if not fine)
        reports.append(TaskReport(losses, float(loss), broken, len(sound)))
    return reports


def explained(error: NotFinite, experiment: Experiment, state: MetaState, workdir: Path) -> NotFinite:
    """The error with the task and the quantity that came first, once the meta-step is kept in the work directory.

    Args:
      error: what training found.
      experiment: what was trained.
      state: before the meta-step; if it is not that, the error stays as it is.
      workdir: of the run.
    """
    state = jax.device_get(state)
    if int(state.step) != error.step - 1 or jax.process_index() > 0:
        return error
    per_step = experiment.training.tasks
    indices = int(state.step) * per_step + np.arange(per_step, dtype=np.int32)
    episodes = jax.tree.map(lambda *x: jax.numpy.stack(x), *(experiment.tasks.sample(i) for i in indices))
    with jax.debug_nans(False):
        reports = look_closer(experiment.method, state, episodes)
    wrong = next((f"task {i} of {per_step}: {r.first}" for i, r in enumerate(reports, 1) if r.first), error.what)
    return NotFinite(error.step, wrong, _keep(workdir, state, episodes))


def _keep(workdir: Path, state: MetaState, episodes: Episode) -> Path:
    stored = workdir / "config.json"
    key = {} if episodes.key is None else {"episodes/key": jax.random.key_data(episodes.key)}
    parts = {"params": state.params, "stats": state.stats, "step": state.step}
    images = {f"episodes/{name}": getattr(episodes, name) for name in Episode._fields if name != "key"}
    arrays = {**tree.by_name(parts), **images, **key, "config": stored.read_text() if stored.exists() else ""}
    packed = io.BytesIO()
    np.savez(packed, **{name: np.asarray(value) for name, value in jax.device_get(arrays).items()})
    path = workdir / FOLDER / f"step-{int(state.step) + 1}.npz"
    make_folder(path.parent)
    write_whole(path, lambda file: file.write(packed.getvalue()))
    return path


def main(arguments: Sequence[str]) -> int:
    """The verb `replay`: takes a kept meta-step again, and says of each task what is not finite.

    Returns:
      The exit status: 0 if all is finite this time, 1 if not.
    """
    parser = Parser("replay", "Takes a meta-step again that training stopped at, and says what is not finite.")
    parser.add_argument("file", type=Path, metavar="FILE", help=f"in the folder {FOLDER} of a work directory")
    path = parser.parse_args(arguments).file
    method, state, episodes = load(path)
    reports = look_closer(method, state, episodes)
    print(f"meta-step {int(state.step) + 1}, {len(reports)} tasks")
    for i, report in enumerate(reports, 1):
        print(f"  task {i}: {report}")
    return 1 if any(report.first for report in reports) else 0


def load(path: Path) -> tuple[Method, MetaState, Episode]:
    """The method, the state and the tasks of a kept meta-step.

    Raises:
      DataError: the file is not there, or is no such file.
      ConfigError: its configuration makes no sense.
    """
    try:
        arrays = read_npz(path)
        text = str(arrays.pop("config"))
        json.loads(text)
        batch = {name: arrays.pop(f"episodes/{name}") for name in Episode._fields if f"episodes/{name}" in arrays}
        if "key" in batch:
            batch["key"] = jax.random.wrap_key_data(batch["key"])
        episodes = Episode(**batch)
    except (DataError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no meta-step that training has kept: {error}") from error
    config = config_lib.from_json(text, path)
    method = build_method(config, config.task.way)
    like = jax.eval_shape(
        lambda key, episode: init_state(method, build_outer(config), key, episode),
        jax.random.key(0),
        jax.tree.map(lambda x: x[0], episodes),
    )
    wanted = {"params": like.params, "stats": like.stats, "step": like.step}
    return method, like.replace(**_filled(wanted, arrays, path)), episodes


def _filled(like: PyTree, arrays: dict[str, np.ndarray], path: Path) -> PyTree:
    def fill(name, leaf):
        if name not in arrays or arrays[name].shape != leaf.shape:
            raise DataError(f"{path} does not fit its configuration: {name} is not {leaf.shape}")
        return arrays[name]

    return tree.map_named(fill, like)
