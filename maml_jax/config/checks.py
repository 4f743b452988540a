"""Fields of a configuration that contradict each other, each refused with settings that mend it."""

import re
from typing import Any

import ml_collections

from maml_jax.config.fields import BY_NAME
from maml_jax.data import DATA_SETS
from maml_jax.errors import ConfigError
from maml_jax.experiment.method import METHODS, silent
from maml_jax.nn.norm import Normalization
from maml_jax.nn.starts import STARTS


def check_together(config: ml_collections.ConfigDict) -> None:
    """Refuses fields that are fine one by one, but not together.

    Raises:
      ConfigError: naming the fields and the way out.
    """
    Normalization.parse(config.model.norm)  # raises if malformed
    _check_parallel(config.parallel)
    _check_sizes(config)
    _check_regression(config)
    _check_method(config)
    _check_pretraining(config)
    _check_optimizers(config)
    _check_steps(config)
    _check_rates(config)
    _check_head(config)
    _check_ways(config)


def _check_parallel(parallel: ml_collections.ConfigDict) -> None:
    process, processes = parallel.process, parallel.processes
    if process >= processes:
        raise ConfigError(
            f"parallel.process={process} must be less than parallel.processes={processes}",
            {"parallel.process": processes - 1},
        )
    if processes > 1 and not parallel.coordinator:
        raise ConfigError(
            f"parallel.processes={processes}, but parallel.coordinator does not say where the first of them is",
            {"parallel.coordinator": "HOST:1234"},
        )


def _check_sizes(config: ml_collections.ConfigDict) -> None:
    stored, seen = config.data.stored_size, config.data.image_size
    if 0 < stored < seen:
        raise ConfigError(
            f"data.stored_size={stored} is smaller than data.image_size={seen}, which the model sees",
            {"data.stored_size": 0},
        )
    tasks, at_once = config.train.tasks, config.train.tasks_at_once
    if at_once and tasks % at_once:
        raise ConfigError(
            f"train.tasks_at_once={at_once} does not divide train.tasks={tasks}", {"train.tasks_at_once": 0}
        )
    if config.eval.checkpoint == "best" and not config.train.validate_every and not _is_regression(config):
        raise ConfigError(
            "eval.checkpoint='best' is picked by validation, but train.validate_every=0", {"eval.checkpoint": "latest"}
        )


def _value(config: ml_collections.ConfigDict, name: str) -> Any:
    section, field = name.split(".")
    return config[section][field]


def _is_regression(config: ml_collections.ConfigDict) -> bool:
    """Whether the tasks are made of numbers, with no classes, and no images to tell apart."""
    return config.data.name in DATA_SETS and DATA_SETS[config.data.name].tasks is not None


def _check_regression(config: ml_collections.ConfigDict) -> None:
    """Refuses settings for classes where there are none, and the other way round.

    In regression there is one way, nothing to validate by, and a network that takes numbers: `mlp`, or the user's own.
    """
    way = max(config.task.way, 2)
    # Field: what it is in regression, and what instead where there are classes; None leaves it as it is.
    kinds = {
        "model.loss": ("squared_error", "cross_entropy"),
        "model.encoder": ("mlp", "convnet4"),
        "task.way": (1, 2),
        "eval.way": (1, way),
        "train.validate_every": (0, None),
        "eval.checkpoint": ("latest", None),
    }
    regression = _is_regression(config)
    wrong, settings = [], {}
    for name, (in_regression, otherwise) in kinds.items():
        value = _value(config, name)
        if name == "model.encoder" and ":" in value:
            continue
        if (value != in_regression) if regression else (value == in_regression and otherwise is not None):
            wrong.append(f"{name}={value!r}")
            settings[name] = in_regression if regression else otherwise
    for name in ("model.head", "eval.head"):
        if regression and _value(config, name) == "prototypes":
            wrong.append(f"{name}='prototypes'")
            settings[name] = "meta"
    if wrong:
        kind = "regression" if regression else "classification"
        does = "does not go" if len(wrong) == 1 else "do not go"
        raise ConfigError(f"{', '.join(wrong)} {does} with data.name={config.data.name!r}, which is {kind}", settings)


def _check_method(config: ml_collections.ConfigDict) -> None:
    """Refuses settings that say nothing to the method, and those that leave out what it needs."""
    method = config.outer.method
    for name in silent(method):
        if _value(config, name) != BY_NAME[name].default:
            raise ConfigError(
                f"{name}={_value(config, name)!r} says nothing with outer.method={method!r}",
                {name: BY_NAME[name].default},
            )
    for name, value in METHODS[method].needs.items():
        if _value(config, name) == BY_NAME[name].default:
            raise ConfigError(
                f"{name}={_value(config, name)!r} will not do with outer.method={method!r}", {name: value}
            )
    for name, value, why in METHODS[method].refuses:
        if _value(config, name) == value:
            raise ConfigError(
                f"{name}={value!r} does not go with outer.method={method!r}: {why}",
                {name: BY_NAME[name].default},
            )


def _check_pretraining(config: ml_collections.ConfigDict) -> None:
    t = config.train
    if t.pretrain and t.start:
        raise ConfigError(
            f"train.pretrain={t.pretrain} and train.start={t.start!r} both say what meta-training starts from",
            {"train.pretrain": 0},
        )
    if t.pretrain and _is_regression(config):
        raise ConfigError(
            f"train.pretrain={t.pretrain} needs classes, and data.name={config.data.name!r} is regression",
            {"train.pretrain": 0},
        )


def _check_optimizers(config: ml_collections.ConfigDict) -> None:
    c = config.inner
    if c.momentum and c.optimizer != "sgd":
        raise ConfigError(
            f"inner.momentum={c.momentum} is sgd's, but inner.optimizer={c.optimizer!r}", {"inner.momentum": 0.0}
        )
    if config.outer.first_order and c.first_order:
        raise ConfigError(
            f"outer.first_order={config.outer.first_order} ends after so many meta-steps, but inner.first_order=True "
            "stays first order",
            {"outer.first_order": 0},
        )


def _check_steps(config: ml_collections.ConfigDict) -> None:
    """Refuses what belongs to inner steps where there are none, or too few."""
    steps = config.inner.steps
    if config.outer.multi_step and steps < 2:
        raise ConfigError(
            f"outer.multi_step={config.outer.multi_step} weighs the losses after several inner steps, but "
            f"inner.steps={steps}",
            {"outer.multi_step": 0},
        )
    if "per_step" in config.model.norm and not steps:
        raise ConfigError(f"model.norm={config.model.norm!r} needs steps, but inner.steps=0", {"inner.steps": 1})
    if config.inner.rates_per_step and config.inner.learn_rates != "none" and not steps:
        raise ConfigError("inner.rates_per_step=True needs steps, but inner.steps=0", {"inner.steps": 1})


def _check_rates(config: ml_collections.ConfigDict) -> None:
    c = config.inner
    if c.learn_rates == "none":
        for field in ("rates_per_step", "positive_rates"):
            if c[field]:
                raise ConfigError(
                    f"inner.{field}=True is about learned rates, but inner.learn_rates='none'",
                    {"inner.learn_rates": "tensor"},
                )
    elif c.positive_rates and not (c.encoder_rate and c.head_rate):
        raise ConfigError(
            f"inner.positive_rates=True learns logarithms, but a rate that starts at 0 has none "
            f"(inner.encoder_rate={c.encoder_rate}, inner.head_rate={c.head_rate})",
            {"inner.positive_rates": False},
        )


def _head_stays(config: ml_collections.ConfigDict, at_test: bool = False) -> str:
    """The setting that keeps the head where it starts; '' if none does."""
    c, steps = config.inner, "eval.steps" if at_test else "inner.steps"
    if c.fixed and re.search(c.fixed, "head/kernel"):
        return f"inner.fixed={c.fixed!r}"
    if not _value(config, steps):
        return f"{steps}=0"
    if not c.head_rate and c.learn_rates == "none":
        return f"inner.head_rate={c.head_rate}"
    return ""


def _check_head(config: ml_collections.ConfigDict) -> None:
    """Refuses a head all of whose classes start the same and never part, and a start at test from what is not there."""
    head, at_test = config.model.head, config.eval.head
    stays = _head_stays(config)
    if STARTS[head].alike and stays:
        raise ConfigError(
            f"{stays} keeps the head from adapting, so with model.head={head!r} all classes would stay the same",
            {"model.head": "meta"} | _as_trained(config),
        )
    if at_test == head:
        return
    needed = {"meta": ("meta",), "shared": ("meta", "shared")}.get(at_test, tuple(STARTS))
    if head not in needed:
        raise ConfigError(
            f"eval.head={at_test!r} starts from a learned head, and model.head={head!r} learns none of the kind",
            {"eval.head": head} | _as_trained(config),
        )
    stays = _head_stays(config, at_test=True)
    if STARTS[at_test].alike and stays:
        raise ConfigError(
            f"{stays} keeps the head from adapting, so with eval.head={at_test!r} all classes would stay the same",
            {"eval.head": head} | _as_trained(config),
        )


def _as_trained(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What makes the number of ways at test that of training."""
    return {} if config.eval.way == config.task.way else {"eval.way": config.task.way}


def _check_ways(config: ml_collections.ConfigDict) -> None:
    """Refuses another number of ways at test where something that is learned has a fixed one."""
    if config.eval.way == config.task.way:
        return
    fixed, settings = [], {}
    if not STARTS[config.eval.head].any_way:
        fixed.append("a meta-learned head")
        settings["model.head"] = "zero"
    if config.inner.learn_rates == "element":
        fixed.append("a rate for each element of the head")
        settings["inner.learn_rates"] = "tensor"
    if config.inner.precondition != "none":
        fixed.append("a preconditioner of the head")
        settings["inner.precondition"] = "none"
    if fixed:
        facts = f"eval.way={config.eval.way} differs from task.way={config.task.way}, but {' and '.join(fixed)} "
        facts += f"{'has' if len(fixed) == 1 else 'have'} a fixed number of ways"
        raise ConfigError(facts, _as_trained(config) if _head_stays(config) else settings)
