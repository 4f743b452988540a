"""A trained model that is to be tested: that of a run, or one that is weights alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maml_jax import config as config_lib
from maml_jax.checkpoint import Checkpoints, fit_model
from maml_jax.config import Config
from maml_jax.config.transfer import for_data
from maml_jax.errors import ConfigError, DataError
from maml_jax.experiment import Experiment
from maml_jax.meta.step import MetaState
from maml_jax.models import weights
from maml_jax.startup import open_experiment, start_jax

RESULTS = Path("runs", "weights")
"""Where the results of weights go unless told otherwise, to a folder of their name: no run's."""


class Stored(NamedTuple):
    """What is stored of a trained model.

    Attributes:
      config: what it was trained under.
      arrays: by name, such as 'params.encoder.block1.conv.kernel'.
      path: where they lie.
      origin: what tells it from others, beside the step; empty for a run, which its results lie with.
    """

    config: Config
    arrays: Mapping[str, np.ndarray]
    path: Path
    origin: Mapping[str, Any]


class Run(NamedTuple):
    """A trained model with what it is tested on.

    Attributes:
      config: what it is tested under.
      trained: what it was trained under.
      experiment: of `config`.
      state: what was learned.
      origin: see `Stored`.
    """

    config: Config
    trained: Config
    experiment: Experiment
    state: MetaState
    origin: Mapping[str, Any]


def settings(place: str) -> Config:
    """The configuration that weights are tested under unless told otherwise: that of their training.

    Args:
      place: the name of a model that comes with this library, a folder that `export` wrote, or a run's work directory.

    Raises:
      UserError: there is no such model, or its files are damaged.
    """
    folder = weights.find(place)
    if not weights.is_exported(folder):
        return config_lib.load(config_lib.existing(folder) / weights.CONFIG)
    config = weights.settings(folder)
    config.parallel.update(config_lib.default().parallel)  # of the machine that it was trained on
    return config


def results_folder(place: str) -> Path:
    """Where the results of weights go unless told otherwise; with a run, to its work directory."""
    folder = weights.find(place)
    return RESULTS / folder.resolve().name if weights.is_exported(folder) else folder


def to_test(config: Config, workdir: Path, place: str | None = None, own_code: bool = False) -> Run:
    """A trained model, to be tested under `config`.

    Args:
      config: the configuration.
      workdir: where results go; of a run if no other model is given.
      place: of a model, as of `settings`.
      own_code: import the encoder of exported weights where it is code that does not belong to this library.

    Raises:
      UserError: there is no such model, it does not fit the configuration, or `workdir` is another one's.
    """
    folder = workdir if place is None else weights.find(place)
    exported = place is not None and weights.is_exported(folder)
    if (workdir / weights.CONFIG).exists() and (exported or not workdir.samefile(folder)):
        raise ConfigError(f"--workdir {workdir} holds another model; name another folder for the results of {place}")
    if place is None or not exported:
        config_lib.existing(folder)
    start_jax(config.parallel)
    stored = _exported(folder, config, own_code) if exported else _of_run(folder, config)
    named = {name.removeprefix("params.").replace(".", "/"): leaf for name, leaf in stored.arrays.items()}
    config = for_data(config, stored.config, named)
    experiment = open_experiment(config, workdir, stored.config)
    try:
        state = fit_model(stored.arrays, stored.path, experiment.fresh_state())
    except DataError as error:
        raise _misfit(error, config, stored.config) from error
    return Run(config, stored.config, experiment, state, stored.origin)


def _of_run(workdir: Path, config: Config) -> Stored:
    trained = config_lib.load(workdir / weights.CONFIG)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return Stored(trained, *checkpoints.read(config.eval.checkpoint), {})


def _exported(folder: Path, config: Config, own_code: bool) -> Stored:
    model = weights.load(folder, own_code)
    kept = model.config.eval.checkpoint
    if config.eval.checkpoint != kept:
        raise ConfigError(
            f"eval.checkpoint={config.eval.checkpoint!r}, but {folder} holds the {kept} one only",
            {"eval.checkpoint": kept},
        )
    arrays = {name: np.asarray(leaf) for name, leaf in weights.named(model).items()}
    origin = {"weights": folder.resolve().name, "weights_sha256": weights.sha256(folder / weights.ARRAYS)}
    return Stored(model.config, {**arrays, "step": np.int32(model.step)}, folder / weights.ARRAYS, origin)


def _misfit(error: DataError, config: Config, trained: Config) -> DataError:
    """The error of a model that does not fit, with the settings of the model that differ from its training."""
    old, new = config_lib.flatten(trained), config_lib.flatten(config)
    shaping = ("learn_rates", "rates_per_step", "precondition", "steps")
    sections = ("model.", "task.way", "data.image_size", *(f"inner.{name}" for name in shaping))
    changed = [field for field in new if field.startswith(sections) and new[field] != old[field]]
    if not changed:
        return error
    differences = ", ".join(f"{field} is {new[field]!r} and was {old[field]!r}" for field in changed)
    return DataError(f"{error.facts}; of the settings, {differences}", {field: old[field] for field in changed})
