"""Weights are evaluated and audited by their name, as the run is that they come from; nothing else is touched."""

import json
import re

import numpy as np
import pytest

from maml_jax.models import weights
from tests.models import save_run
from tests.test_results import folder_of_colour

SEVERAL = ["--config.parallel.processes=2", "--config.parallel.coordinator=localhost:1"]
FEW = ["--config.eval.tasks=6", "--config.eval.query=2"]


@pytest.fixture
def exported(tmp_path):
    """A run, with a checkpoint of random weights, and the folder that it was exported to."""
    save_run(tmp_path / "run", parallel__devices=1, parallel__cpu_devices=3, train__tasks=3)
    weights.export(tmp_path / "run", tmp_path / "model")
    return tmp_path / "model"


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_weights_are_evaluated_as_their_run_is(launch, exported, tmp_path):
    before = files(tmp_path / "run") | files(exported)
    status, out, _ = launch("evaluate", "--weights", "model", *FEW)
    assert status == 0
    assert files(tmp_path / "run") | files(exported) == before
    assert launch("evaluate", "--workdir", "run", *FEW)[1] == out
    assert launch("evaluate", "--weights", "run", "--workdir", "mine", *FEW)[1] == out
    of_weights = tmp_path / "runs" / "weights" / "model"
    reports = [json.loads((place / "eval.json").read_text()) for place in (of_weights, tmp_path / "run")]
    assert reports[0].pop("weights") == "model"
    assert reports[0].pop("weights_sha256") == weights.sha256(exported / "model.safetensors")
    assert reports[0] == reports[1]
    for place in (tmp_path / "run", tmp_path / "mine"):
        with np.load(place / "eval_tasks.npz") as ours, np.load(of_weights / "eval_tasks.npz") as theirs:
            assert ours.keys() == theirs.keys()
            for name, rows in ours.items():
                np.testing.assert_array_equal(rows, theirs[name])


def test_weights_are_tested_on_other_data_and_under_other_settings(launch, exported, tmp_path):
    folder_of_colour(tmp_path / "datasets" / "folder")
    status, _, err = launch(
        "evaluate", "--weights", exported, *FEW, "--config.data.name=folder", "--config.model.norm=metabn"
    )
    assert status == 0, err
    (path,) = (tmp_path / "runs" / "weights" / "model" / "eval").glob("folder-*metabn*.json")
    data = json.loads(path.read_text())["data"]
    assert (data["name"], data["trained_on"], data["channels"], data["image_size"]) == ("folder", "glyphs", 1, 16)
    status, _, err = launch("evaluate", "--weights", exported, *FEW, "--config.model.norm=global")
    assert status == 2
    assert "--config.model.norm=batch" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--weights", "nowhere"], r"no trained model 'nowhere'"),
        (["evaluate", "--weights", "model", "--workdir", "run"], r"--workdir run holds another model"),
        (["evaluate", "--weights", "model", "--workdir", "model"], r"--workdir model holds another model"),
        (["audit", "--workdir", "model"], r"holds exported weights, and no run; use --weights model"),
        (["evaluate", "--weights", "model", "--config.eval.checkpoint=best"], r"use --config\.eval\.checkpoint=latest"),
        (["train", "--weights", "model"], r"use --config\.train\.start=model"),
        (["evaluate", "--weights", "model", "--config.eval.way=4"], r"eval\.way=4 differs from task\.way=3"),
        (["evaluate", "--weights", "empty"], r"empty holds no run"),
        (
            ["audit", "--weights", "model", *SEVERAL],
            r"by one process; use --config\.parallel\.processes=1",
        ),
    ],
)
def test_mistakes_are_one_clear_line(launch, exported, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    before = files(tmp_path)
    status, out, err = launch(*arguments)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (status, out, len(errors)) == (2, "", 1)
    assert re.search(message, errors[0]), errors[0]
    assert files(tmp_path) == before


def test_the_checkpoint_that_weights_are_of_is_the_only_one(launch, tmp_path):
    save_run(tmp_path / "run", train__validate_every=2)
    weights.export(tmp_path / "run", tmp_path / "model")
    status, _, err = launch("evaluate", "--weights", "model", *FEW, "--config.eval.checkpoint=best")
    assert status == 2
    assert "model holds the latest one only; use --config.eval.checkpoint=latest" in err


def test_a_model_that_does_not_fit_though_no_setting_differs(launch, tmp_path):
    """Nothing is said of settings then."""
    save_run(tmp_path / "run")
    stored = tmp_path / "run" / "config.json"
    stored.write_text(stored.read_text().replace('"width": 4', '"width": 5'))
    status, _, err = launch("evaluate", "--workdir", "run", *FEW)
    assert status == 2
    assert "is of another model" in err
    assert "of the settings" not in err


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_altered_weights_are_not_tested(launch, exported, tmp_path, name):
    content = bytearray((exported / name).read_bytes())
    content[len(content) // 2] ^= 1
    (exported / name).write_bytes(content)
    status, out, err = launch("evaluate", "--weights", exported, *FEW)
    assert (status, out) == (2, "")
    assert f"{name} is damaged or was altered" in err
    assert not (tmp_path / "runs").exists()


def test_code_of_ones_own_is_run_if_asked_for(launch, tmp_path):
    save_run(tmp_path / "run", model__encoder="tests.models:Own", model__options="", model__width=0)
    weights.export(tmp_path / "run", tmp_path / "model", own_code=True)
    status, _, err = launch("evaluate", "--weights", "model", *FEW)
    assert status == 2
    assert "--own-code" in err
    assert launch("evaluate", "--weights", "model", "--own-code", *FEW)[0] == 0


@pytest.mark.slow
def test_weights_are_audited(launch, exported, tmp_path):
    status, out, err = launch("audit", "--weights", "model", *FEW, "--quick")
    assert status == 0, err
    folder = tmp_path / "runs" / "weights" / "model" / "audit"
    assert (folder / "report.md").read_text().splitlines()[0] == out.splitlines()[0]
    assert "inductive" in out
