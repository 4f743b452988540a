"""Our own data sets as builders of tensorflow-datasets."""

import sys
import types

import numpy as np
import pytest

from maml_jax import data
from maml_jax.data import tfds_source
from maml_jax.errors import DataError
from tests.data import test_cifar, test_cub200, test_mini_imagenet, test_tiered_imagenet
from tests.data.test_data import settings
from tests.data.test_tfds_source import everything, prepare, take_offline, tfds


def test_ours_are_prepared_on_demand_without_a_network(tmp_path, monkeypatch):
    take_offline(monkeypatch)
    with pytest.raises(DataError, match=r"could not prepare mini_imagenet: mini-ImageNet is not complete in"):
        tfds_source.source("mini_imagenet", tmp_path, 8, download=True)
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    test_mini_imagenet.write_pickles(manual)
    source = tfds_source.source("mini_imagenet", tmp_path, 84, download=True)
    assert {split: len(classes) for split, classes in source.splits.items()} == {"train": 3, "val": 2, "test": 1}


WRITERS = {
    "mini_imagenet": test_mini_imagenet.write_pickles,
    "tiered_imagenet": test_tiered_imagenet.write_npz,
    "cifar_fs": lambda root: test_cifar.write_pickles(root, "cifar_fs"),
    "fc100": lambda root: test_cifar.write_pickles(root, "fc100"),
    "cub200": test_cub200.write_images,
    "inat2017": test_cub200.write_inat,
}


@pytest.mark.parametrize("name", WRITERS)
def test_builders(tmp_path, name):
    """Written by a builder and read again, a data set is what its source gives."""
    import maml_jax.data.builders  # noqa: F401

    (tmp_path / "raw").mkdir()
    WRITERS[name](tmp_path / "raw")
    prepare(tfds.builder(name, data_dir=tmp_path, file_format="array_record"), tmp_path / "raw")
    size = 32 if name in ("cifar_fs", "fc100") else 84
    direct = settings(tmp_path, name=name, dir=str(tmp_path / "raw"), image_size=size)
    expected = everything(data.make_source(direct, progress=False))
    loaded = everything(tfds_source.source(name, tmp_path, size))
    assert list(loaded) == list(expected)
    for split, classes in expected.items():
        assert list(loaded[split]) == list(classes)
        for key, images in classes.items():
            np.testing.assert_array_equal(loaded[split][key], images)
    examples = tfds.data_source(name, split="train", data_dir=tmp_path)
    assert examples[0]["image"].shape == (size, size, 3)
    assert examples[0]["label"] == 0
    assert "tensorflow" not in sys.modules


def test_builder_without_raw_files(tmp_path):
    import maml_jax.data.builders

    folder = types.SimpleNamespace(manual_dir=tmp_path)
    assert maml_jax.data.builders._raw_files(folder) == tmp_path
    with pytest.raises(DataError, match=r"mini-ImageNet is not complete in"):
        prepare(tfds.builder("mini_imagenet", data_dir=tmp_path / "x", file_format="array_record"), tmp_path)
