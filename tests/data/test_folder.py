import json
import shutil

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image

from maml_jax.data import folder, store
from maml_jax.data.split import random_names
from maml_jax.errors import ConfigError, DataError
from tests.data.test_archive import write_tar, write_zip

SPLIT_OF = {"ant": "train", "bee": "train", "cat": "val", "dog": "test"}


def pixels(name, i, size=8):
    return np.random.default_rng([ord(name[0]), i]).integers(0, 256, (size, size, 3), np.uint8)


def save(file, array):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)


def write_classes(root, count=2, prefix=lambda name: ""):
    for name in SPLIT_OF:
        for i in range(count):
            save(root / prefix(name) / name / f"{name}{i}.png", pixels(name, i))
    return root


def everything(source):
    return {split: {c.name: c.load() for c in classes} for split, classes in source.splits.items()}


def assert_as_written(source, count=2):
    loaded = everything(source)
    assert {name: split for split, classes in loaded.items() for name in classes} == SPLIT_OF
    for classes in loaded.values():
        for name, images in classes.items():
            np.testing.assert_array_equal(images, [pixels(name, i) for i in range(count)])


def write_lists(root, suffix, where="", line=lambda name, i: f"{name}/{name}{i}.png,{name}"):
    (root / where).mkdir(exist_ok=True)
    for split in ("train", "val", "test"):
        names = [name for name in SPLIT_OF if SPLIT_OF[name] == split]
        lines = names if suffix == "txt" else ["path,label", *(line(name, i) for name in names for i in range(2))]
        (root / where / f"{split}.{suffix}").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_split_folders(tmp_path, val):
    write_classes(tmp_path, prefix=lambda name: SPLIT_OF[name].replace("val", val))
    assert_as_written(folder.source(tmp_path, 8))


@pytest.mark.parametrize("where", ["", "splits", "fs-splits", "split"])
@pytest.mark.parametrize("suffix", ["csv", "txt"])
@pytest.mark.parametrize("images", ["", "images"])
def test_lists(tmp_path, where, suffix, images):
    write_classes(tmp_path, prefix=lambda name: images)
    write_lists(tmp_path, suffix, where)
    assert_as_written(folder.source(tmp_path, 8))


@pytest.mark.parametrize(
    "line",
    [
        lambda name, i: f"images/{name}/{name}{i}.png, {name}",
        lambda name, i: f"{name}{i}.png,{name},3,1,4",  # as in FEAT's lists: a bare name, and further columns
    ],
)
def test_forms_of_csv(tmp_path, line):
    write_classes(tmp_path, prefix=lambda name: "images")
    write_lists(tmp_path, "csv", line=line)
    assert_as_written(folder.source(tmp_path, 8))


def test_json(tmp_path):
    splits = {"test": ["dog"], "train": ["bee", "ant"], "val": ["cat"]}
    inside, beside = write_classes(tmp_path / "inside"), write_classes(tmp_path / "beside")
    (inside / "splits.json").write_text(json.dumps(splits))
    (tmp_path / "mine.json").write_text(json.dumps(splits))
    assert_as_written(folder.source(inside, 8))
    assert_as_written(folder.source(beside, 8, str(tmp_path / "mine.json")))


def test_numbers_as_labels_belong_to_their_split(tmp_path):
    write_classes(tmp_path)
    number = {"ant": 0, "bee": 1, "cat": 0, "dog": 0}
    write_lists(tmp_path, "csv", line=lambda name, i: f"{name}{i}.png,{number[name]}")
    loaded = everything(folder.source(tmp_path, 8))
    assert {split: list(classes) for split, classes in loaded.items()} == {
        "train": ["train/0", "train/1"],
        "val": ["val/0"],
        "test": ["test/0"],
    }
    np.testing.assert_array_equal(loaded["train"]["train/1"], [pixels("bee", i) for i in range(2)])


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tgz"])
@pytest.mark.parametrize("top", ["", "birds/"])
@pytest.mark.parametrize("inside", [False, True])
def test_archives(tmp_path, name, top, inside):
    root = write_classes(tmp_path / "raw", prefix=lambda name: SPLIT_OF[name])
    files = {top + path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.png")}
    (tmp_path / "in").mkdir()
    file = (write_zip if name.endswith("zip") else write_tar)(tmp_path / "in" / name, files)
    assert_as_written(folder.source(tmp_path / "in" if inside else file, 8))


def test_random_split_is_the_default_for_bare_class_folders(tmp_path):
    write_classes(tmp_path)
    sources = [folder.source(tmp_path, 8, split, seed) for split, seed in (("", 0), ("random", 0), ("", 1))]
    names = [{split: [c.name for c in cs] for split, cs in source.splits.items()} for source in sources]
    assert names[0] == names[1]
    assert [len(names[0][split]) for split in ("train", "val", "test")] == [2, 1, 1]
    assert len({source.digest() for source in sources}) == 3


def test_random_split_of_split_folders_merges_them(tmp_path):
    write_classes(tmp_path, prefix=lambda name: SPLIT_OF[name])
    save(tmp_path / "train" / "dog" / "dog2.png", pixels("dog", 2))
    loaded = everything(folder.source(tmp_path, 8, "random"))
    assert sorted((name, len(x)) for classes in loaded.values() for name, x in classes.items()) == [
        ("ant", 2),
        ("bee", 2),
        ("cat", 2),
        ("dog", 3),
    ]


@hypothesis.given(names=st.sets(st.text("abcdefgh", min_size=1), min_size=3, max_size=60), seed=st.integers(0, 9))
def test_random_split_is_a_partition(names, seed):
    dealt = random_names(names, seed, "here")
    assert list(dealt) == ["train", "val", "test"]
    assert all(dealt.values())
    assert sorted(name for part in dealt.values() for name in part) == sorted(names)
    assert dealt == random_names(sorted(names, reverse=True), seed, "here")
    if len(names) >= 25:
        assert abs(len(dealt["train"]) / len(names) - 0.64) < 0.04


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(seed=st.integers(0, 2**31))
def test_classes_and_images_never_cross_splits(tmp_path_factory, seed):
    """Every image that was written is in the store once, in the split of its class."""
    root = tmp_path_factory.getbasetemp() / "cross"
    if not root.exists():
        for name in "abcdefg":
            for i in range(3):
                save(root / name / f"{i}.png", np.full((4, 4, 3), 10 * ord(name) % 256 + i, np.uint8))
    cache = root.parent / f"cache{seed}"
    path = store.build(folder.source(root, 4, seed=seed), cache, progress=False)
    stores = [store.open_store(path, split) for split in store.split_names(path)]
    assert sorted(name for s in stores for name in s.class_names) == list("abcdefg")
    seen = [int(image[0, 0, 0]) for s in stores for image in s.images]
    assert len(seen) == len(set(seen)) == 21
    del stores
    shutil.rmtree(cache)


def test_grey_transparent_and_odd_sized_images(tmp_path):
    write_classes(tmp_path)
    Image.new("L", (8, 8), 77).save(tmp_path / "ant" / "ant0.png")
    Image.new("RGBA", (20, 10), (1, 200, 3, 255)).save(tmp_path / "ant" / "ant1.png")
    write_lists(tmp_path, "txt")
    grey, odd = everything(folder.source(tmp_path, 8))["train"]["ant"]
    assert np.all(grey == 77)
    assert np.all(odd == [1, 200, 3])


def test_fingerprint(tmp_path):
    write_classes(tmp_path)
    before = folder.source(tmp_path, 8).digest()
    assert folder.source(tmp_path, 8).digest() == before
    assert folder.source(tmp_path, 9).digest() != before
    save(tmp_path / "ant" / "ant0.png", pixels("x", 0, 9))
    assert folder.source(tmp_path, 8).digest() != before


def break_csv(root, text):
    write_lists(root, "csv")
    (root / "train.csv").write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "eel").mkdir(), r"class 'eel' from .* has no images"),
        (lambda root: break_csv(root, "ant/ant0.png,ant\nx\n"), r"train\.csv line 2 is 'x', expected"),
        (lambda root: break_csv(root, "ant/ant7.png,ant\n"), r"train\.csv line 1 names an image .*ant/ant7\.png"),
        (
            lambda root: break_csv(root, "cat/cat0.png,x\n"),
            r"images of the folder 'cat' in split 'train', as class 'x', and in split 'val'",
        ),
        (lambda root: break_csv(root, "ant/ant0.png,cat\n"), r"'cat' .* is in split 'train' and again in split 'val'"),
        (lambda root: break_csv(root, "path,label\n"), r"split 'train' of folder-8 has no classes"),
        (lambda root: (root / "train.txt").write_text("eel\n"), r"train\.txt names the class 'eel'.*no folder"),
        (lambda root: (root / "splits.json").write_text("{"), r"splits\.json .* is not JSON"),
        (lambda root: (root / "splits.json").write_text('{"train": "ant"}'), r"splits\.json .* must hold"),
        (lambda root: (root / "splits.json").write_text('{"mine": ["ant"]}'), r"splits\.json .* must hold"),
        (
            lambda root: (root / "splits.json").write_text('{"train": ["ant"], "test": ["ant"]}'),
            r"class 'ant' from .*raw is in split 'train' and again in split 'test'; .*; use data\.split='images'",
        ),
        (
            lambda root: (root / "ant" / "ant1.png").write_bytes(b"\x89PNG\r\n"),
            r"cannot read the image ant/ant1\.png in",
        ),
        (lambda root: [shutil.rmtree(root / name) for name in ("ant", "bee")], r"has 2 class folders; three splits"),
    ],
)
def test_damage(tmp_path, damage, message):
    root = write_classes(tmp_path / "raw")
    damage(root)
    with pytest.raises(DataError, match=message):
        store.build(folder.source(root, 8, seed=1), tmp_path / "cache", progress=False)
    assert not (tmp_path / "cache").exists()


def test_class_folder_in_two_splits(tmp_path):
    root = write_classes(tmp_path / "raw", prefix=lambda name: SPLIT_OF[name])
    save(root / "test" / "ant" / "1.png", pixels("x", 1))
    with pytest.raises(DataError, match=r"class 'ant' from .*raw is in split 'train' and again in split 'test'"):
        store.build(folder.source(root, 8), tmp_path / "cache", progress=False)
    assert not (tmp_path / "cache").exists()


def test_unknown_split(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.split is 'vinyals'; choose random, images or a \.json file"):
        folder.source(tmp_path, 8, "vinyals")
    with pytest.raises(DataError, match=r"cannot read data\.split=.*none\.json"):
        folder.source(write_classes(tmp_path / "x"), 8, str(tmp_path / "none.json"))
    with pytest.raises(DataError, match=r"there is no .*nowhere; use data\.dir"):
        folder.source(tmp_path / "nowhere", 8)
