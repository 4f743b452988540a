"""Configurations drawn from the table of fields, most of which make no sense, and their ways out."""

import math
import re

from hypothesis import strategies as st

from maml_jax import config as config_lib
from maml_jax.config.fields import BY_NAME, default_of
from maml_jax.errors import ConfigError


def changed(**values):
    """The defaults with some fields set; '__' stands for the dot."""
    config = config_lib.default()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in values.items()})
    return config


def refusal(config):
    """The error that a configuration is refused with; None if it is accepted."""
    try:
        config_lib.check(config)
    except ConfigError as error:
        return error
    return None


def mended(config):
    """What all ways out, one after the other, make of a configuration, until it is accepted."""
    seen = set()
    while error := refusal(config):
        assert error.facts not in seen, "the way out leads back"
        seen.add(error.facts)
        assert len(seen) < 20, "no way out"
        take_way_out(config, error)
    return config


def take_way_out(config, error):
    """Does what an error proposes; else gives the field that it names its default."""
    assert any(name in error.facts for name in BY_NAME), error.facts
    assert "--" not in error.facts
    named = re.match(r"[\w.]+", error.facts)[0]
    config.update_from_flattened_dict(error.settings or {named: default_of(named)})


def texts(name):
    """Values for a field that is a text: those there are, and some that are not."""
    some = ["", "x", "batch", "per_step", "block1=batch", "norm(", "^head", "^encoder", "a:1", "auto", "a.b:C", "é\n"]
    return st.sampled_from([*BY_NAME[name].rule.choices * 4, *some])


def values(name):
    """Values for a field: mostly such as it may have, now and then any of its type."""
    kinds = {
        bool: st.booleans(),
        int: st.sampled_from([0, 1, 1, 2, 2, 3, 4, 5, 28, 84, -1, 2**31, 2**40]),
        float: st.sampled_from([0.0, 1e-9, 0.1, 0.5, 0.9, 1.0, 2.0, -1.0, math.nan, math.inf, 1e-50, 1e300]),
        tuple: st.lists(st.sampled_from([0, 1, 5, -1, 1.5]), max_size=3).map(tuple),
    }
    return texts(name) if isinstance(default_of(name), str) else kinds[type(default_of(name))]


# Which fields contradict each other stands in `maml_jax.config.checks`; these are drawn more often.
TOGETHER = """data.name task.way model.encoder model.norm model.head model.loss inner.steps inner.head_rate inner.fixed
inner.learn_rates inner.rates_per_step inner.positive_rates inner.first_order outer.multi_step outer.first_order
inner.precondition inner.proximal outer.method outer.cg_steps
train.validate_every eval.way eval.checkpoint eval.head eval.steps"""
draws = st.lists(st.sampled_from([*BY_NAME, *TOGETHER.split() * 8]), max_size=12, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: values(name) for name in names})
)
