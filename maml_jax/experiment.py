"""From a configuration to the pieces it describes."""

import dataclasses
from collections.abc import Mapping

import jax
import ml_collections
import optax

from maml_jax import data
from maml_jax.data import sinusoid
from maml_jax.data.augment import Statistics
from maml_jax.data.sampler import TaskSpec, check_fit
from maml_jax.data.sinusoid import SinusoidSpec
from maml_jax.data.store import ClassStore
from maml_jax.data.stream import Images
from maml_jax.errors import ConfigError, DataError
from maml_jax.meta import inner
from maml_jax.meta.parallel import choose_devices
from maml_jax.meta.rates import LearnedRates
from maml_jax.meta.step import Annealing
from maml_jax.nn import model
from maml_jax.nn.model import Model


def build_model(config: ml_collections.ConfigDict, way: int, image_shape: tuple[int, int, int]) -> Model:
    """The classifier of `config.model` for a number of classes and an image shape."""
    m = config.model
    return model.build(
        m.encoder,
        m.width,
        m.norm,
        m.head,
        way,
        image_shape,
        m.temperature,
        m.learn_temperature,
        half=m.precision == "bfloat16",
        loss=m.loss,
        steps=config.inner.steps,
        piece=m.piece_mib * 2**20 or default_piece(),
    )


def build_inner(config: ml_collections.ConfigDict) -> inner.InnerLoop:
    """The inner loop of `config.inner`."""
    c = config.inner
    root = c.epsilon**2  # √(v + ε²) for √v + ε, whose derivative at v = 0 is infinite
    adaptive = {
        "rmsprop": lambda: optax.scale_by_rms(decay=0.99, eps=root, eps_in_sqrt=True),
        "adam": lambda: optax.scale_by_adam(b1=0.9, b2=0.999, eps=0.0, eps_root=root),
    }
    if c.optimizer == "sgd":
        rule = inner.sgd(c.encoder_rate, c.head_rate, c.momentum, c.weight_decay)
    else:
        rule = inner.descent(adaptive[c.optimizer](), c.encoder_rate, c.head_rate, c.weight_decay)
    rates = None
    if c.learn_rates != "none":
        steps = c.steps if c.rates_per_step else 0
        rates = LearnedRates(c.learn_rates, c.encoder_rate, c.head_rate, steps, c.positive_rates)
    return inner.InnerLoop(
        optimizer=rule,
        is_adapted=inner.all_but(c.fixed),
        first_order=c.first_order,
        checkpoint=c.checkpoint,
        forward_over_reverse=c.forward_over_reverse,
        rates=rates,
    )


def build_outer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """The outer optimiser of `config.outer`, with PyTorch's constants; weight decay is added to the gradient."""
    c = config.outer
    rules = {
        "adam": lambda: optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
        "sgd": lambda: optax.trace(c.momentum),
        "rmsprop": lambda: optax.scale_by_rms(decay=0.99, eps=1e-8, eps_in_sqrt=False),
    }
    return optax.chain(
        optax.clip(c.clip) if c.clip else optax.identity(),
        optax.add_decayed_weights(c.weight_decay) if c.weight_decay else optax.identity(),
        rules[c.optimizer](),
        optax.scale_by_learning_rate(build_schedule(config)),
    )


def build_annealing(config: ml_collections.ConfigDict) -> Annealing:
    """How the objective depends on the meta-step, by `config.outer`."""
    return Annealing(config.outer.multi_step, config.outer.first_order)


def build_schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
    """The outer learning rate as a function of the meta-steps taken, changing every `outer.period` of them."""
    c = config.outer
    schedules = {
        "constant": lambda: optax.constant_schedule(c.rate),
        "step": lambda: optax.piecewise_constant_schedule(c.rate, dict.fromkeys(c.milestones, c.factor)),
        "cosine": lambda: optax.cosine_decay_schedule(c.rate, max(config.train.steps, 1)),
    }
    schedule = schedules[c.schedule]()
    return lambda step: schedule(step // c.period * c.period)


def train_tasks(config: ml_collections.ConfigDict) -> TaskSpec | SinusoidSpec:
    """The tasks of meta-training."""
    t, d = config.task, config.data
    if d.name == sinusoid.NAME:
        return SinusoidSpec(config.seed, "train", t.shot, t.query)
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


def eval_tasks(config: ml_collections.ConfigDict, split: str) -> TaskSpec | SinusoidSpec:
    """The tasks of validation and test: classes not turned, images not augmented at random."""
    e = config.eval
    if config.data.name == sinusoid.NAME:
        return SinusoidSpec(config.seed, split, e.shot, e.query)
    return TaskSpec(
        config.seed,
        split,
        e.way,
        e.shot,
        e.query,
        support_augment=e.augment,
        query_augment=e.augment,
        normalization=normalization(config),
        size=config.data.image_size,
    )


def normalization(config: ml_collections.ConfigDict) -> Statistics | None:
    """Mean and deviation per channel that `data.normalize` stands for; None for 'none'.

    Raises:
      ConfigError: it is 'dataset', and none are published for the data set.
    """
    if config.data.normalize == "none":
        return None
    if config.data.normalize == "imagenet":
        return data.IMAGENET_STATISTICS
    statistics = data.data_set(config.data.name).statistics
    if statistics is None:
        raise ConfigError(
            f"data.normalize='dataset', but no statistics are in use for {config.data.name!r}; "
            "use --config.data.normalize=none"
        )
    return statistics


def stored_data(config: ml_collections.ConfigDict) -> data.DataSettings:
    """`config.data` as the store is built from it: its `image_size` is that of the stored images."""
    settings = {field.name: config.data[field.name] for field in dataclasses.fields(data.DataSettings) if field.name in config.data}
    return data.DataSettings(**{**settings, "image_size": config.data.stored_size or config.data.image_size})


def image_shape(config: ml_collections.ConfigDict, images: Images) -> tuple[int, int, int]:
    """Height, width and channels of an image as the model sees it; `(1,)`, an input, in sinusoid regression."""
    if config.data.name == sinusoid.NAME:
        return images.image_shape
    return config.data.image_size, config.data.image_size, images.image_shape[2]


def devices(config: ml_collections.ConfigDict) -> list[jax.Device]:
    """The devices that share the tasks of a meta-step."""
    return choose_devices(config.train.tasks, config.parallel.devices)


def tasks_at_once(config: ml_collections.ConfigDict) -> int:
    """How many tasks of a meta-step a device computes side by side: as set, else one on a CPU and all elsewhere."""
    if config.train.tasks_at_once:
        return config.train.tasks_at_once
    return 1 if jax.default_backend() == "cpu" else config.train.tasks // len(devices(config))


def default_piece() -> int:
    """Bytes of a layer's images at once, unless set: on a CPU what stays in its cache, and no limit (0) elsewhere."""
    return 5 * 2**20 if jax.default_backend() == "cpu" else 0


def check_devices(config: ml_collections.ConfigDict) -> None:
    """Refuses a distribution over devices that does not come out even.

    Raises:
      ConfigError: more devices than there are, or tasks that cannot be shared out evenly.
    """
    tasks, count, at_once = config.train.tasks, config.parallel.devices, config.train.tasks_at_once
    if count > len(jax.devices()):
        raise ConfigError(f"parallel.devices={count}, but there are only {len(jax.devices())}; 0 takes what there is")
    if count and tasks % count:
        raise ConfigError(f"parallel.devices={count} does not divide train.tasks={tasks}")
    if jax.process_count() > 1 and len(devices(config)) < len(jax.devices()):
        raise ConfigError(
            f"the {jax.process_count()} processes have {len(jax.devices())} devices, all of which must take part, so "
            f"train.tasks={tasks} must be a multiple of that, and parallel.devices=0"
        )
    share = tasks // len(devices(config))
    if at_once and share % at_once:
        raise ConfigError(
            f"train.tasks_at_once={at_once} does not divide the {share} tasks of a device "
            f"({tasks} on {len(devices(config))}); set another, or --config.parallel.devices=1"
        )


def check_data(config: ml_collections.ConfigDict, stores: Mapping[str, ClassStore], training: bool) -> None:
    """Refuses tasks that the data are too small for, or images that the normalisation does not fit.

    Raises:
      ConfigError: see `check_fit`.
      DataError: a split that is needed is lacking, or channels do not fit.
    """
    if config.data.name == sinusoid.NAME:
        return
    needed = [("eval", eval_tasks(config, config.eval.split))]
    if training:
        needed.insert(0, ("task", train_tasks(config)))
        if config.train.validate_every:
            needed.append(("eval", eval_tasks(config, "val")))
    for section, spec in needed:
        split = spec.split
        if split not in stores:
            raise DataError(f"data.name={config.data.name!r} has no {split!r} split; it has {', '.join(stores)}")
        check_fit(spec, stores[split], section)
        channels = stores[split].image_shape[2]
        if spec.normalization and channels != len(spec.normalization[0]):
            raise DataError(
                f"data.normalize={config.data.normalize!r} is for images of {len(spec.normalization[0])} channels, "
                f"but those of {config.data.name!r} have {channels}; use --config.data.normalize=none"
            )
