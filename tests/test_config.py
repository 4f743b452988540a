"""The table of fields, and all that follows from it: defaults, checks, help, what may change in a run."""

import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings

from maml_jax import config as config_lib
from maml_jax.config.fields import BY_NAME, FIELDS, SECTIONS, default_of
from maml_jax.errors import ConfigError
from tests.draws import changed, draws, mended, refusal

ROOT = Path(__file__).parents[1]
OLD = Path(__file__).parent / "old" / "config.json"  # written by the version before the table
NUMBERS = [field.name for field in FIELDS if type(default_of(field.name)) in (int, float)]


def assigned(config, name, value):
    """Sets a field to anything, as a configuration file could that takes no care."""
    section, _, field = name.rpartition(".")
    with config.unlocked():
        target = config[section] if section else config
        if field in target:
            del target[field]
        target[field] = value


def test_the_table_is_whole():
    assert len(BY_NAME) == len(FIELDS)
    assert [field.section for field in FIELDS] == sorted((field.section for field in FIELDS), key=list(SECTIONS).index)
    config_lib.check(config_lib.default())
    for field in FIELDS:
        assert field.meaning
        assert field.meaning[-1] not in ".; ", field.name


def test_defaults_are_those_of_old():
    old, new = json.loads(OLD.read_text()), json.loads(config_lib.to_json(config_lib.default()))
    for section, fields in old.items():
        if isinstance(fields, dict):
            assert new[section] == new[section] | fields
        else:
            assert new[section] == fields


def test_evaluation_follows_training_until_it_is_set():
    config = changed(task__way=7, inner__steps=3)
    assert (config.eval.way, config.eval.steps) == (7, 3)
    config.eval.way = 5
    config.task.way = 6
    assert (config.task.way, config.eval.way) == (6, 5)


def test_types_and_names_are_locked():
    with pytest.raises(TypeError):
        changed(inner__steps="many")
    with pytest.raises(KeyError):
        changed(inner__stepz=3)
    assert changed(inner__momentum=0).inner.momentum == 0.0


@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_is_infinite_or_not_a_number(name):
    for value in (math.nan, math.inf, -math.inf, 1e300, 2**200, -(2**200)):
        config = config_lib.default()
        assigned(config, name, value)
        with pytest.raises(ConfigError, match=re.escape(f"{name}={value!r}")):
            config_lib.check(config)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_value_of_another_type_is_refused_by_name(name):
    for value in (None, [1], object(), {}, b"x", True, 1, 1.5, "\0", (None,), ("x",), (1.5,), (True,)):
        config = config_lib.default()
        assigned(config, name, value)
        error = refusal(config)
        if error is None:
            kind = type(default_of(name))
            assert isinstance(value, (int, float) if kind is float else kind)
        else:
            assert name in str(error)


BOUNDARIES = {
    # Accepted: what they mean is for training and evaluation to make good.
    "seed": (0, 2**32 - 1),
    "data.image_size": (16,),
    "data.stored_size": (0, 28),
    "data.device_share": (1.0, 1e-9),
    "data.split_seed": (0,),
    "data.class_depth": (0,),
    "task.shot": (1,),
    "task.query": (1,),
    "model.width": (0, 1),
    "model.temperature": (1e-9,),
    "model.piece_mib": (0,),
    "inner.steps": (0,),
    "inner.encoder_rate": (0.0,),
    "inner.head_rate": (0.0,),
    "inner.momentum": (0.0, 0.999),
    "inner.epsilon": (1e-18,),
    "inner.clip": (0.0,),
    "inner.weight_decay": (0.0,),
    "inner.proximal": (0.0, 1.0),
    "outer.rate": (1e-30,),
    "outer.momentum": (0.0,),
    "outer.weight_decay": (0.0,),
    "outer.clip": (0.0,),
    "outer.multi_step": (0, 1),
    "outer.first_order": (0, 1),
    "outer.cg_steps": (5,),  # the default, without imaml
    "outer.milestones": ((), (0,), (5, 5), (9, 3)),
    "outer.factor": (1e-9, 2.0),
    "train.pretrain": (1,),
    "train.keep": (1,),
    "train.pretrain_batch": (2,),
    "train.pretrain_rate": (1e-9, 2.0),
    "eval.rate_factor": (1e-9, 100.0),
    "outer.period": (1,),
    "train.steps": (0, 1),
    "train.tasks": (1,),
    "train.tasks_at_once": (0, 1, 4),
    "train.report_every": (1, 2**31 - 1),
    "train.validation_tasks": (2,),
    "train.checkpoint_every": (1,),
    "parallel.devices": (0, 1),
    "parallel.cpu_devices": (0, 1),
    "parallel.processes": (1,),
    "parallel.process": (0,),
    "eval.tasks": (2,),
    "eval.shot": (1,),
    "eval.query": (1,),
    "eval.steps": (0,),
}
REFUSED = {
    "seed": (-1, 2**32),
    "data.image_size": (15, 0),
    "data.stored_size": (-1, 1, 27),
    "data.device_share": (0.0, 1.1),
    "data.split_seed": (-1,),
    "data.class_depth": (-1,),
    "task.way": (0, 1),
    "task.shot": (0,),
    "task.query": (0,),
    "model.width": (-1,),
    "model.temperature": (0.0, -1.0),
    "model.piece_mib": (-1,),
    "inner.steps": (-1, 2**31),
    "inner.encoder_rate": (-1e-9,),
    "inner.head_rate": (-1e-9,),
    "inner.momentum": (1.0, -0.1),
    "inner.epsilon": (0.0, 1e-19),
    "inner.clip": (-0.1,),
    "inner.weight_decay": (-1e-9,),
    "inner.proximal": (-1e-9,),
    "outer.rate": (0.0,),
    "outer.momentum": (1.0,),
    "outer.weight_decay": (-1e-9,),
    "outer.clip": (-1.0,),
    "outer.multi_step": (-1,),
    "outer.first_order": (-1,),
    "outer.cg_steps": (-1, 0),
    "outer.milestones": ((-1,), (1.5,), (True,), (2**31,)),
    "outer.factor": (0.0,),
    "train.pretrain": (-1,),
    "train.keep": (0, -1),
    "train.pretrain_batch": (1, 0),
    "train.pretrain_rate": (0.0,),
    "eval.rate_factor": (0.0, -1.0, math.inf),
    "outer.period": (0,),
    "train.steps": (-1, 2**31),
    "train.tasks": (0,),
    "train.tasks_at_once": (-1, 3, 8),
    "train.report_every": (0, 2**31),
    "train.validate_every": (-1, 0),  # 0 goes with eval.checkpoint='latest' only
    "train.validation_tasks": (1,),
    "train.checkpoint_every": (0,),
    "parallel.devices": (-1,),
    "parallel.cpu_devices": (-1,),
    "parallel.processes": (0, 2),
    "parallel.process": (-1, 1),
    "eval.tasks": (1,),
    "eval.way": (0, 1, 4),
    "eval.shot": (0,),
    "eval.query": (0,),
    "eval.steps": (-1,),
}


def test_every_number_has_its_boundaries_tested():
    assert set(NUMBERS) - {"task.way", "eval.way", "train.validate_every"} <= set(BOUNDARIES)
    assert set(NUMBERS) <= set(REFUSED)


@pytest.mark.parametrize(("name", "value"), [(name, v) for name, values in BOUNDARIES.items() for v in values])
def test_boundaries_are_accepted(name, value):
    config_lib.check(changed(**{name: value}))


@pytest.mark.parametrize(("name", "value"), [(name, v) for name, values in REFUSED.items() for v in values])
def test_what_is_beyond_them_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=re.escape(name)):
        config_lib.check(changed(**{name: value}))


@settings(max_examples=400, deadline=None)
@given(draws)
def test_any_draw_is_fine_or_refused_and_every_way_out_is_open(drawn):
    """What an error proposes is accepted, or leads to another error, whose way out is open in turn."""
    assert refusal(mended(changed(**drawn))) is None


NUMBERS_AS_DATA = {
    "data.name": "sinusoid",
    "model.loss": "squared_error",
    "model.encoder": "mlp",
    "task.way": 1,
    "eval.way": 1,
    "train.validate_every": 0,
    "eval.checkpoint": "latest",
}


@pytest.mark.parametrize(
    ("fields", "way_out"),
    [
        ({"eval.way": 3}, {"model.head": "zero"}),
        ({"eval.way": 3, "inner.learn_rates": "element"}, {"model.head": "zero", "inner.learn_rates": "tensor"}),
        ({"eval.way": 3, "inner.fixed": "^head"}, {"eval.way": 5}),  # which would stay zero if it started there
        ({"model.head": "zero", "inner.fixed": "head"}, {"model.head": "meta"}),
        ({"model.head": "zero", "inner.head_rate": 0.0}, {"model.head": "meta"}),
        ({"model.head": "zero", "inner.steps": 0, "eval.way": 3}, {"model.head": "meta", "eval.way": 5}),
        ({"model.head": "shared", "inner.fixed": "head"}, {"model.head": "meta"}),
        ({"model.head": "shared", "outer.method": "reptile"}, {"model.head": "meta"}),
        ({"model.head": "prototypes", "eval.head": "shared"}, {"eval.head": "prototypes"}),
        ({"eval.head": "shared", "eval.steps": 0}, {"eval.head": "meta"}),
        ({"inner.rates_per_step": True, "outer.method": "reptile"}, {"inner.rates_per_step": False}),
        ({"train.pretrain": 5, "train.start": "x"}, {"train.pretrain": 0}),
        ({"inner.rates_per_step": True, "inner.learn_rates": "tensor", "inner.steps": 0}, {"inner.steps": 1}),
        ({"model.norm": "per_step", "inner.steps": 0}, {"inner.steps": 1}),
        ({"inner.momentum": 0.9, "inner.optimizer": "adam"}, {"inner.momentum": 0.0}),
        ({"outer.first_order": 5, "inner.first_order": True}, {"outer.first_order": 0}),
        ({**NUMBERS_AS_DATA, "model.head": "prototypes"}, {"model.head": "meta", "eval.head": "meta"}),
        ({**NUMBERS_AS_DATA, "eval.head": "prototypes"}, {"eval.head": "meta"}),
        ({**NUMBERS_AS_DATA, "train.pretrain": 5}, {"train.pretrain": 0}),
        ({"task.way": 1}, {"task.way": 2, "eval.way": 2}),
        ({"eval.way": 1}, {"eval.way": 5}),
        ({"model.loss": "squared_error"}, {"model.loss": "cross_entropy"}),
        ({"model.encoder": "mlp"}, {"model.encoder": "convnet4"}),
        ({"model.encoder": "resnet_12"}, {"model.encoder": "resnet12"}),
        (
            {"data.name": "sinusoid", "model.encoder": "mine:Net", "task.way": 1},
            {"model.loss": "squared_error", "train.validate_every": 0, "eval.checkpoint": "latest"},
        ),
        ({"parallel.processes": 2}, {"parallel.coordinator": "HOST:1234"}),
        ({"data.background": "blue"}, {}),
    ],
)
def test_ways_out(fields, way_out):
    with pytest.raises(ConfigError) as caught:
        config_lib.check(changed(**fields))
    assert caught.value.settings == way_out


def test_what_is_the_users_own_is_accepted():
    config_lib.check(changed(model__encoder="package.module:Class", model__options="blocks=3, activation=gelu"))
    config_lib.check(changed(data__name="tfds:mnist", data__background="00ff7F"))
