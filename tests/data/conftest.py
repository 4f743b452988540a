"""Shared by the tests of data sets."""

import pytest
import requests

from maml_jax import cli
from maml_jax.data import store
from tests.data.test_layout import write
from tests.data.test_lists import SPLIT_OF
from tests.data.test_store import make_source


@pytest.fixture
def root(tmp_path):
    """A folder of seven classes of three images each, which has no lists yet."""
    return write(tmp_path / "raw", *(f"images/{name}/{name}_{i}.png" for name in SPLIT_OF for i in range(3)))


@pytest.fixture
def built(tmp_path):
    """A small store."""
    return store.build(make_source(), tmp_path, progress=False)


@pytest.fixture
def prepare(tmp_path, monkeypatch, capsys):
    """Runs `prepare` on `tmp_path/raw`, from an empty folder; gives status, output and messages."""

    def refuse(*_, **__):
        raise requests.ConnectionError("no network in tests")

    (tmp_path / "raw").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(requests, "get", refuse)

    def run(name, size, *arguments):
        settings = {"name": name, "dir": tmp_path / "raw", "cache_dir": tmp_path / "cache", "image_size": size}
        flags = [f"--config.data.{field}={value}" for field, value in settings.items()]
        status = cli.main(["prepare", *flags, *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
