"""Building and verifying a store tells how far it is."""

import io
import sys

from maml_jax import progress
from maml_jax.data import store
from tests.data.test_store import make_source


def test_progress_on_a_pipe(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", -1)
    store.build(make_source(), tmp_path)
    assert "building toy: train, 1 of 2 classes" in capsys.readouterr().err
    store.build(make_source(version=2), tmp_path, progress=False)
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal(tmp_path, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    store.build(make_source(), tmp_path)
    assert "building toy: train" in terminal.getvalue()
