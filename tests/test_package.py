"""What is installed: a wheel outside the repository, with its command, its configurations and its types."""

import os
import re
import tomllib
from pathlib import Path

import pytest

import maml_jax
from maml_jax import config
from maml_jax.models import weights

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


def rows_of_cards():
    """The measured accuracies of all cards: name of the model, data, `--config` settings, what the command says."""
    form = re.compile(
        r"\| \w+ \((?P<norm>\w+)\) \| (?P<data>\w+) test \| (?P<way>\d+)-way (?P<shot>\d+)-shot, "
        r"(?P<query>\d+) queries per class, (?P<steps>\d+) steps \| (?P<figure>[^|]+) \| (?P<tasks>\d+) \|"
    )
    for name in weights.shipped():
        card = (weights.SHIPPED / name / "README.md").read_text()
        for row in form.finditer(card):
            settings = [f"eval.{field}={row[field]}" for field in ("way", "shot", "query", "steps", "tasks")]
            said = f"test accuracy {row['figure']} over {row['tasks']} tasks, {row['way']}-way {row['shot']}-shot, "
            protocol = f"{row['norm']}-{row['way']}way-{row['query']}query"
            yield pytest.param(
                name, row["data"], [f"model.norm={row['norm']}", *settings], said, id=f"{name}-{protocol}"
            )


def folder_of(data):
    """The settings that name the folder of raw files; skips where there is none."""
    root = os.environ.get("MAML_JAX_TEST_DATA")
    folders = {
        "omniglot": root and Path(root, "omniglot"),
        "cifar_fs": os.environ.get("MAML_JAX_CIFAR100") or (root and Path(root, "cifar100")),
    }
    if data not in folders:
        return []
    if not (folders[data] and Path(folders[data]).is_dir()):
        pytest.skip(f"neither MAML_JAX_TEST_DATA nor another variable names a folder of {data}")
    return [f"data.dir={folders[data]}"]


def test_cards_are_read_whole():
    """All rows with an accuracy are rows that the next test is made of."""
    cards = [(weights.SHIPPED / name / "README.md").read_text() for name in weights.shipped()]
    assert len(list(rows_of_cards())) == sum(len(re.findall(r"% ± ", card)) for card in cards) > 7


@pytest.mark.slow
@pytest.mark.parametrize(("name", "data", "settings", "said"), list(rows_of_cards()))
def test_shipped_weights_have_the_figures_of_their_card(installed, name, data, settings, said):
    """Every protocol, to the last digit: the same tasks, and the same arithmetic."""
    settings = [f"--config.{setting}" for setting in (*settings, *folder_of(data))]
    status, output, _ = installed("maml-jax", "evaluate", "--weights", name, *settings, optimised=True)
    assert status == 0, output
    assert said in output
