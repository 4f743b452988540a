"""Checking configurations, and keeping them as JSON beside a run."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections

from maml_jax.data.augment import AUGMENTATIONS
from maml_jax.errors import ConfigError
from maml_jax.meta.parallel import BACKENDS
from maml_jax.meta.rates import KINDS as RATES
from maml_jax.nn.loss import LOSSES
from maml_jax.nn.model import ENCODERS, HEADS
from maml_jax.nn.norm import Normalization

Rule = tuple[Callable[[Any], bool], str]


def _one_of(*choices: str) -> Rule:
    return lambda value: value in choices, f"must be one of {', '.join(choices)}"


def _at_least(low: float) -> Rule:
    return lambda value: value >= low, f"must be at least {low}"


_POSITIVE: Rule = (lambda value: value > 0, "must be greater than 0")
_FRACTION: Rule = (lambda value: 0 <= value < 1, "must be in [0, 1)")


def _is_pattern(value: str) -> bool:
    try:
        re.compile(value)
    except re.error:
        return False
    return True


_RULES: dict[str, Rule] = {
    "seed": (lambda value: 0 <= value < 2**32, "must be in [0, 2**32)"),
    "data.image_size": _at_least(16),
    "data.stored_size": _at_least(0),
    "data.placement": _one_of("device", "host", "auto"),
    "data.device_share": (lambda value: 0 < value <= 1, "must be in (0, 1]"),
    "data.normalize": _one_of("none", "imagenet", "dataset"),
    "data.support_augment": _one_of(*AUGMENTATIONS),
    "data.query_augment": _one_of(*AUGMENTATIONS),
    "task.way": _at_least(1),
    "task.shot": _at_least(1),
    "task.query": _at_least(1),
    "model.encoder": _one_of(*ENCODERS),
    "model.width": _at_least(0),
    "model.piece_mib": _at_least(0),
    "model.temperature": _POSITIVE,
    "model.head": _one_of(*HEADS),
    "model.precision": _one_of("float32", "tf32", "bfloat16"),
    "model.loss": _one_of(*LOSSES),
    "inner.steps": _at_least(0),
    "inner.optimizer": _one_of("sgd", "rmsprop", "adam"),
    "inner.epsilon": _POSITIVE,
    "inner.learn_rates": _one_of("none", *RATES),
    "inner.encoder_rate": _at_least(0),
    "inner.head_rate": _at_least(0),
    "inner.momentum": _FRACTION,
    "inner.weight_decay": _at_least(0),
    "inner.fixed": (_is_pattern, "must be a regular expression"),
    "inner.checkpoint": _one_of("none", "step", "nested"),
    "outer.optimizer": _one_of("adam", "sgd", "rmsprop"),
    "outer.rate": _POSITIVE,
    "outer.momentum": _FRACTION,
    "outer.weight_decay": _at_least(0),
    "outer.clip": _at_least(0),
    "outer.multi_step": _at_least(0),
    "outer.first_order": _at_least(0),
    "outer.schedule": _one_of("constant", "step", "cosine"),
    "outer.milestones": (lambda value: all(isinstance(m, int) and m >= 0 for m in value), "must be meta-steps, >= 0"),
    "outer.factor": _POSITIVE,
    "outer.period": _at_least(1),
    "train.steps": _at_least(0),
    "train.tasks": _at_least(1),
    "train.tasks_at_once": _at_least(0),
    "train.report_every": _at_least(1),
    "train.validate_every": _at_least(0),
    "train.validation_tasks": _at_least(1),
    "train.checkpoint_every": _at_least(1),
    "parallel.backend": _one_of(*BACKENDS),
    "parallel.devices": _at_least(0),
    "parallel.cpu_devices": _at_least(0),
    "parallel.coordinator": (
        lambda value: value in ("", "auto") or re.fullmatch(r".+:\d+", value),
        "must be HOST:PORT of the first process, 'auto', or '' for one process",
    ),
    "parallel.processes": _at_least(1),
    "parallel.process": _at_least(0),
    "eval.split": _one_of("test", "val", "train"),
    "eval.tasks": _at_least(2),
    "eval.way": _at_least(1),
    "eval.shot": _at_least(1),
    "eval.query": _at_least(1),
    "eval.steps": _at_least(0),
    "eval.augment": _one_of("none", "enlarge"),
    "eval.checkpoint": _one_of("best", "latest"),
}


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses a configuration that cannot work, before anything is read or compiled.

    Raises:
      ConfigError: naming the field, its value and what it must be.
    """
    fields = flatten(config)
    for field, (holds, rule) in _RULES.items():
        value = fields[field]
        if not holds(value):
            raise ConfigError(f"{field}={value!r} {rule}; set it with --config.{field}=VALUE")
    Normalization.parse(config.model.norm)  # raises if malformed
    p = config.parallel
    if p.process >= p.processes:
        raise ConfigError(f"parallel.process={p.process} must be less than parallel.processes={p.processes}")
    if p.processes > 1 and not p.coordinator:
        raise ConfigError("parallel.processes > 1 needs --config.parallel.coordinator=HOST:PORT of the first process")
    if 0 < config.data.stored_size < config.data.image_size:
        raise ConfigError(
            f"data.stored_size={config.data.stored_size} is smaller than data.image_size={config.data.image_size}, "
            "which the model sees; raise it with --config.data.stored_size=SIDE, or give 0 to store that size"
        )
    tasks, at_once = config.train.tasks, config.train.tasks_at_once
    if at_once and tasks % at_once:
        raise ConfigError(f"train.tasks_at_once={at_once} does not divide train.tasks={tasks}")
    if config.eval.checkpoint == "best" and not config.train.validate_every:
        raise ConfigError("eval.checkpoint='best' is picked by validation; use --config.eval.checkpoint=latest")
    _check_inner(config)
    _check_regression(config)
    if config.eval.way != config.task.way and config.model.head != "zero":
        raise ConfigError(
            f"eval.way={config.eval.way} differs from task.way={config.task.way}, but a meta-learned head has a fixed "
            "number of ways; use --config.model.head=zero"
        )


def _check_inner(config: ml_collections.ConfigDict) -> None:
    """Refuses settings of the inner loop that contradict each other."""
    c = config.inner
    if c.momentum and c.optimizer != "sgd":
        raise ConfigError(f"inner.momentum={c.momentum} is sgd's; use --config.inner.momentum=0 with {c.optimizer}")
    if config.model.head == "zero" and c.fixed and re.search(c.fixed, "head/kernel"):
        raise ConfigError(
            f"inner.fixed={c.fixed!r} keeps the head from adapting, so with model.head='zero' it would stay zero; "
            "use --config.model.head=meta"
        )
    if config.outer.multi_step and c.steps < 2:
        raise ConfigError(
            f"outer.multi_step weighs the losses after several inner steps, but inner.steps={c.steps}; use "
            "--config.outer.multi_step=0"
        )
    if config.outer.first_order and c.first_order:
        raise ConfigError("inner.first_order=True stays first order; use --config.outer.first_order=0 with it")
    if "per_step" in config.model.norm and not c.steps:
        raise ConfigError("model.norm='per_step' needs steps; set --config.inner.steps=1 or more")
    if c.learn_rates == "none":
        for field in ("rates_per_step", "positive_rates"):
            if c[field]:
                raise ConfigError(f"inner.{field} is about learned rates; set --config.inner.learn_rates=tensor")
        return
    if c.rates_per_step and not c.steps:
        raise ConfigError("inner.rates_per_step needs steps; set --config.inner.steps=1 or more")
    if c.positive_rates and not (c.encoder_rate and c.head_rate):
        raise ConfigError("inner.positive_rates=True, but a rate that starts at 0 has no logarithm; start above 0")
    if c.learn_rates == "element" and config.eval.way != config.task.way:
        raise ConfigError(
            f"eval.way={config.eval.way} differs from task.way={config.task.way}, but a rate for each element of the "
            "head has a fixed number of ways; use --config.inner.learn_rates=tensor"
        )


def _check_regression(config: ml_collections.ConfigDict) -> None:
    """Refuses half of what sinusoid regression needs, and its settings where there are classes."""
    needed = {
        "model.loss": "squared_error",
        "model.encoder": "mlp",
        "task.way": 1,
        "eval.way": 1,
        "train.validate_every": 0,
        "eval.checkpoint": "latest",
    }
    fields = flatten(config)
    for field, value in needed.items():
        if config.data.name == "sinusoid" and fields[field] != value:
            raise ConfigError(f"data.name='sinusoid' is regression and needs --config.{field}={value}")
        if config.data.name != "sinusoid" and fields[field] == value and not field.startswith(("train", "eval.ch")):
            raise ConfigError(f"{field}={value!r} is for sinusoid regression, not for data.name={config.data.name!r}")


def flatten(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """All fields by their dotted names, references resolved."""
    fields = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            fields |= {f"{name}.{field}": v for field, v in flatten(value).items()}
        else:
            fields[name] = value
    return fields


def to_json(config: ml_collections.ConfigDict) -> str:
    """A configuration as JSON, one object per section."""
    return json.dumps(config.copy_and_resolve_references().to_dict(), indent=2) + "\n"


def load(path: Path, default: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Reads a file of `to_json`; fields that came into being since keep their `default`.

    Raises:
      ConfigError: the file is missing or damaged, or holds a field that no longer exists.
    """
    try:
        stored = json.loads(path.read_text())
        default.update_from_flattened_dict(_flat(stored))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    return default


def _flat(stored: dict, prefix: str = "") -> dict[str, Any]:
    fields = {}
    for name, value in stored.items():
        if isinstance(value, dict):
            fields |= _flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = tuple(value) if isinstance(value, list) else value
    return fields


# Fields that may change between one start of a run and the next without making it another run.
_FREE = (
    "data.dir",
    "data.cache_dir",
    "data.download",
    "data.placement",
    "data.device_share",
    "train.steps",
    "train.report_every",
    "train.checkpoint_every",
    "parallel.backend",
    "parallel.devices",
    "parallel.cpu_devices",
    "parallel.coordinator",
    "parallel.processes",
    "parallel.process",
    "eval.split",
    "eval.tasks",
    "eval.checkpoint",
)


def check_same_run(config: ml_collections.ConfigDict, stored: ml_collections.ConfigDict, workdir: Path) -> None:
    """Refuses to continue a run under settings that would make it another one.

    Raises:
      ConfigError: naming the fields that differ and the way out.
    """
    free = set(_FREE)
    if config.outer.schedule == "cosine":
        free.remove("train.steps")  # the length of the schedule
    new, old = flatten(config), flatten(stored)
    changes = ", ".join(f"{f} {old[f]!r} -> {new[f]!r}" for f in new if new[f] != old[f] and f not in free)
    if changes:
        raise ConfigError(
            f"{workdir} holds a run with other settings ({changes}); give another --workdir, or the same settings"
        )
