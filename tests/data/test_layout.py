"""Layouts of folders and archives: read as they plainly are, or questioned."""

import itertools

import pytest
from PIL import Image

from maml_jax.data import folder, store
from maml_jax.data.archive import UNKNOWN
from maml_jax.data.layout import split_of
from maml_jax.errors import DataError
from tests.data.test_archive import write_tar, write_zip

COUNT = itertools.count()


def write(root, *paths):
    """Writes images of 8 pixels, each of a colour of its own."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        number = next(COUNT)
        Image.new("RGB", (8, 8), (number % 256, number // 256 % 256, 77)).save(root / path)
    return root


def names(source):
    return {split: [c.name for c in classes] for split, classes in source.splits.items()}


def counts(source):
    return {split: sum(c.count for c in classes) for split, classes in source.splits.items()}


def paths_of(splits, classes=("{split}_a", "{split}_b"), images=2, suffix="png"):
    for split, name, i in itertools.product(splits, classes, range(images)):
        yield f"{split}/{name.format(split=split)}/{i}.{suffix}"


@pytest.mark.parametrize(
    "splits",
    [
        ("Train", "Val", "Test"),
        ("TRAIN", "VALID", "TEST"),
        ("training", "validation", "testing"),
        ("meta-train", "meta-val", "meta-test"),
        ("metatrain", "metaval", "metatest"),
        ("MetaTrain", "MetaVal", "MetaTest"),
        ("base", "val", "novel"),
        ("train_phase", "val_phase", "test_phase"),
        ("train_set", "dev_set", "test_set"),
        ("images_train", "images_val", "images_test"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_names_of_splits(tmp_path, splits, packed):
    root = write(tmp_path / "raw", *paths_of(splits))
    if packed:
        files = {f"./{path.relative_to(root)}": path.read_bytes() for path in root.rglob("*.png")}
        root = write_tar(tmp_path / "x.tar", files)
    source = folder.source(root, 8)
    found = names(source)
    assert list(found) == ["train", "val", "test"]
    for split, name in zip(found, splits, strict=True):
        assert found[split] == [f"{name}_a", f"{name}_b"]
    assert splits[0] in source.account.rule


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("trainval", ""),
        ("train_phase_val", ""),
        ("test tube", ""),
        ("cat", ""),
        ("", ""),
        ("train2017", "train"),
        ("images", ""),
    ],
)
def test_what_names_a_split(name, split):
    assert split_of(name) == split


def test_splits_in_images_and_images_in_splits(tmp_path):
    one = write(tmp_path / "one", *(f"images/{path}" for path in paths_of(("train", "test"))))
    other = write(tmp_path / "other", *(p.replace("/", "/images/", 1) for p in paths_of(("train", "test"))))
    assert names(folder.source(one, 8)) == names(folder.source(other, 8))


@pytest.mark.parametrize(
    "extra", [["unlabeled/x/1.png", "unlabeled/y/2.png"], ["crossval/x/1.png"], ["test2/z/1.png", "Test/u/1.png"]]
)
def test_splits_beside_others_are_questioned(tmp_path, extra):
    root = write(tmp_path, *paths_of(("train", "test")), *extra)
    with pytest.raises(DataError) as caught:
        dict(folder.source(root, 8).splits)
    message = caught.value.facts
    assert extra[0].partition("/")[0] in message
    assert "train/" in message or "test/" in message


def test_classes_that_are_called_like_splits(tmp_path):
    root = write(tmp_path, *(f"{name}/{i}.png" for name in ("base", "cat", "dog", "test") for i in range(2)))
    with pytest.raises(
        DataError, match=r"base/, test/, beside others, such as cat/, dog/: splits, or classes\?"
    ) as caught:
        dict(folder.source(root, 8).splits)
    assert caught.value.settings == {"data.split": "random"}
    found = names(folder.source(root, 8, "random"))
    assert sorted(name for part in found.values() for name in part) == ["base", "cat", "dog", "test"]


@pytest.mark.parametrize(("name", "top"), [("train", ""), ("novel", "images/"), ("Validation", "data/")])
def test_a_class_that_is_called_like_a_split(tmp_path, name, top):
    """CIFAR-100 has a class 'train'."""
    root = write(tmp_path, *(f"{top}{c}/{i}.png" for c in (name, "cat", "dog") for i in range(2)))
    found = names(folder.source(root, 8))
    assert sorted(name for part in found.values() for name in part) == sorted([name, "cat", "dog"])


@pytest.mark.parametrize("top", ["", "train", "data/omniglot", "images_background"])
def test_omniglot_like_classes_are_two_folders_deep(tmp_path, top):
    paths = [f"{a}/character{c:02d}/{i}.png" for a in ("Greek", "Latin") for c in (1, 2, 3) for i in range(2)]
    source = folder.source(write(tmp_path, *(f"{top}/{path}".lstrip("/") for path in paths)), 8)
    found = sorted(name for part in names(source).values() for name in part)
    assert found == [f"{a}/character{c:02d}" for a in ("Greek", "Latin") for c in (1, 2, 3)]


@pytest.mark.parametrize(
    ("paths", "deep", "shallow"),
    [
        ([f"{g}/{c}/{i}.png" for g in ("birds", "cats") for c in "abc" for i in range(2)], 6, 2),
        ([f"train/{g}/{g}{c}/{i}.png" for g in ("x", "y", "z") for c in range(2) for i in range(2)], 6, 3),
        ([f"{g}/{s}/{i}.png" for g in ("ant", "bee", "cow") for s in ("left", "right") for i in range(2)], 6, 3),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_depth_is_questioned_and_may_be_said(tmp_path, paths, deep, shallow, packed):
    root = write(tmp_path / "raw", *paths)
    if packed:
        root = write_zip(tmp_path / "x.zip", {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.png")})
    with pytest.raises(DataError, match=rf"of which there are {shallow} .*of which there are {deep}") as caught:
        dict(folder.source(root, 8).splits)
    assert caught.value.settings == {"data.class_depth": 2}
    split = "" if "train" in paths[0] else "images"
    with_depth = {d: folder.source(root, 8, split, class_depth=d) for d in (1, 2)} if split == "" else {}
    for depth, count in ((1, shallow), (2, deep)):
        if with_depth:
            assert sum(map(len, names(with_depth[depth]).values())) == count
    with pytest.raises(DataError, match="has no images 3 folders deep"):
        dict(folder.source(root, 8, class_depth=3).splits)


@pytest.mark.parametrize(
    "inside",
    [
        lambda name, i: f"{name}/images/{i}.png",
        lambda name, i: f"{name}/{name}_1/{i}.png",
        lambda name, i: f"{name}/{'x/' * i}{i}.png",
    ],
)
def test_folders_of_one_class_are_no_question(tmp_path, inside):
    root = write(tmp_path, *(f"train/{inside(name, i)}" for name in ("ant", "bee") for i in range(2)))
    source = folder.source(root, 8)
    assert names(source) == {"train": ["ant", "bee"]}
    assert counts(source) == {"train": 4}


def test_several_folders_of_one_split(tmp_path):
    root = write(tmp_path, *paths_of(("train", "val", "validation")))
    with pytest.raises(DataError, match="several folders of the val split: val/ and validation/"):
        dict(folder.source(root, 8).splits)


@pytest.mark.parametrize(("count", "split"), [(1, ""), (2, ""), (2, "random")])
def test_few_classes_get_a_split_by_image_on_request(tmp_path, count, split):
    root = write(tmp_path / "raw", *(f"class{c}/{i:02d}.png" for c in range(count) for i in range(10)))
    with pytest.raises(DataError, match=f"has {count} class folders; three splits") as caught:
        dict(folder.source(root, 8, split).splits)
    assert caught.value.settings == {"data.split": "images"}
    source = folder.source(root, 8, "images")
    assert names(source) == {split: [f"class{c}" for c in range(count)] for split in ("train", "val", "test")}
    assert counts(source) == {"train": 6 * count, "val": 2 * count, "test": 2 * count}
    store.verify(store.build(source, tmp_path / "cache", progress=False))
    opened = [store.open_store(store.folder_of(source, tmp_path / "cache"), split) for split in source.splits]
    assert len({image.tobytes() for one in opened for image in one.images}) == 10 * count
    assert names(folder.source(root, 8, "images", 1)) == names(source)
    assert "images of every class" in source.account.rule


def test_the_same_classes_in_every_split(tmp_path):
    root = write(tmp_path / "raw", *paths_of(("train", "val", "test"), ("cat", "dog")))
    with pytest.raises(DataError, match=r"class 'cat' .* is in split 'train' and again in split 'val'") as caught:
        dict(folder.source(root, 8).splits)
    assert caught.value.settings == {"data.split": "images"}
    source = folder.source(root, 8, "images")
    store.build(source, tmp_path / "cache", progress=False)
    assert names(source) == {split: ["cat", "dog"] for split in ("train", "val", "test")}
    assert source.account.rule == "that of the folders train/, val/, test/"


def test_too_small_for_a_split_by_image(tmp_path):
    root = write(tmp_path, "a/1.png", "a/2.png", *(f"b/{i}.png" for i in range(9)))
    with pytest.raises(DataError, match=r"class 'a' from .* has 2 images") as caught:
        dict(folder.source(root, 8, "images").splits)
    assert caught.value.settings == {"data.skip_small": True}
    source = folder.source(root, 8, "images", smallest=3)
    assert names(source) == {split: ["b"] for split in ("train", "val", "test")}
    assert source.account.left_out.to_json()["classes of fewer than 3 images"] == {"count": 1, "examples": ["a"]}


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["1.png", "2.png"], r"has 0 class folders; .* There are images in \. \(2\)"),
        (["images/1.png"], r"has 0 class folders; .* There are images in images \(1\)"),
        (["train/1.png", "test/2.png"], r"images in the folders train/, test/, but in no class folders there"),
        (["Base/1.png"], r"images in the folders Base/, but in no class folders there"),
    ],
)
def test_images_in_no_class_folder(tmp_path, paths, message):
    with pytest.raises(DataError, match=message):
        dict(folder.source(write(tmp_path, *paths), 8).splits)


def test_archives_among_other_files_are_named(tmp_path):
    write_zip(tmp_path / "birds.zip")
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(DataError, match=r"no images, but birds\.zip") as caught:
        dict(folder.source(tmp_path, 8).splits)
    assert caught.value.settings == {"data.dir": str(tmp_path / "birds.zip")}


def test_everything_is_used_or_counted(tmp_path):
    root = write(tmp_path / "raw", *paths_of(("train", "test")), "loose.png", "train/loose.png")
    for name in ("train/train_a/x.heic", "train/train_a/.hidden.png", "README.md", "test/Thumbs.db", ".git/config"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    (root / "train" / "train_a" / "gone.png").symlink_to("nowhere.png")
    (root / "train" / "train_b" / "loop").symlink_to(root / "train")
    write(root, "train/train_b/browser.JFIF.png")
    (root / "train/train_b/browser.JFIF.png").rename(root / "train/train_b/browser.JFIF")
    source = folder.source(root, 8)
    path = store.build(source, tmp_path / "cache", progress=False)
    assert counts(source) == {"train": 5, "test": 4}
    kept = store.account(path)
    assert kept["split_rule"] == "that of the folders train/, test/"
    assert kept["left_out"] == {
        UNKNOWN: {
            "count": 3,
            "examples": ["README.md", "test/Thumbs.db", "train/train_a/x.heic"],
        },
        "hidden files and folders": {"count": 2, "examples": [".git/", "train/train_a/.hidden.png"]},
        "links to nothing": {"count": 1, "examples": ["train/train_a/gone.png"]},
        "links to a folder above": {"count": 1, "examples": ["train/train_b/loop/"]},
        "images in no class of any split": {"count": 2, "examples": ["loose.png", "train/loose.png"]},
    }


def test_texts_that_are_not_used_are_counted(tmp_path):
    root = write(tmp_path / "raw", *paths_of(("train", "test")))
    for name in ("train.csv", "train/train_a/labels.txt", "classes.json"):
        (root / name).write_text("x")
    source = folder.source(root, 8)
    assert list(source.splits) == ["train", "test"]
    assert source.account.left_out.to_json()[folder.UNUSED_TEXTS]["count"] == 3


def test_labels_without_a_split(tmp_path):
    root = write(tmp_path, *(f"images/{i}.png" for i in range(6)))
    (root / "labels.csv").write_text("\n".join(f"{i}.png,{'abc'[i // 2]}" for i in range(6)))
    with pytest.raises(DataError, match=r"labels\.csv looks like a list, since it names 6 images") as caught:
        dict(folder.source(root, 8).splits)
    assert not caught.value.settings
