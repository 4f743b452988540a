"""Training that starts from what another has learned, and inner gradients that are clipped."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax import startup, tree
from maml_jax.config import default
from maml_jax.errors import ConfigError, DataError
from maml_jax.experiment.method import build_inner
from maml_jax.models import weights
from maml_jax.models.start import begin_from
from tests.models import save_run


@pytest.fixture
def runs(tmp_path):
    """Makes runs; gives the work directory and the state."""

    def make(name, **settings):
        return tmp_path / name, save_run(tmp_path / name, **settings)[1]

    return make


def test_everything_is_taken_from_a_run_and_from_an_exported_model(runs, tmp_path):
    folder, there = runs("there", model__norm="global")
    _, fresh = runs("here", model__norm="global")
    fresh = jax.tree.map(jnp.zeros_like, fresh)
    weights.export(folder, tmp_path / "model")
    for place in (folder, tmp_path / "model"):
        begun = begin_from(str(place), fresh)
        for part in ("params", "stats"):
            jax.tree.map(np.testing.assert_array_equal, getattr(begun, part), getattr(there, part))
        assert int(begun.step) == 0
        jax.tree.map(np.testing.assert_array_equal, begun.optimizer, fresh.optimizer)


def test_the_encoder_alone_is_taken_where_heads_differ(runs, capsys):
    folder, there = runs("there")
    _, fresh = runs("here", task__way=2)
    fresh = jax.tree.map(jnp.zeros_like, fresh)
    begun = begin_from(str(folder), fresh)
    encoders = (tree.by_name(state.params["encoder"]) for state in (begun, there))
    for (name, ours), theirs in zip(next(encoders).items(), next(encoders).values(), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
    assert not np.any(begun.params["head"]["kernel"])
    said = capsys.readouterr().err
    assert "start afresh: params/head/bias, params/head/kernel" in said
    assert "not used of it: params/head/bias, params/head/kernel" in said


def test_what_cannot_be_started_from_is_refused(runs):
    folder, _ = runs("there")
    _, fresh = runs("here", model__width=6)
    with pytest.raises(ConfigError, match=r"none of its arrays fits"):
        begin_from(str(folder), _without_head_bias(fresh))
    with pytest.raises(ConfigError, match=r"python -m parity import old\.pth DIR"):
        begin_from("old.pth", fresh)
    with pytest.raises((ConfigError, DataError), match="nowhere"):
        begin_from(str(folder / "nowhere"), fresh)


def _without_head_bias(state):
    """Heads of as many ways have biases of one shape, whatever the encoder."""
    params = {**state.params, "head": {"kernel": state.params["head"]["kernel"]}}
    return state.replace(params=params)


def test_inner_gradients_are_clipped():
    config = default()
    config.inner.clip, config.inner.encoder_rate = 0.5, 0.1
    rule = build_inner(config).optimizer
    params = {"encoder": jnp.zeros(3), "head": None}
    update, _ = rule.update({"encoder": jnp.array([3.0, -0.2, -9.0]), "head": None}, rule.init(params), params)
    np.testing.assert_allclose(update["encoder"], [-0.05, 0.02, 0.05], rtol=1e-6)


@pytest.mark.parametrize(
    ("devices", "tasks", "x64", "said"),
    [
        (2, 2, False, "2 of the 4 devices take part in training, which share train.tasks=2 evenly"),
        (3, 9, False, "3 of the 4 devices take part in training, which share train.tasks=9 evenly"),
        (4, 8, True, "JAX_ENABLE_X64 is set: images, parameters and results are float32 all the same"),
        (4, 8, False, ""),
    ],
)
def test_what_surprises_is_said_in_one_line(devices, tasks, x64, said, capsys):
    training = types.SimpleNamespace(tasks=tasks)
    experiment = types.SimpleNamespace(devices=jax.devices()[:devices], training=training, tasks=object())
    with jax.enable_x64(x64):
        startup.say_what_surprises(experiment)
    assert capsys.readouterr().err.strip() == said
