"""Ours against plain PyTorch in float64, at points of the option space that hypothesis draws."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from parity import convert, grid
from parity.check import check_case
from parity.golden import OuterArgs

MODES = ("batch", "episodic", "global")
ENCODERS = ("convnet4", "wide-convnet4", "resnet12", "wide-resnet12", "resnet18", "wide-resnet18", "resnet18-standard")
FROZEN = ("bn", "conv1", "conv3.conv", "bias", "layer2", "encoder", "classifier", "linear.weight")
SETTINGS = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    "print_blob": False,
    "phases": [Phase.generate],  # to shrink an example would take hundreds of runs
    "suppress_health_check": list(HealthCheck),
}


pytestmark = pytest.mark.usefixtures("one_thread")


def options(encoders, **shapes):
    """Options of `make_case`: everything but what `shapes` fixes."""
    blocks = {name: convert.blocks_of(name) for name in encoders}
    outer = st.builds(
        OuterArgs,
        st.sampled_from(["adam", "sgd", "rmsprop"]),
        st.sampled_from([1e-3, 1e-2]),
        st.sampled_from([0.0, 0.1]),
        st.just(2),
    )
    modes = {name: st.fixed_dictionaries(dict.fromkeys(blocks[name], st.sampled_from(MODES))) for name in encoders}
    rest = {
        "temp": st.sampled_from([1.0, 2, 0.5]),
        "learn_temp": st.booleans(),
        "n_step": st.integers(0, 2),
        "eval_steps": st.integers(0, 2),
        "episodes": st.integers(1, 2),
        "encoder_lr": st.sampled_from([0.0, 0.05]),
        "momentum": st.sampled_from([0.0, 0.9]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "first_order": st.booleans(),
        "reset_classifier": st.booleans(),
        "frozen": st.lists(st.sampled_from(FROZEN), max_size=2, unique=True).map(tuple),
        "outer": st.none() | outer,
        "seed": st.integers(0, 1000),
    }
    return st.sampled_from(encoders).flatmap(
        lambda name: st.fixed_dictionaries({"encoder": st.just(name), "norm": modes[name]} | rest | shapes)
    )


def assert_passes(case, **compiler_options):
    results = check_case(case, compiler_options)
    assert [result for result in results if not result.passed] == []
    assert {"logits_train", "loss_train", "logits_eval", "grad", "gradnorm"} <= {result.quantity for result in results}


# Compiling costs most here, and its later passes change no result.
QUICKLY = {"xla_backend_optimization_level": 0}


@settings(max_examples=4, **SETTINGS)
@given(options(["convnet4"], n_step=st.integers(1, 2), eval_steps=st.integers(1, 2), encoder_lr=st.just(0.05)))
def test_options(drawn):
    """Without `jit`: all share their shapes, with the mutations and the methods too; an operation is compiled once."""
    with jax.disable_jit():
        assert_passes(grid.make_case("drawn", **drawn, image_size=32))


def test_no_steps():
    assert_passes(grid.make_case("no_steps", n_step=0, eval_steps=0, norm="episodic", episodes=1), **QUICKLY)


SHAPES = {
    "way": st.integers(2, 3),
    "shot": st.integers(1, 2),
    "query": st.integers(1, 2),
    "width": st.integers(4, 8),
    "image_size": st.integers(16, 35),
}


@pytest.mark.slow
@settings(max_examples=60, **SETTINGS)
@given(options(["convnet4"], **SHAPES))
def test_options_and_shapes(drawn):
    assert_passes(grid.make_case("drawn", **drawn), **QUICKLY)


@pytest.mark.slow
@settings(max_examples=15, **SETTINGS)
@given(options(ENCODERS, **SHAPES))
def test_options_encoders_and_shapes(drawn):
    assert_passes(grid.make_case("drawn", **drawn), **QUICKLY)


@pytest.mark.slow
@pytest.mark.parametrize("name", grid.GRID)
def test_the_grid_of_check(name):
    assert_passes(grid.make_case(name, **grid.GRID[name]))


@pytest.mark.parametrize(
    ("encoder", "norm"),
    [
        ("resnet12", "episodic"),
        (
            "resnet18",
            {"conv0": "global", "layer1": "batch"} | dict.fromkeys(("layer2", "layer3", "layer4"), "episodic"),
        ),
    ],
)
def test_residual_encoders(encoder, norm):
    case = grid.make_case(
        encoder, encoder=encoder, norm=norm, episodes=1, n_step=1, eval_steps=1, first_order=True, frozen=("conv1",)
    )
    assert_passes(case, **QUICKLY)


# The original


def golden_files():
    """The files of the folder that the environment names, or one parameter that skips the test."""
    folder = os.environ.get("MAML_JAX_GOLDEN")
    if not folder:
        return [pytest.param(None, marks=pytest.mark.skip("MAML_JAX_GOLDEN names no folder of golden cases"))]
    return sorted(Path(folder).glob("*.npz")) or [Path(folder, "*.npz")]  # which cannot be read: an empty folder fails


@pytest.mark.slow
@pytest.mark.parametrize("path", golden_files(), ids=lambda path: path.stem if path else None)
def test_the_originals_outputs_are_reproduced(path):
    """By the command, in a process of its own: in float32, near a kink, the compiler's settings here would decide."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    command = [sys.executable, "-m", "parity", "check", path]
    done = subprocess.run(command, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
