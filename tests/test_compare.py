"""Which normalisations a trained model is compared under."""

from pathlib import Path

import jax
import numpy as np
import pytest

from maml_jax.checkpoint import fit_model
from maml_jax.compare import norms, table
from maml_jax.experiment.method import build_method, build_outer
from maml_jax.meta.step import init_state
from maml_jax.nn.norm import MODES
from maml_jax.tree import by_name
from tests.helpers import one_task
from tests.models import tiny_config


def shapes(norm):
    """Of a model's state under a normalisation."""
    config = tiny_config(model__norm=norm)
    method, optimizer = build_method(config, 3), build_outer(config)
    task = one_task(way=3, side=16)
    return jax.eval_shape(lambda key: init_state(method, optimizer, key, task), jax.random.key(0))


@pytest.mark.parametrize("mode", MODES)
def test_a_model_has_what_it_is_compared_under(mode):
    learned = shapes(mode)
    parts = by_name({"step": learned.step, "params": learned.params, "stats": learned.stats})
    stored = {name.replace("/", "."): np.zeros(leaf.shape, leaf.dtype) for name, leaf in parts.items()}
    found = norms(mode)
    assert found
    for norm in found.values():
        fit_model(stored, Path("x"), shapes(norm))


def test_what_cannot_be_measured_is_no_figure():
    row = {"method": "MAML++", "transductive": {"accuracy": 0.5, "ci95": 0.01, "norm": "per_step_batch"}}
    assert table([row]).splitlines()[-1] == "| MAML++ | 50.00% ± 1.00% (`per_step_batch`) | none |"
