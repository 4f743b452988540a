"""Whole runs through the command line: help, data, processes, sinusoids, comparisons."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from maml_jax import compare
from maml_jax.config.describe import help_text
from tests.helpers import ROOT, TINY


def test_help_and_version(launch):
    status, out, _ = launch("--help")
    assert status == 0
    assert help_text() in out
    status, out, _ = launch("--version")
    assert status == 0
    assert re.fullmatch(r"maml-jax \S+, jax \d+\.\S+, python \d+\.\d+\.\S+\n", out)


def test_help_and_mistakes_are_quick_to_come():
    """They do not wait for what training needs."""
    program = (
        "import sys; from maml_jax import cli; cli.main(['--help']); cli.main(['tain']); print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1]
    assert not [name for name in ("torch", "tensorboardX", "orbax.checkpoint", "matplotlib") if f"'{name}'" in loaded]


def test_prepare(launch):
    status, out, _ = launch("prepare", "--config.data.image_size=16")
    assert status == 0
    assert re.search(r"train +900 classes +18000 images", out)
    assert re.search(r"test +200 classes +4000 images", out)


def test_as_a_process(tmp_path, cache):
    """From another folder, with a configuration of the user's, and with another number of ways at test."""
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from configs import default\n\ndef get_config():\n    c = default.get_config()\n    c.model.head = 'zero'\n"
        "    return c\n"
    )
    command = [sys.executable, str(ROOT / "launch.py"), "--config", str(mine), *TINY, "--config.eval.way=3"]
    environment = {**os.environ, "MAML_JAX_CACHE": str(cache)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "3-way 1-shot" in done.stdout
    assert (tmp_path / "runs" / "mine" / "eval.json").exists()


def test_sinusoid(launch, tmp_path):
    workdir = tmp_path / "run"
    arguments = ["--config.train.steps=40", "--config.train.report_every=20", "--config.eval.tasks=7"]
    status, out, err = launch("--config", "sinusoid", "--workdir", workdir, *arguments)
    assert status == 0
    assert re.match(r"test loss \d+\.\d+ ± \d+\.\d+ over 7 tasks, 1-way 10-shot", out)
    assert "accuracy" not in err + out
    report = json.loads((workdir / "eval.json").read_text())
    losses = np.load(workdir / "eval_tasks.npz")["losses_by_step"]
    assert losses.shape == (7, 11)
    assert [row["steps"] for row in report["by_step"]] == list(range(11))
    for row in report["by_step"]:
        np.testing.assert_allclose(row["loss"], losses[:, row["steps"]].mean(), rtol=1e-6)
        assert f"after {row['steps']:>2} steps  loss {row['loss']:.4f} ± {row['loss_ci95']:.4f}" in out
    assert (workdir / "report" / "curves.png").stat().st_size > 10_000


METHODS = {
    "": "",
    "fomaml": "c.inner.first_order = True",
    "anil": "c.inner.fixed = '^encoder'",
    "boil": "c.inner.fixed = '^head'",
    "metasgd": "c.inner.learn_rates = 'element'",
    "mamlpp": "c.model.norm, c.inner.learn_rates = 'per_step', 'tensor'",
    "tasknorm": "c.model.norm = 'tasknorm'",
    "imaml": "c.outer.method, c.inner.proximal = 'imaml', 2.0",
    "curvature": "c.inner.precondition = 'curvature'",
    "cavia": "c.model.options, c.inner.fixed = 'context=3', '^(?!encoder/film/context$)'",
}


@pytest.mark.slow
def test_compare(launch, tmp_path):
    """Every method is trained, evaluated in two ways, and goes on where it was."""
    for method, change in METHODS.items():
        name = "_".join(filter(None, ("tiny", method)))
        lines = ["from configs import default", "def get_config():", "    c = default.get_config()"]
        lines += [f"    {change or 'pass'}", "    return c"]
        (tmp_path / f"{name}.py").write_text("\n".join(lines))
    arguments = ["compare", "--config", tmp_path / "tiny.py", "--workdir", tmp_path / "table", *TINY]
    status, out, _ = launch(*arguments)
    assert status == 0
    assert len(out.splitlines()) >= 2 + len(METHODS)
    rows = json.loads((tmp_path / "table" / "compare.json").read_text())
    assert [row["method"] for row in rows] == [compare.METHODS[method] for method in METHODS]
    for row in rows:
        assert row["transductive"]["n_tasks"] == row["inductive"]["n_tasks"] == 30
        assert row["transductive"]["protocol"]["transductive"]
        assert not row["inductive"]["protocol"]["transductive"]
        assert row["transductive"]["protocol"]["step"] == row["inductive"]["protocol"]["step"]
    assert (tmp_path / "table" / "compare.md").read_text() in out
    assert launch(*arguments)[1].endswith((tmp_path / "table" / "compare.md").read_text())


def test_compare_takes_the_methods_that_have_a_configuration(tmp_path):
    for name in ("tiny", "tiny_anil", "tiny_cavia"):
        (tmp_path / f"{name}.py").touch()
    assert [file.stem for file in compare.files(tmp_path / "tiny.py").values()] == ["tiny", "tiny_anil", "tiny_cavia"]


def test_compare_needs_a_configuration_of_another_method(launch, tmp_path):
    status, _, err = launch("compare", "--workdir", tmp_path / "table")
    assert status == 2
    assert "glyphs_5w1s_fomaml.py" in err


def test_normalisation_is_changed_at_test(launch, tmp_path):
    """And what learns rates is trained, resumed and evaluated like anything else."""
    workdir = tmp_path / "run"
    learning = ["--config.inner.learn_rates=tensor", "--config.inner.rates_per_step", "--config.inner.steps=2"]
    assert launch("--workdir", workdir, *TINY, *learning)[0] == 0
    status, _, err = launch("--workdir", workdir, *TINY, *learning, "--config.train.steps=6")
    assert status == 0
    assert "continuing at meta-step 4" in err
    for norm in ("metabn", "tasknorm"):
        assert launch("evaluate", "--workdir", workdir, f"--config.model.norm={norm}")[0] == 0
        protocol = json.loads((workdir / "eval.json").read_text())["protocol"]
        assert protocol["norm"] == norm
        assert not protocol["transductive"]
    status, _, err = launch("evaluate", "--workdir", workdir, "--config.model.norm=global")
    assert status == 2
    assert "encoder/block1/norm/mean" in err
