"""From a configuration to values: what is meta-learned, from which tasks, how, and on which devices."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import optax

from maml_jax.data.store import ClassStore
from maml_jax.data.stream import example
from maml_jax.episode import Tasks
from maml_jax.experiment.method import build_method, build_outer, build_tested
from maml_jax.experiment.tasks import build_tasks, normalization, stored_data
from maml_jax.meta.method import Method
from maml_jax.meta.step import MetaState, init_state
from maml_jax.nn.norm import Normalization
from maml_jax.parallel import check_devices, choose_devices

__all__ = ["Experiment", "Testing", "Training", "stored_data"]


class Training(NamedTuple):
    """How long meta-training is, and what happens along the way; counts of meta-steps unless told otherwise.

    Attributes:
      steps: in all.
      tasks: per meta-step, over all devices.
      tasks_at_once: that a device takes side by side, a divisor of its share.
      report_every: between lines of progress; so many run as one compiled call.
      validate_every: between validations; 0: never.
      validation_tasks: tasks of a validation.
      checkpoint_every: between checkpoints to resume from.
      on_nonfinite: 'stop' at a meta-step that comes to a number which is infinite or none, or 'skip' it.
      keep: how many of the latest checkpoints.
    """

    steps: int
    tasks: int
    tasks_at_once: int
    report_every: int
    validate_every: int
    validation_tasks: int
    checkpoint_every: int
    on_nonfinite: str = "stop"
    keep: int = 2


class Testing(NamedTuple):
    """The protocol of validation and test.

    Attributes:
      split: 'test', 'val' or 'train'.
      tasks: how many.
      steps: inner steps.
      checkpoint: 'best' or 'latest'.
      by_step: measure after each inner step, too.
      facts: what is to be known beside the figures: ways, shots, queries, normalisation, ....
      data: where the tested images come from, and how the model sees them.
    """

    split: str
    tasks: int
    steps: int
    checkpoint: str
    by_step: bool
    facts: dict[str, Any]
    data: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A configuration, checked and built once; behind it there is none.

    Attributes:
      seed: of initialisation.
      method: how a task's gradient is taken, and the learner.
      tested: the method at meta-test, which may have another number of ways, normalisation, start of the head or rates.
      optimizer: the outer optimiser.
      tasks: of meta-training; None where no training is to be.
      eval_tasks: of validation and test, by split.
      training: how long, and what happens along the way.
      testing: the protocol of validation and test.
      devices: that share the tasks of a meta-step.
      backend: 'shard_map' or 'pmap'.
      stores: the images by split; none for tasks that are not made of images.
    """

    seed: int
    method: Method
    tested: Method
    optimizer: optax.GradientTransformation
    tasks: Tasks | None
    eval_tasks: Mapping[str, Tasks]
    training: Training
    testing: Testing
    devices: list[jax.Device]
    backend: str
    stores: Mapping[str, ClassStore]

    @classmethod
    def of(
        cls,
        config: ml_collections.ConfigDict,
        stores: Mapping[str, ClassStore],
        training: bool = True,
        trained: ml_collections.ConfigDict | None = None,
    ) -> "Experiment":
        """Builds what a checked configuration describes.

        Args:
          config: the configuration.
          stores: the images by split; none for tasks that are not made of images.
          training: whether there is to be meta-training, against evaluation alone.
          trained: the configuration that the model was trained under, if that is another one.

        Raises:
          ConfigError: tasks do not fit the data, or the devices.
          DataError: a split that is needed is lacking, or channels do not fit.
        """
        check_devices(config.train.tasks, config.parallel.devices, config.train.tasks_at_once)
        tasks, eval_tasks = build_tasks(config, stores, training, trained)
        devices = choose_devices(config.train.tasks, config.parallel.devices)
        return cls(
            seed=config.seed,
            method=build_method(config, config.task.way),
            tested=build_tested(config, config.eval.way),
            optimizer=build_outer(config),
            tasks=tasks,
            eval_tasks=eval_tasks,
            training=_training(config, len(devices)),
            testing=_testing(config, stores, trained),
            devices=devices,
            backend=config.parallel.backend,
            stores=stores,
        )

    def fresh_state(self) -> MetaState:
        """The state that training starts from."""
        tasks = self.tasks or next(iter(self.eval_tasks.values()))
        return init_state(self.method, self.optimizer, jax.random.key(self.seed), example(tasks))


def _training(config: ml_collections.ConfigDict, devices: int) -> Training:
    t = config.train
    at_once = t.tasks_at_once or (1 if jax.default_backend() == "cpu" else t.tasks // devices)
    return Training(
        steps=t.steps,
        tasks=t.tasks,
        tasks_at_once=at_once,
        report_every=1 if config.debug else t.report_every,
        validate_every=t.validate_every,
        validation_tasks=t.validation_tasks,
        checkpoint_every=t.checkpoint_every,
        on_nonfinite=t.on_nonfinite,
        keep=t.keep,
    )


def _testing(
    config: ml_collections.ConfigDict, stores: Mapping[str, ClassStore], trained: ml_collections.ConfigDict | None
) -> Testing:
    e = config.eval
    facts = {
        "data": config.data.name,
        "way": e.way,
        "shot": e.shot,
        "query": e.query,
        "augment": e.augment,
        "normalize": config.data.normalize,
        "norm": config.model.norm,
        "head": e.head,
        "trained_head": config.model.head,
        "rate_factor": e.rate_factor,
        "transductive": Normalization.parse(config.model.norm, config.inner.steps).transductive,
        "seed": config.seed,
    }
    return Testing(e.split, e.tasks, e.steps, e.checkpoint, e.by_step, facts, _data_facts(config, stores, trained))


def _data_facts(config, stores, trained):
    facts = {"name": config.data.name, "trained_on": (trained or config).data.name}
    if config.eval.split not in stores:
        return facts
    store = stores[config.eval.split]
    return facts | {
        "dir": config.data.dir,
        "classes": store.num_classes,
        "images": len(store.images),
        "sha256": store.sha256,
        "image_size": config.data.image_size,
        "channels": store.image_shape[2],
        "normalization": normalization(config, trained),
    }
