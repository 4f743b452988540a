import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from maml_jax import data
from maml_jax.errors import ConfigError, DataError
from tests.data.test_store import SHAPE, flip_last_byte, make_source, pixels


def settings(tmp_path, **changes):
    defaults = {"name": "toy", "cache_dir": str(tmp_path), "image_size": 4, "download": False}
    return data.DataSettings(**{**defaults, **changes})


@pytest.fixture
def toy(monkeypatch):
    """Registers the toy source; returns the folders it was asked to read."""
    folders = []

    def source(settings, folder):
        folders.append(folder)
        return make_source()

    monkeypatch.setitem(data.DATA_SETS, "toy", data.DataSet("toy", source, "no terms"))
    return folders


def test_open_stores(tmp_path, toy):
    stores = data.open_stores(settings(tmp_path), progress=False)
    assert {split: opened.num_classes for split, opened in stores.items()} == {"train": 2, "test": 1}
    assert [folder.name for folder in tmp_path.iterdir()] == ["stores"]
    data.open_stores(settings(tmp_path, dir="~/raw"), progress=False)
    assert toy == [Path("datasets/toy"), Path.home() / "raw"]


def test_prepare_describes_and_verifies(tmp_path, toy):
    report = data.prepare(settings(tmp_path), progress=False)
    json.dumps(report)
    images = np.concatenate([pixels(0, 3), pixels(1, 5)]) / 255
    train = report["splits"]["train"]
    assert (train["classes"], train["images"], train["bytes"]) == (2, 8, 8 * 24)
    np.testing.assert_allclose(train["mean"], images.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(train["std"], images.std((0, 1, 2)), rtol=1e-9)
    assert (report["name"], report["image_shape"], report["terms"]) == ("toy", list(SHAPE), "no terms")
    flip_last_byte(Path(report["path"]) / "train.npy")
    with pytest.raises(DataError, match="checksum"):
        data.prepare(settings(tmp_path), progress=False)


def test_check_does_not_build(tmp_path, toy):
    with pytest.raises(DataError, match=r"there is no store .*toy-\w+ yet; preparing the data set"):
        data.prepare(settings(tmp_path), progress=False, check=True)
    assert list(tmp_path.iterdir()) == []
    built = data.prepare(settings(tmp_path), progress=False)
    assert data.prepare(settings(tmp_path), progress=False, check=True) == built


def test_published_classes(tmp_path, toy, monkeypatch):
    monkeypatch.setitem(
        data.DATA_SETS, "toy", dataclasses.replace(data.DATA_SETS["toy"], classes={"train": 64, "val": 16})
    )
    report = data.prepare(settings(tmp_path), progress=False)
    assert {split: facts["published"] for split, facts in report["splits"].items()} == {"train": 64, "test": None}


def test_statistics():
    """Of three channels, in [0, 1], for every data set in colour that has published ones."""
    known = {name: entry.statistics for name, entry in data.DATA_SETS.items() if entry.statistics}
    assert set(known) == {"mini_imagenet", "tiered_imagenet", "cifar_fs", "fc100", "cub200", "inat2017"}
    for mean, std in known.values():
        assert all(0.4 < m < 0.52 for m in mean)
        assert all(0.15 < s < 0.3 for s in std)
        assert len(mean) == len(std) == 3
    assert data.data_set("tfds:anything").statistics is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "imagenet"}, r"data\.name is 'imagenet'; choose one of glyphs, omniglot, .*, or tfds:NAME"),
        ({"image_size": 0}, r"data\.image_size is 0"),
        ({"split_seed": -1}, r"data\.split_seed is -1"),
        ({"name": "omniglot", "split": "lake"}, r"data\.split is 'lake'; choose one of vinyals, random"),
    ],
)
def test_unusable_settings(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        data.open_stores(settings(tmp_path, **{"name": "glyphs", **changes}))


def test_default_cache_dir(monkeypatch):
    monkeypatch.setenv("MAML_JAX_CACHE", "/one")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    assert data.default_cache_dir() == Path("/one")
    monkeypatch.delenv("MAML_JAX_CACHE")
    assert data.default_cache_dir() == Path("/two/maml_jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data.default_cache_dir() == Path.home() / ".cache" / "maml_jax"
