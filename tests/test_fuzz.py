"""Any configuration is refused by name, or becomes an experiment whose meta-step and test can be traced."""

import functools
import os

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maml_jax.data.store import ClassStore
from maml_jax.data.stream import example
from maml_jax.errors import UserError
from maml_jax.experiment import Experiment, stored_data
from maml_jax.experiment.pretraining import pretraining
from maml_jax.meta.method import evaluate_task
from maml_jax.meta.step import meta_step
from tests.draws import changed, draws, mended, take_way_out

MANY = int(os.environ.get("FUZZ_DRAWS", "2000"))


def stores(config, channels):
    """Eight classes of 16 images each, as large as the configuration has them stored."""
    side = stored_data(config).image_size
    images = np.zeros((128, side, side, channels), np.uint8)
    names = tuple("abcdefgh")
    return {split: ClassStore(images, np.arange(0, 129, 16), names, split) for split in ("train", "val", "test")}


def trace(config, channels):
    """Everything that is compiled before and in a meta-step and a test, as far as shapes and types go."""
    own = {} if config.data.name == "sinusoid" else stores(config, channels)
    of = Experiment.of(config, own)
    trace_step(of)
    if config.train.pretrain:
        trace_step(pretraining(config, of, own))
    params, stats = (getattr(jax.eval_shape(of.fresh_state), part) for part in ("params", "stats"))
    test = functools.partial(evaluate_task, of.tested, steps=of.testing.steps)
    result = jax.eval_shape(test, params, stats, example(of.eval_tasks[of.testing.split]))
    assert result.loss.shape == ()


def trace_step(of):
    """A meta-step on a device's share of the tasks leads to a state of the same shapes and types."""
    t, state = of.training, jax.eval_shape(of.fresh_state)
    share = t.tasks // len(of.devices)
    task = example(of.tasks)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((share, *x.shape), x.dtype), task)
    step = functools.partial(meta_step, of.method, of.optimizer, tasks_at_once=t.tasks_at_once)
    after, results = jax.eval_shape(step, state, batch)
    assert results.loss.shape == (share,)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), after, state)
    assert all(jax.tree.leaves(same))


def check(drawn, channels):
    """Traces what is drawn, or what its ways out lead to."""
    config = changed(**({"model.width": 2, "model.options": "blocks=1", "data.image_size": 16} | drawn))
    for _ in range(20):
        mended(config)
        try:
            trace(config, channels)
        except UserError as error:  # what only the data and the devices tell
            take_way_out(config, error)
        else:
            return
    pytest.fail("no way out")


@pytest.mark.parametrize(
    "drawn",
    [
        {"task.way": 28, "inner.steps": 0},
        {"task.way": 28, "inner.learn_rates": "element", "inner.fixed": "^head"},
        {"task.way": 28, "inner.precondition": "curvature", "inner.steps": 0},
        {"task.way": 28, "model.head": "zero"},
        {"eval.way": 28, "model.head": "zero"},
    ],
    ids=str,
)
def test_more_ways_than_classes(drawn):
    """The way out of one error does not lead into another which leads back."""
    check(drawn, 3)


@settings(max_examples=24, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(draws, st.sampled_from([1, 3]))
def test_some_draws(drawn, channels):
    check(drawn, channels)


@pytest.mark.slow
@settings(max_examples=MANY, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(draws, st.sampled_from([1, 3]))
def test_many_draws(drawn, channels):
    check(drawn, channels)
