"""Pickles and HDF5 files of the widespread forms."""

import collections
import json
import pickle
import sys

import h5py
import numpy as np
import pytest
from PIL import Image

from maml_jax import data
from maml_jax.data import cifar, cub200, folder, mini_imagenet, store, tiered_imagenet
from maml_jax.errors import ConfigError, DataError
from tests.data.test_pixels import encode

SPLITS = ("train", "val", "test")
CLASSES = {"train": ["n01", "n02", "n03"], "val": ["n04", "n05"], "test": ["n06", "n07"]}


def images(name, count=4, size=84):
    return np.random.default_rng(int(name[1:])).integers(0, 256, (count, size, size, 3), np.uint8)


def everything(source):
    return {split: {c.name: c.read(source.shape()) for c in classes} for split, classes in source.splits.items()}


def assert_images(source, name_of=lambda split, i: CLASSES[split][i], size=84):
    found = everything(source)
    assert list(found) == list(SPLITS)
    for split, classes in found.items():
        assert list(classes) == [name_of(split, i) for i in range(len(CLASSES[split]))]
        for name, read in zip(CLASSES[split], classes.values(), strict=True):
            np.testing.assert_array_equal(read, images(name, size=size))


def cache_form(split, size=84):
    stacked = np.concatenate([images(name, size=size) for name in CLASSES[split]])
    order = np.random.default_rng(0).permutation(len(stacked))
    places = np.argsort(order)
    return {
        "image_data": stacked[order],
        "class_dict": {name: places[4 * i : 4 * i + 4].tolist() for i, name in enumerate(CLASSES[split])},
    }


def by_name(split, size=84):
    return {name: list(images(name, size=size)) for name in CLASSES[split]}


FORMS = {
    "cache": cache_form,
    "cache of arrays": lambda split: {
        key: {n: np.array(p) for n, p in value.items()} if key == "class_dict" else value
        for key, value in cache_form(split).items()
    },
    "cache of bytes": lambda split: {key.encode(): value for key, value in cache_form(split).items()},
    "by class": by_name,
    "by class, arrays": lambda split: {name: images(name) for name in CLASSES[split]},
    "by class, ordered": lambda split: collections.OrderedDict(by_name(split)),
    "by class, defaultdict": lambda split: collections.defaultdict(list, by_name(split)),
    "by class, channels first": lambda split: {n: images(n).transpose(0, 3, 1, 2) for n in CLASSES[split]},
    "by class, floats to 1": lambda split: {n: images(n).astype(np.float64) / 255 for n in CLASSES[split]},
    "by class, floats to 255": lambda split: {n: images(n).astype(np.float32) for n in CLASSES[split]},
}


GREY = {
    "n, h, w": lambda name: images(name)[..., 0],
    "n, h, w, 1": lambda name: images(name)[..., :1],
    "n, 1, h, w": lambda name: images(name)[:, None, ..., 0],
}


@pytest.mark.parametrize("form", GREY)
def test_grey_images(tmp_path, form):
    for split in SPLITS:
        content = {name: GREY[form](name) for name in CLASSES[split]}
        (tmp_path / f"{split}.pickle").write_bytes(pickle.dumps(content))
    for found in everything(mini_imagenet.source(tmp_path)).values():
        for name, read in found.items():
            np.testing.assert_array_equal(read, images(name)[..., :1].repeat(3, -1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_forms(tmp_path, form, protocol):
    for split in SPLITS:
        (tmp_path / f"{split}.pickle").write_bytes(pickle.dumps(FORMS[form](split), protocol=protocol))
    assert_images(mini_imagenet.source(tmp_path))


@pytest.mark.parametrize(
    ("source", "file"),
    [
        (mini_imagenet.source, "mini-imagenet-cache-{}.pkl"),
        (mini_imagenet.source, "mini_imagenet_{}.pickle"),
        (mini_imagenet.source, "mini_imagenet_{}.pkl"),
        (mini_imagenet.source, "{}.pkl"),
        (tiered_imagenet.source, "tiered-imagenet-cache-{}.pkl"),
        (tiered_imagenet.source, "tiered_imagenet_{}.pickle"),
        (tiered_imagenet.source, "{}.pickle"),
    ],
)
@pytest.mark.parametrize("form", ["cache", "by class"])
def test_names_of_files(tmp_path, source, file, form):
    for split in SPLITS:
        (tmp_path / file.format(split)).write_bytes(pickle.dumps(FORMS[form](split)))
    assert_images(source(tmp_path))


def test_cifar_by_class(tmp_path):
    for split in SPLITS:
        (tmp_path / f"CIFAR_FS_{split}.pkl").write_bytes(pickle.dumps(by_name(split, 32)))
    assert_images(cifar.source(tmp_path, "cifar_fs"), size=32)


@pytest.mark.parametrize("first", [0, 10])
def test_numbers_for_names(tmp_path, first):
    """Numbers that begin anew in every split may mean the same classes: that is noted."""
    for k, split in enumerate(SPLITS):
        content = {k * first + i: images(name) for i, name in enumerate(CLASSES[split])}
        (tmp_path / f"{split}.pickle").write_bytes(pickle.dumps(content))
    source = mini_imagenet.source(tmp_path)
    assert_images(source, lambda split, i: f"{split}/{SPLITS.index(split) * first + i}")
    noted = source.account.notes.to_json()
    assert [entry["count"] for entry in noted.values()] == ([] if first else [3])


def test_images_of_no_class_are_counted(tmp_path):
    for split in SPLITS:
        content = cache_form(split)
        content["image_data"] = np.concatenate([content["image_data"], images("n99", 2)])
        (tmp_path / f"{split}.pickle").write_bytes(pickle.dumps(content))
    source = mini_imagenet.source(tmp_path)
    assert_images(source)
    kept = store.account(store.build(source, tmp_path / "cache", progress=False))["left_out"]
    assert kept["images of no class"]["count"] == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image_data": images("n01"), "class_dict": {"a": [0, 9]}}, "of class 'a' has no places in 4 images"),
        ({"image_data": images("n01"), "class_dict": {"a": [-1]}}, "of class 'a' has no places in 4 images"),
        ({"image_data": images("n01"), "class_dict": {"a": [0, 1], "b": [1]}}, "more than one class"),
        ({"image_data": images("n01"), "class_dict": [0, 1]}, "'class_dict' is a list"),
        ({"image_data": images("n01") / 2, "class_dict": {"a": [0]}}, "'image_data' is float64"),
        ({"a": images("n01"), "b": [images("n02")[0], images("n02")[0, :5]]}, "elements of 'b' differ in shape"),
        ({"a": images("n01") - 200.5}, "class 'a' has values from -200.5"),
        ({"a": np.full((2, 8, 8, 3), np.nan)}, "class 'a' has values from nan"),
        ({"a": images("n01"), "b": images("n02")[..., :2]}, "class 'b' is uint8"),
        ({"a": images("n01"), "b": []}, "has the keys 'a', 'b', expected 'data' and 'labels'"),
        ({"a": [[[[1]]]]}, "'a' is a list of lists"),
        ({}, "has the keys , expected"),
    ],
)
def test_unusable(tmp_path, content, message):
    for split in SPLITS:
        (tmp_path / f"{split}.pickle").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=message):
        dict(mini_imagenet.source(tmp_path).splits)


def write_hdf5(root, place="", labels_place="", encoded=False, shared=False, size=84, nested=False):
    (root / place).mkdir(parents=True, exist_ok=True)
    (root / labels_place).mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        parts = [["some", name] for name in CLASSES[split]] if nested else CLASSES[split]
        (root / labels_place / f"{split}_labels.json").write_text(json.dumps(parts))
        with h5py.File(root / place / ("data.hdf5" if shared else f"{split}_data.hdf5"), "a") as file:
            group = file.require_group("some") if nested else file.require_group("datasets")
            for name in CLASSES[split]:
                content = images(name, size=size)
                if encoded:
                    files = [np.frombuffer(encode(Image.fromarray(x)), np.uint8) for x in content]
                    made = group.create_dataset(name, (len(files),), h5py.vlen_dtype(np.uint8))
                    for i, one in enumerate(files):
                        made[i] = one
                else:
                    group.create_dataset(name, data=content)
    return root


@pytest.mark.parametrize(
    ("source", "layout"),
    [
        (mini_imagenet.source, {}),
        (mini_imagenet.source, {"place": "miniimagenet", "labels_place": "miniimagenet"}),
        (tiered_imagenet.source, {"place": "tieredimagenet", "labels_place": "tieredimagenet", "encoded": True}),
        (cub200.source, {"place": "cub", "labels_place": "cub", "encoded": True}),
        (lambda root: cifar.source(root, "cifar_fs"), {"labels_place": "cifar-fs", "shared": True, "nested": True}),
        (
            lambda root: cifar.source(root, "fc100"),
            {"place": "cifar100", "labels_place": "cifar100/fc100", "shared": True, "nested": True},
        ),
        (lambda root: folder.source(root, 84), {}),
    ],
)
def test_hdf5(tmp_path, source, layout):
    size = 32 if layout.get("nested") else 84
    root = write_hdf5(tmp_path, size=size, **layout)
    assert_images(source(root), lambda s, i: "some/" * (size == 32) + CLASSES[s][i], size)


def external(root):
    with h5py.File(root / "elsewhere.hdf5", "w") as file:
        file["x"] = images("n01")
    with h5py.File(root / "train_data.hdf5", "a") as file:
        del file["datasets/n01"]
        file["datasets/n01"] = h5py.ExternalLink("elsewhere.hdf5", "/x")


def raw_external(root):
    (root / "secret").write_bytes(bytes(84 * 84 * 3))
    with h5py.File(root / "train_data.hdf5", "a") as file:
        del file["datasets/n01"]
        file["datasets"].create_dataset(
            "n01", (1, 84, 84, 3), "u1", external=[(root / "secret", 0, h5py.h5f.UNLIMITED)]
        )


def virtual(root):
    layout = h5py.VirtualLayout((4, 84, 84, 3), "u1")
    layout[:] = h5py.VirtualSource(root / "test_data.hdf5", "datasets/n06", (4, 84, 84, 3))
    with h5py.File(root / "train_data.hdf5", "a") as file:
        del file["datasets/n01"]
        file["datasets"].create_virtual_dataset("n01", layout)


def huge(root):
    with h5py.File(root / "train_data.hdf5", "a") as file:
        del file["datasets/n01"]
        file["datasets"].create_dataset("n01", (10**9, 84, 84, 3), "u1", chunks=(1, 84, 84, 3))


def halves(root):
    with h5py.File(root / "train_data.hdf5", "a") as file:
        del file["datasets/n01"]
        file["datasets"].create_dataset("n01", data=images("n01").astype(np.float32) / 2)


def lacking(root):
    with h5py.File(root / "train_data.hdf5", "a") as file:
        del file["datasets/n01"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (external, "'n01' is no data set of its own"),
        (raw_external, "'n01' is no data set of its own"),
        (virtual, "'n01' is no data set of its own"),
        (huge, "claims 21168000000000 bytes, more than the file can hold"),
        (halves, r"'n01' is float32 \[4, 84, 84, 3\], expected uint8"),
        (lacking, "has no class 'n01'"),
        (lambda root: (root / "train_data.hdf5").write_bytes(b"x" * 99), "cannot read .*train_data.hdf5"),
        (lambda root: (root / "train_labels.json").write_text("{"), "cannot read .*train_labels.json"),
        (lambda root: (root / "train_labels.json").write_text("[1]"), "must hold a list of class names"),
    ],
)
def test_unusable_hdf5(tmp_path, damage, message):
    damage(write_hdf5(tmp_path))
    with pytest.raises(DataError, match=message):
        dict(mini_imagenet.source(tmp_path).splits)


def test_damaged_images_in_hdf5(tmp_path):
    root = write_hdf5(tmp_path)
    with h5py.File(root / "train_data.hdf5", "a") as file:
        del file["datasets/n01"]
        stored = file["datasets"].create_dataset("n01", data=images("n01"), chunks=(1, 84, 84, 3), fletcher32=True)
        place = stored.id.get_chunk_info(0).byte_offset
    content = bytearray((root / "train_data.hdf5").read_bytes())
    content[place] ^= 1
    (root / "train_data.hdf5").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read 'n01' in .*train_data\.hdf5"):
        everything(mini_imagenet.source(root))


def test_hdf5_needs_its_library(tmp_path, monkeypatch):
    root = write_hdf5(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError, match=r"needs h5py .*; install it with pip install 'maml-jax\[hdf5\]'"):
        dict(mini_imagenet.source(root).splits)


def test_prepare(tmp_path):
    settings = data.DataSettings(
        "mini_imagenet", str(write_hdf5(tmp_path / "raw")), cache_dir=str(tmp_path), image_size=84
    )
    report = data.prepare(settings, progress=False)
    assert {split: facts["classes"] for split, facts in report["splits"].items()} == {"train": 3, "val": 2, "test": 2}
    assert report["split_rule"] == "Ravi and Larochelle's, as the files have it"
