import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maml_jax import data, load_tasks
from maml_jax.errors import ConfigError, DataError
from tests.data.test_store import SHAPE, class_images, flip_last_byte, make_source, pixels


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


def test_a_store_is_built_once_and_is_the_one_that_is_opened(tmp_path, toy):
    folder = data.build_store(settings(tmp_path), progress=False)
    assert folder.parent == tmp_path / "stores"
    built = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert data.build_store(settings(tmp_path), progress=False) == folder
    assert data.open_stores(settings(tmp_path), progress=False).keys() == {"train", "test"}
    assert data.prepare(settings(tmp_path), progress=False)["path"] == str(folder)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == built


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


@pytest.mark.parametrize(("name", "count"), [("folder", 3), ("mini_imagenet", 4), ("toy", 4)])
def test_classes_too_small_are_skipped_and_counted(tmp_path, monkeypatch, name, count):
    if name == "toy":
        source = make_source({"train": [class_images("a", pixels(0, 3)), class_images("b", pixels(1, 5))]})
        monkeypatch.setitem(data.DATA_SETS, "toy", data.DataSet("toy", lambda settings, root: source, "no terms"))
    else:
        for split, sizes in (("train", (2, 4)), ("val", (4, 6)), ("test", (4, 4))):
            for c, size in enumerate(sizes):
                for i in range(size):
                    file = tmp_path / "raw" / split / f"{split}{c}" / f"{i}.png"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.new("RGB", (8, 8), (i, c, 0)).save(file)
    some = settings(tmp_path, name=name, dir=str(tmp_path / "raw"), skip_small=count)
    report = data.prepare(some, progress=False)
    ((reason, left),) = report["left_out"].items()
    assert reason == f"classes of fewer than {count} images"
    assert left["count"] == 1
    assert report["splits"]["train"]["classes"] == 1
    assert data.prepare(some, progress=False, check=True) == report
    with pytest.raises(DataError, match=r"every class of split 'train' .* has fewer than 99 images"):
        data.prepare(dataclasses.replace(some, skip_small=99), progress=False)


def test_the_rule_of_the_split_is_always_said(tmp_path, capsys):
    glyphs = settings(tmp_path, name="glyphs", image_size=8)
    for _ in range(2):
        data.open_stores(glyphs)
        assert "glyphs: the split is drawn with the characters" in capsys.readouterr().err
    assert data.prepare(glyphs)["split_rule"] == "drawn with the characters: nine twelfths, one and two of them"


def test_what_was_left_out_or_changed_is_said(tmp_path, capsys):
    for c, name in enumerate("abcdefgh"):
        file = tmp_path / "raw" / name / "1.png"
        file.parent.mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 257 * c, np.uint16)).save(file)
    (tmp_path / "raw" / "a" / "notes.docx").touch()
    data.open_stores(settings(tmp_path, name="folder", dir=str(tmp_path / "raw")))
    said = capsys.readouterr().err
    assert "folder: left out 1 files of a kind that is not read" in said
    assert "folder: 8 images of 16 bits" in said


def test_a_store_of_before_has_a_rule_too(tmp_path):
    report = data.prepare(settings(tmp_path, name="glyphs", image_size=8), progress=False)
    manifest = Path(report["path"]) / "store.json"
    content = json.loads(manifest.read_text())
    assert content.pop("account")["split_rule"] == report["split_rule"]
    manifest.write_text(json.dumps(content))
    assert data.prepare(settings(tmp_path, name="glyphs", image_size=8), progress=False) == report


def test_tasks_of_numbers_need_no_files():
    episode = load_tasks("sinusoid", "test", shot=5, query=10, seed=3).sample(0)
    assert (episode.support_x.shape, episode.query_y.shape) == ((5, 1), (10, 1))


def test_tasks_of_a_split_that_is_not_there(tmp_path, toy):
    with pytest.raises(DataError, match=r"toy has no 'val' split; it has train, test"):
        load_tasks("toy", "val", way=2, query=1, cache_dir=str(tmp_path), image_size=4)


def test_numbers_are_not_prepared(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.name='sinusoid' has no images: there is nothing to prepare"):
        data.prepare(settings(tmp_path, name="sinusoid"), progress=False)
