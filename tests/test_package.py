"""What is installed: a wheel outside the repository, with its command, its configurations and its types."""

import tomllib
from pathlib import Path

import pytest

import maml_jax
from maml_jax import config

ROOT = Path(__file__).parents[1]


def test_every_package_is_in_the_wheel():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {path.parent for top in ("maml_jax", "parity") for path in (ROOT / top).rglob("__init__.py")}
    assert listed == {".".join(path.relative_to(ROOT).parts) for path in there} | {"maml_jax.presets"}


def test_command_of_the_wheel(installed):
    status, output, target = installed("maml-jax", "--version")
    assert status == 0
    assert output.startswith(f"maml-jax {maml_jax.__version__}, jax 0.")
    assert (target / "maml_jax" / "py.typed").exists()
    assert {path.stem for path in (target / "maml_jax" / "presets").glob("*_*w*s*.py")} < set(config.preset_names())
    status, output, _ = installed("maml-jax", "--help")
    assert status == 0
    assert "inner.steps" in output


def test_configurations_of_the_wheel(installed):
    """By name, and by the path they have in a checkout."""
    mistake = "--config.inner.stepz=3"
    for name in ("mini_5w1s", "configs/mini_5w1s.py"):
        status, output, _ = installed("maml-jax", "--config", name, mistake)
        assert status == 2
        assert output.startswith("error: there is no field 'inner.stepz'")
    status, output, _ = installed("maml-jax", "--config", "mini_5w1z")
    assert status == 2
    assert "did you mean mini_5w1s" in output


def test_parity_of_the_wheel(installed):
    """Which finds the configurations without the repository."""
    assert installed("parity", "check", "--help")[0] == 0
    assert installed("parity.replay")[:2] == (0, "")
    assert installed("parity.checkpoints")[:2] == (0, "")


@pytest.mark.slow
def test_training_with_the_wheel(installed, cache):
    settings = ["--config.model.width=2", "--config.data.image_size=16", "--config.train.steps=4"]
    status, output, _ = installed("maml-jax", *settings, "--config.eval.tasks=10", "--workdir", "run", cache=cache)
    assert status == 0, output
    assert "test accuracy" in output


@pytest.mark.slow
def test_shipped_weights_have_the_figures_of_their_card(installed):
    """Both protocols, to the last digit: the same tasks, and the same arithmetic."""
    for norm in ("batch", "metabn"):
        status, output, target = installed(
            "maml-jax", "evaluate", "--weights", "glyphs_5w1s", f"--config.model.norm={norm}", optimised=True
        )
        assert status == 0, output
        card = (target / "maml_jax" / "models" / "shipped" / "glyphs_5w1s" / "README.md").read_text()
        (row,) = [line for line in card.splitlines() if f"({norm})" in line and "600" in line]
        figure = row.split("|")[4].strip()
        assert f"test accuracy {figure} over 600 tasks, 5-way 1-shot, 15 queries per class, 3 inner steps" in output
