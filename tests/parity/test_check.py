"""`python -m parity check`: what it prints, and the exit status."""

import dataclasses
import json
import math

import numpy as np
import pytest

from parity import convert, golden, golden_file, grid, methods, replay
from parity.__main__ import main
from parity.check import Result, check_case
from parity.fields import GoldenError
from parity.grid import make_case
from tests.parity.cases import make, write


@pytest.fixture
def recorded(monkeypatch):
    """Stands in for our side: gives back what cases recorded, plus what a test adds to an array."""
    added = {}

    def in_jax(case, *_):
        outputs = {n: a for n, a in case.recorded.items() if not n.startswith("gradnorm/")}
        for name, param in case.params.items():
            for kind in ("grad", "outer_final"):
                if f"{kind}/{name}" in outputs:
                    outputs[f"{kind}/{name}"] = outputs[f"{kind}/{name}"].reshape(param.shape)
        return lambda seed: {n: a + added.get(n, 0) for n, a in outputs.items()}

    monkeypatch.setattr(replay, "in_jax", in_jax)
    return added


@pytest.fixture
def files(tmp_path):
    """Two usable golden files, each with norms that fit its gradients."""

    def write_case(name, **changes):
        spec, arrays = make(name=name, sample=10**6, **changes)
        for key in [key for key in arrays if key.startswith("grad/")]:
            arrays[key.replace("grad/", "gradnorm/")] = np.linalg.norm(arrays[key])
        folder = tmp_path / name
        folder.mkdir()
        return str(write(folder, spec, arrays))

    return [write_case("first"), write_case("second", outer=None, dtype="float32")]


def test_all_pass(recorded, files, capsys):
    assert main(["check", *files]) == 0
    *lines, summary = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 + 6
    assert lines[0].split() == ["first", "logits_train", "0.00e+00", "tolerance", "1e-09", "pass"]
    assert all(line.endswith("pass") for line in lines)
    assert any(line.split()[:2] == ["first", "outer_final"] and "1e-07" in line for line in lines)
    assert any(line.split()[:2] == ["second", "grad"] and "1e-03" in line for line in lines)
    assert summary == "2 cases, 14 quantities: 14 passed, 0 failed"


@pytest.mark.parametrize(
    ("name", "error"), [("logits_eval", 2e-9), ("grad/classifier.linear.bias", 0.5), ("outer_losses", math.nan)]
)
def test_one_quantity_fails(recorded, files, capsys, name, error):
    recorded[name] = error
    assert main(["check", files[0]]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL")]
    assert {line.split()[1] for line in failed} - {"gradnorm"} == {name.split("/")[0]}


def test_tolerances_are_those_of_the_dtype(recorded, files):
    recorded["logits_eval"] = 5e-5
    assert main(["check", files[0]]) == 1
    assert main(["check", files[1]]) == 0


@pytest.mark.parametrize("json_too", [False, True])
def test_an_unusable_file_does_not_hide_the_others(recorded, files, tmp_path, capsys, json_too):
    spec, arrays = make()
    spec["encoder"] = "vit"
    (tmp_path / "bad").mkdir()
    bad = write(tmp_path / "bad", spec, arrays)
    recorded["loss_train"] = 1.0
    assert main(["check", files[0], str(bad), files[1], "nowhere.npz", *(["--json"] if json_too else [])]) == 2
    out = capsys.readouterr().out
    if json_too:
        report = json.loads(out)
        assert {row["case"] for row in report["results"]} == {"first", "second"}
        unusable = report["unusable"]
        assert not report["passed"]
    else:
        unusable = [line for line in out.splitlines() if line.startswith("unusable: ")]
        assert "2 failed; 2 files unusable" in out
    assert len(unusable) == 2
    assert "bad/case.npz: spec.encoder is 'vit'" in unusable[0]
    assert "nowhere.npz" in unusable[1]


def test_json(recorded, files, capsys):
    recorded["outer_losses"] = math.nan
    assert main(["check", "--json", files[0]]) == 1
    report = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    rows = {row["quantity"]: row for row in report["results"]}
    assert rows["outer_losses"] == {
        "case": "first",
        "quantity": "outer_losses",
        "error": None,
        "tolerance": 1e-7,
        "closest": None,
        "rounding": None,
        "passed": False,
    }
    assert rows["logits_eval"]["passed"]
    assert (report["unusable"], report["passed"]) == ([], False)


def test_without_files_the_grid_is_checked(recorded, monkeypatch, capsys):
    monkeypatch.setattr(grid, "GRID", {"tiny": {"n_step": 1, "episodes": 1}})
    monkeypatch.setattr(methods, "METHODS", {})
    assert main(["check"]) == 0
    assert "1 cases, 5 quantities: 5 passed" in capsys.readouterr().out


def test_nan_never_passes():
    assert Result("case", "grad", 1e-9, 1e-9).passed
    assert not Result("case", "grad", math.nan, 1e-9).passed
    assert not Result("case", "grad", math.inf, 1e-9).passed


def test_the_grid_covers_the_options():
    options = list(grid.GRID.values())
    modes = {name: set() for name in ("batch", "episodic", "global", "mixed")}
    for o in options:
        norm = o.get("norm", "batch")
        modes["mixed" if isinstance(norm, dict) else norm].add(o.get("encoder", "convnet4"))
    assert all(modes.values())
    assert {o.get("encoder", "convnet4") for o in options} == set(ENCODERS)
    assert {o["outer"].name for o in options if "outer" in o} == {"adam", "sgd", "rmsprop"}
    for option in ("first_order", "reset_classifier", "momentum", "weight_decay", "frozen", "learn_temp"):
        assert any(o.get(option) for o in options), option


ENCODERS = ("convnet4", "wide-convnet4", "resnet12", "wide-resnet12", "resnet18", "wide-resnet18", "resnet18-standard")


def test_a_case_of_ours_records_what_a_golden_file_does():
    case = make_case("x", norm="episodic", learn_temp=True, n_step=1, episodes=2, image_size=18, width=0)
    again = replay.in_torch(case)
    assert set(golden.compare(case, again).values()) == {0.0}
    golden_file.check_recorded("x", case)
    wrong = dataclasses.replace(case, recorded=case.recorded | {"loss_train": np.ones(2)})
    with pytest.raises(GoldenError):
        golden_file.check_recorded("x", wrong)


def test_configuration_of_a_case():
    case = make_case(
        "x",
        encoder="wide-resnet18",
        norm=dict(zip(convert.blocks_of("resnet18"), ("batch", "global", "episodic", "global", "batch"), strict=True)),
        temp=2,
        n_step=0,
        momentum=0.5,
        weight_decay=0.25,
        first_order=True,
        outer=golden.OuterArgs("rmsprop", 0.5, 0.125, 1),
    )
    c = replay.config_of(case)
    assert (c.model.encoder, c.model.temperature, c.model.width) == ("wide_resnet18", 2.0, 4)
    assert c.model.norm == "stem=batch, layer1=global, layer2=episodic, layer3=global, batch"
    assert (c.inner.steps, c.inner.encoder_rate, c.inner.head_rate) == (0, 0.05, 0.1)
    assert (c.inner.momentum, c.inner.weight_decay, c.inner.first_order) == (0.5, 0.25, True)
    assert (c.outer.optimizer, c.outer.rate, c.outer.weight_decay, c.outer.clip) == ("rmsprop", 0.5, 0.125, 10.0)


def test_only_float32_is_tried_on_disturbed_images(recorded, files, monkeypatch):
    """They say whether a kink may be the cause; the verdict on the case as recorded stays."""
    tried = []

    def in_jax(case, *_, give=replay.in_jax):
        def run(seed):
            tried.append(seed)
            recorded["logits_eval"] = 1.0 if seed < 3 else 0.0
            return give(case)(seed)

        return run

    monkeypatch.setattr(replay, "in_jax", in_jax)
    exact, single = (check_case(golden_file.read_case(path)) for path in files)
    assert tried == [0, 0, *range(1, 13)]
    for results in (exact, single):
        assert [r.quantity for r in results if not r.passed] == ["logits_eval"]
    assert {r.closest for r in exact} == {None}
    (failed,) = (r for r in single if not r.passed)
    assert failed.error > failed.tolerance
    assert failed.closest == 0.0
    assert failed.rounding > 0.1
    assert main(["check", files[1]]) == 1


def test_a_disturbance_is_one_rounding():
    case = make_case("float32", dtype="float32", episodes=1, n_step=1)
    moved = replay.disturbed(case, 1)
    assert moved.query_x.dtype == np.float32
    assert (moved.query_x != case.query_x).mean() > 0.5
    assert (np.abs(moved.query_x - case.query_x) <= np.spacing(case.query_x)).all()
    assert (moved.query_x != replay.disturbed(case, 2).query_x).any()
