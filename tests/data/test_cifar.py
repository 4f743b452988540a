import gzip
import io
import itertools
import os
import pickle
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from maml_jax.data import cifar, store
from maml_jax.data.source import published_split
from maml_jax.errors import DataError
from tests.data.test_archive import write_tar, write_zip

NAMES = ("cifar_fs", "fc100")
PREFIX = {"cifar_fs": "CIFAR_FS_", "fc100": "FC100_"}
FINE = cifar.fine_labels()


def pixels(fine):
    return np.random.default_rng(FINE.index(fine)).integers(0, 256, (3, 32, 32, 3), np.uint8)


def write_pickles(root, name, prefix="", label=lambda split, i, fine: FINE.index(fine), **contents):
    for split, classes in published_split(name).items():
        data = np.concatenate([pixels(fine) for fine in classes])
        labels = [label(split, i, fine) for i, fine in enumerate(classes) for _ in pixels(fine)]
        content = contents.get(split, {"data": data, "labels": labels})
        (root / f"{prefix}{split}.pickle").write_bytes(pickle.dumps(content, protocol=2))


def png(array):
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG", compress_level=0)
    return content.getvalue()


def files(prefix="cifar100/"):
    return {f"{prefix}{fine}/{i:03}.png": png(image) for fine in FINE for i, image in enumerate(pixels(fine))}


def official():
    """The two pickles: most images of each class in the one, the rest, a sixth or at least one, in the other."""
    count = len(pixels(FINE[0]))
    cut = count - max(count // 6, 1)
    for part, chosen in (("train", slice(0, cut)), ("test", slice(cut, count))):
        rows = np.concatenate([pixels(fine)[chosen] for fine in FINE]).transpose(0, 3, 1, 2).reshape(-1, 3072)
        labels = np.repeat(np.arange(100), chosen.stop - chosen.start).tolist()
        yield part, pickle.dumps({b"data": rows, b"fine_labels": labels, b"coarse_labels": []}, protocol=2)
    yield "meta", pickle.dumps({})


def write_official(root, packed):
    parts = {f"cifar-100-python/{part}": content for part, content in official()}
    if packed:
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as archive:
            for name, body in parts.items():
                info = tarfile.TarInfo(name)
                info.size = len(body)
                archive.addfile(info, io.BytesIO(body))
        (root / "cifar-100-python.tar.gz").write_bytes(gzip.compress(content.getvalue(), 1))
        return
    (root / "cifar-100-python").mkdir()
    for name, body in parts.items():
        (root / name).write_bytes(body)


def write_folder(root, name):
    for path, content in files("data/").items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def write_split_folders(root, name):
    for split, classes in published_split(name).items():
        for fine in classes:
            (root / split / fine).mkdir(parents=True)
            for i, image in enumerate(pixels(fine)):
                (root / split / fine / f"{i}.png").write_bytes(png(image))


FORMS = {
    "pickles": write_pickles,
    "prefixed pickles": lambda root, name: write_pickles(root, name, PREFIX[name]),
    "archive": lambda root, name: write_zip(root / "cifar100.zip", files()),
    "tar": lambda root, name: write_tar(root / "anything.tar", files("")),
    "folder": write_folder,
    "split folders": write_split_folders,
    "official archive": lambda root, name: write_official(root, packed=True),
    "official folder": lambda root, name: write_official(root, packed=False),
}


def test_splits():
    assert {split: len(names) for split, names in published_split("cifar_fs").items()} == {
        "train": 64,
        "val": 16,
        "test": 20,
    }
    assert {split: len(names) for split, names in published_split("fc100").items()} == {
        "train": 60,
        "val": 20,
        "test": 20,
    }
    assert len(FINE) == 100
    assert (FINE[0], FINE[1], FINE[52], FINE[99]) == ("apple", "aquarium_fish", "oak_tree", "worm")
    for name in NAMES:
        assert sorted(fine for names in published_split(name).values() for fine in names) == FINE


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_store(tmp_path, name, form):
    FORMS[form](tmp_path, name)
    path = store.build(cifar.source(tmp_path, name), tmp_path / "cache", progress=False)
    for split, classes in published_split(name).items():
        opened = store.open_store(path, split)
        assert list(opened.class_names) == sorted(classes)
        np.testing.assert_array_equal(opened.images, np.concatenate([pixels(fine) for fine in sorted(classes)]))


@pytest.mark.slow
@pytest.mark.skipif("MAML_JAX_CIFAR100" not in os.environ, reason="MAML_JAX_CIFAR100 names no folder of CIFAR-100")
@pytest.mark.parametrize("name", NAMES)
def test_all_of_cifar100_gives_the_same_store_in_every_form(tmp_path, monkeypatch, name):
    path = store.build(cifar.source(os.environ["MAML_JAX_CIFAR100"], name), tmp_path / "cache", progress=False)
    splits = {split: store.open_store(path, split) for split in published_split(name)}
    real = {
        fine: opened.images[start:stop]
        for opened in splits.values()
        for fine, (start, stop) in zip(opened.class_names, itertools.pairwise(opened.offsets), strict=True)
    }
    assert {len(images) for images in real.values()} == {600}
    monkeypatch.setattr(sys.modules[__name__], "pixels", real.get)
    for form in ("pickles", "official archive", "tar"):
        (tmp_path / form).mkdir()
        FORMS[form](tmp_path / form, name)
        path = store.build(cifar.source(tmp_path / form, name), tmp_path / f"{form} cache", progress=False)
        for split, expected in splits.items():
            opened = store.open_store(path, split)
            assert opened.class_names == expected.class_names
            np.testing.assert_array_equal(opened.images, expected.images)
            np.testing.assert_array_equal(opened.offsets, expected.offsets)


def test_labels_of_their_own_are_no_names(tmp_path):
    write_pickles(tmp_path, "cifar_fs", label=lambda split, i, fine: i)
    assert [c.name for c in cifar.source(tmp_path, "cifar_fs").splits["val"]][:2] == ["val/0", "val/1"]


def save(root, path, size=(32, 32), mode="RGB", color=9):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(root / path)


def test_grey_image_becomes_colour(tmp_path):
    write_folder(tmp_path, "")
    save(tmp_path, "data/apple/003.png", mode="L")
    apple = next(c for c in cifar.source(tmp_path, "fc100").splits["train"] if c.name == "apple").load()
    np.testing.assert_array_equal(apple[:3], pixels("apple"))
    assert np.all(apple[3] == 9)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: save(root, "data/apple/003.png", (32, 33)),
            r"data/apple/003\.png in .* is 32 x 33 pixels, expected 32 x",
        ),
        (lambda root: [p.unlink() for p in (root / "data/worm").iterdir()], r"class 'worm' from .* has no images"),
        (
            lambda root: (root / "data/worm").rename(root / "data/wurm"),
            r"raw lacks 1 of CIFAR-100's class folders.*worm",
        ),
        (lambda root: (root / "data").rename(root.parent / "gone"), r"cifar_fs is not in .*cifar-100-python\.tar\.gz"),
        (
            lambda root: write_pickles(root, "fc100", train={"data": pixels("bee"), "labels": [0]}),
            r"expected one integer",
        ),
        (
            lambda root: write_zip(root / "cifar100.zip").write_bytes(b"PK\3\4 cut off"),
            r"cannot read .*cifar100\.zip: .*again",
        ),
        (
            lambda root: (root / "cifar-100-python.tar.gz").write_bytes(gzip.compress(b"x")[:9]),
            r"cannot read .*python\.tar\.gz",
        ),
    ],
)
def test_damage(tmp_path, damage, message):
    root = tmp_path / "raw"
    write_folder(root, "")
    damage(root)
    with pytest.raises(DataError, match=message):
        store.build(cifar.source(root, "cifar_fs"), tmp_path / "cache", progress=False)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cos\nsystem\n(Vtrue\ntR.", r"train in .*cifar-100-python asks for os\.system.*not loaded"),
        (pickle.dumps([1]), r"train in .*cifar-100-python holds a list, expected a dict with 'data' and"),
        (pickle.dumps({"data": np.zeros((2, 9), np.uint8), "fine_labels": [0, 1]}), r"holds 'data' uint8 \[2, 9\]"),
        (pickle.dumps({"data": [[1], [1, 2]], "fine_labels": [0, 1]}), r"train in .*: 'data' is a list of lists"),
        (
            pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [7, 100]}),
            r"train in .*cifar-100-python has fine labels from 7 to 100, expected 0 to 99",
        ),
        (
            pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0]}),
            r"'fine_labels' int64 \[1\], expected",
        ),
    ],
)
def test_damaged_official_folder(tmp_path, content, message):
    write_official(tmp_path, packed=False)
    (tmp_path / "cifar-100-python" / "train").write_bytes(content)
    with pytest.raises(DataError, match=message):
        _ = cifar.source(tmp_path, "fc100").splits["train"]


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match=r"fc100 is not in .*nowhere: it needs FC100_\{train,val,test\}\.pickle"):
        cifar.source(tmp_path / "nowhere", "fc100")
