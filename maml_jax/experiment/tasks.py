"""From a configuration and the stores of images to tasks."""

import dataclasses
from collections.abc import Mapping

import ml_collections

from maml_jax import data
from maml_jax.data.augment import Statistics
from maml_jax.data.sampler import TaskSpec, check_fit
from maml_jax.data.store import ClassStore
from maml_jax.data.stream import place
from maml_jax.episode import Tasks
from maml_jax.errors import ConfigError, DataError


def build_tasks(
    config: ml_collections.ConfigDict,
    stores: Mapping[str, ClassStore],
    training: bool,
    trained: ml_collections.ConfigDict | None = None,
    supervised: bool = False,
) -> tuple[Tasks | None, dict[str, Tasks]]:
    """The tasks of meta-training, if there is to be any, and those of validation and test by split.

    `supervised`, training's query sets are batches labelled by the classes of the split. What belongs to the model's
    input is as in `trained`, the configuration that it was trained under, if that is given.
    """
    splits = [config.eval.split]
    if training and config.train.validate_every:
        splits.append("val")
    make = data.data_set(config.data.name).tasks
    if make:  # tasks that are not made of images
        t, e = config.task, config.eval
        train = make(config.seed, "train", t.shot, t.query) if training else None
        return train, {split: make(config.seed, split, e.shot, e.query) for split in splits}
    constants = normalization(config, trained)
    specs = {split: _eval_spec(config, split, constants) for split in splits}
    for split, spec in specs.items():
        try:
            _check_data(config, stores, split, spec, "eval")
        except ConfigError as error:
            if "eval.way" in error.settings and config.eval.way == config.task.way and trained is None:
                # What was to be alike stays so: not all that is learned goes with another number of ways.
                error.settings["task.way"] = error.settings["eval.way"]
            raise
    of = lambda used, specs: place(  # noqa: E731
        {split: stores[split] for split in used}, specs, config.data.placement, config.data.device_share
    )
    if not training:
        return None, of(splits, specs)
    spec = _batch_spec(config, stores["train"].num_classes) if supervised else _train_spec(config)
    _check_data(config, stores, "train", spec, "task")
    together = of(["train", *splits[1:]], {**specs, "train": spec})  # those that are used at the same time
    return together.pop("train"), {**of(splits[:1], specs), **together}


def stored_data(config: ml_collections.ConfigDict) -> data.DataSettings:
    """`config.data` as the store is built from it: its `image_size` is that of the stored images."""
    settings = {field.name: config.data[field.name] for field in dataclasses.fields(data.DataSettings)}
    settings["image_size"] = config.data.stored_size or config.data.image_size
    needed = max(part.shot + part.query for part in (config.task, config.eval))
    settings["skip_small"] = needed if config.data.skip_small else 0
    return data.DataSettings(**settings)


def _train_spec(config: ml_collections.ConfigDict) -> TaskSpec:
    """How the tasks of meta-training are drawn."""
    t, d = config.task, config.data
    return TaskSpec(
        seed=config.seed,
        split="train",
        way=t.way,
        shot=t.shot,
        query=t.query,
        rotations=d.rotations,
        support_augment=d.support_augment,
        query_augment=d.query_augment,
        normalization=normalization(config),
        size=d.image_size,
    )


def _batch_spec(config: ml_collections.ConfigDict, classes: int) -> TaskSpec:
    """Batches of about `train.pretrain_batch` images, all classes as often; the support sets are not looked at."""
    way = min(config.train.pretrain_batch, classes)
    query = -(-config.train.pretrain_batch // way)
    return dataclasses.replace(_train_spec(config), way=way, shot=1, query=query, split_labels=True)


def _eval_spec(config: ml_collections.ConfigDict, split: str, constants: Statistics | None) -> TaskSpec:
    """How the tasks of validation and test are drawn: classes not turned, images not augmented at random."""
    e = config.eval
    return TaskSpec(
        config.seed,
        split,
        e.way,
        e.shot,
        e.query,
        support_augment=e.augment,
        query_augment=e.augment,
        normalization=constants,
        size=config.data.image_size,
    )


def normalization(
    config: ml_collections.ConfigDict, trained: ml_collections.ConfigDict | None = None
) -> Statistics | None:
    """Mean and deviation per channel that `data.normalize` stands for; None for 'none'.

    Those of the data set that the model was trained on, whichever it is tested on, unless `data.normalize` has changed.

    Raises:
      ConfigError: it is 'dataset', and none are published for the data set.
    """
    if config.data.normalize == "none":
        return None
    if config.data.normalize == "imagenet":
        return data.IMAGENET_STATISTICS
    kept = trained is not None and trained.data.normalize == config.data.normalize
    name = trained.data.name if kept else config.data.name
    statistics = data.data_set(name).statistics
    if statistics is None:
        raise ConfigError(
            f"data.normalize='dataset', but no statistics are in use for {name!r}",
            {"data.normalize": "none"},
        )
    return statistics


def _check_data(
    config: ml_collections.ConfigDict, stores: Mapping[str, ClassStore], split: str, spec: TaskSpec, section: str
) -> None:
    """Refuses tasks that the data are too small for, or images that the normalisation does not fit."""
    if split not in stores:
        raise DataError(f"data.name={config.data.name!r} has no {split!r} split; it has {', '.join(stores)}")
    check_fit(spec, stores[split], section)
    channels = stores[split].image_shape[2]
    if spec.normalization and channels != len(spec.normalization[0]):
        raise DataError(
            f"data.normalize={config.data.normalize!r} is for images of {len(spec.normalization[0])} channels, "
            f"but those of {config.data.name!r} have {channels}",
            {"data.normalize": "none"},
        )
