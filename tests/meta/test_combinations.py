"""Every pair of switches: either the configuration is refused with a reason, or the meta-gradient is finite.

Few configurations cover all pairs, since each covers many.
"""

import functools
import itertools
import random

import jax
import jax.numpy as jnp
import pytest

from configs import default
from maml_jax import config as config_lib
from maml_jax.errors import ConfigError
from maml_jax.experiment.method import METHODS, build_method, build_outer
from maml_jax.meta.step import init_state, meta_step
from tests.helpers import differs, episodes, one_task

SWITCHES = {
    "inner.optimizer": ("sgd", "rmsprop", "adam"),
    "inner.momentum": (0.0, 0.5),
    "inner.weight_decay": (0.0, 0.01),
    "inner.learn_rates": ("none", "group", "tensor", "element"),
    "inner.rates_per_step": (False, True),
    "inner.positive_rates": (False, True),
    "inner.precondition": ("none", "curvature"),
    "inner.proximal": (0.0, 0.5),
    "inner.fixed": ("", "^encoder", "^head", "norm"),
    "inner.first_order": (False, True),
    "inner.checkpoint": ("none", "step", "nested"),
    "inner.forward_over_reverse": (False, True),
    "model.norm": ("batch", "episodic", "global", "per_step", "per_step_batch", "metabn", "tasknorm"),
    "model.head": ("meta", "zero", "shared", "prototypes"),
    "model.loss": ("cross_entropy", "summed_cross_entropy"),
    "model.learn_temperature": (False, True),
    "outer.method": ("maml", "reptile", "imaml"),
    "outer.cg_steps": (5, 2),
    "outer.multi_step": (0, 5),
    "outer.first_order": (0, 3),
}
# What a switch at a value says nothing without.
NEEDED = {
    ("inner.rates_per_step", True): ("inner.learn_rates", "tensor"),
    ("inner.positive_rates", True): ("inner.learn_rates", "tensor"),
    ("outer.cg_steps", 2): ("outer.method", "imaml"),
    ("outer.method", "imaml"): ("inner.proximal", 0.5),
}
TINY = {"model.width": 2, "model.options": "blocks=1", "task.way": 2, "inner.steps": 2}


def build(values):
    config = default.get_config()
    config.update_from_flattened_dict(TINY | values)
    return config


def refused(values):
    """Why a configuration is refused; None if it is not."""
    try:
        config_lib.check(build(values))
    except ConfigError as error:
        return str(error)
    return None


@functools.cache
def covering():
    """Configurations in which every pair of values that is not refused occurs, and the pairs that are refused."""
    pairs = {((a, v), (b, w)) for a, b in itertools.combinations(SWITCHES, 2) for v in SWITCHES[a] for w in SWITCHES[b]}
    rows, reasons, draw = [], {}, random.Random(0)
    for pair in sorted(pairs, key=str):
        if pair not in pairs:
            continue
        row = dict(pair)
        for (switch, at), (other, value) in NEEDED.items():
            if row.get(switch) == at and other not in row:
                row[other] = value
        reason = refused(row)
        if reason:
            reasons[pair] = reason
            continue
        for switch in draw.sample(sorted(SWITCHES.keys() - row.keys()), len(SWITCHES) - len(row)):
            gains = {
                value: sum(p in pairs for p in pairs_of(row | {switch: value}))
                for value in SWITCHES[switch]
                if not refused(row | {switch: value})
            }
            row[switch] = max(gains, key=gains.get)
        rows.append(row)
        pairs -= set(pairs_of(row))
    return rows, reasons


def pairs_of(row):
    return itertools.combinations([(switch, row[switch]) for switch in SWITCHES if switch in row], 2)


def finite(values):
    """Takes a meta-step; whether its loss and all that it changed are finite, and it changed something."""
    config = build(values)
    method, optimizer, tasks = build_method(config, 2), build_outer(config), episodes(tasks=1)
    state = init_state(method, optimizer, jax.random.key(0), one_task())
    after, results = jax.jit(lambda s: meta_step(method, optimizer, s, tasks))(state)
    leaves = jax.tree.leaves((after.params, after.stats, results.loss))
    return differs(after.params, state.params) and all(jnp.isfinite(leaf).all() for leaf in leaves)


def test_what_is_refused_has_a_reason():
    rows, reasons = covering()
    assert len(rows) < 60
    for ((a, _), (b, _)), reason in reasons.items():
        assert a in reason or b in reason, (a, b, reason)
    assert {frozenset((a, b)) for (a, _), (b, _) in reasons} == {
        frozenset(pair)
        for pair in (
            ("inner.optimizer", "inner.momentum"),
            ("inner.learn_rates", "inner.rates_per_step"),
            ("inner.learn_rates", "inner.positive_rates"),
            ("inner.fixed", "model.head"),
            ("inner.first_order", "outer.first_order"),
            ("outer.method", "inner.first_order"),
            ("outer.method", "inner.learn_rates"),
            ("outer.method", "inner.rates_per_step"),
            ("outer.method", "inner.positive_rates"),
            ("outer.method", "outer.multi_step"),
            ("outer.method", "outer.first_order"),
            ("outer.method", "model.head"),
            ("outer.method", "inner.precondition"),
            ("outer.method", "inner.weight_decay"),
            ("outer.method", "inner.checkpoint"),
            ("outer.method", "inner.forward_over_reverse"),
            ("outer.method", "inner.proximal"),
            ("outer.method", "outer.cg_steps"),
        )
    } | {frozenset(("outer.cg_steps", name)) for name in (*METHODS["imaml"].without, "inner.proximal")}


@pytest.mark.parametrize("row", range(4))
def test_some_combinations(row):
    assert finite(covering()[0][row])


@pytest.mark.slow
def test_all_pairs():
    failed = [row for row in covering()[0] if not finite(row)]
    assert not failed
