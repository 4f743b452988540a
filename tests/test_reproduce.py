"""A published figure beside ours: every protocol, every seed, and what it took."""

import json

import pytest

from maml_jax import config as config_lib
from maml_jax import reproduce
from maml_jax.config import preset
from tests.helpers import TINY


def test_every_row_has_a_configuration():
    assert reproduce.PUBLISHED.keys() <= set(config_lib.preset_names())


@pytest.mark.parametrize("name", reproduce.PUBLISHED)
def test_protocols(name):
    own, fifteen, inductive = reproduce.protocols(preset(name)).values()
    assert own.eval == preset(name).eval
    assert (fifteen.eval.query, fifteen.eval.steps) == (15, own.inner.steps)
    assert fifteen.model.norm == own.model.norm
    assert (inductive.eval, inductive.model.norm) == (fifteen.eval, "metabn")
    for config in (own, fifteen, inductive):
        config_lib.check(config)


def test_rows(launch, tmp_path, monkeypatch):
    """With two seeds, in two work directories; the figures are those of the evaluations there."""
    monkeypatch.setitem(reproduce.PUBLISHED, "glyphs_5w1s", reproduce.Published("99.0 ± 0.1", "Nobody 1999"))
    status, out, err = launch("reproduce", "glyphs_5w1s", "--seeds", "2", *TINY)
    assert status == 0, err
    table = out[out.index("| configuration") :].splitlines()
    assert len(table) == 2 + 2 + 1
    assert all("99.0 ± 0.1 (Nobody 1999)" in line for line in table[2:4])
    rows = [json.loads((tmp_path / "runs" / name / "reproduce.json").read_text()) for name in FOLDERS]
    assert [row["seed"] for row in rows] == [0, 1]
    for folder, row, line in zip(FOLDERS, rows, table[2:4], strict=True):
        assert row["tasks_seen"] == 8
        assert row["training_seconds"] > 0
        measured = row["measured"]
        assert [(m["query"], m["norm"]) for m in measured.values()] == [(2, "batch"), (15, "batch"), (15, "metabn")]
        assert len(list((tmp_path / "runs" / folder / "eval").glob("*.json"))) == 3
        latest = json.loads((tmp_path / "runs" / folder / "eval.json").read_text())
        assert latest["accuracy"] == measured["inductive"]["accuracy"]
        assert f"{100 * latest['accuracy']:.2f} ± {100 * latest['ci95']:.2f} |" in line
    mean = sum(row["measured"]["published"]["accuracy"] for row in rows) / 2
    assert f"| {100 * mean:.2f} (seeds" in table[-1]


FOLDERS = ("glyphs_5w1s", "glyphs_5w1s-seed1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no figure is known for 'nothing'; there are omniglot_5w1s"),
        (["mini_5w1s", "--seeds", "0"], "--seeds=0 must be at least 1"),
        ([], "NAME"),
    ],
)
def test_what_makes_no_sense(launch, arguments, message):
    status, _, err = launch("reproduce", *arguments)
    assert status == 2
    assert message in err
