import os
import pickle
import weakref

import numpy as np
import pytest
from PIL import Image

from maml_jax.data import mini_imagenet, safe_pickle, store
from maml_jax.errors import DataError
from tests.data.test_safe_pickle import python2_pickle

LABELS = {"train": [5, -2, 5, 11, -2, 5], "val": [0, 1, 0], "test": [0, 0]}
PICKLES = {"train": "train_phase_train.pickle", "val": "val.pickle", "test": "test.pickle"}
LONG = "miniImageNet_category_split_"


def pixels(split, size=6):
    seed = sorted(LABELS).index(split)
    return np.random.default_rng(seed).integers(0, 256, (len(LABELS[split]), size, size, 3), np.uint8)


def write_pickles(root, prefix="", **contents):
    """Writes the three pickles; `contents` replaces what a split's holds."""
    for split, name in PICKLES.items():
        content = contents.get(split, {"data": pixels(split), "labels": LABELS[split]})
        (root / f"{prefix}{name}").write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))


def everything(source):
    return {c.name: c.load() for split in source.splits for c in source.splits[split]}


def assert_as_pickled(source):
    loaded = everything(source)
    assert list(loaded) == ["train/-2", "train/5", "train/11", "val/0", "val/1", "test/0"]
    np.testing.assert_array_equal(loaded["train/5"], pixels("train")[[0, 2, 5]])
    np.testing.assert_array_equal(loaded["train/-2"], pixels("train")[[1, 4]])
    np.testing.assert_array_equal(loaded["val/1"], pixels("val")[[1]])
    np.testing.assert_array_equal(loaded["test/0"], pixels("test"))


@pytest.mark.parametrize("prefix", ["", LONG])
def test_pickles(tmp_path, prefix):
    write_pickles(tmp_path, prefix)
    (tmp_path / f"{prefix}train_phase_val.pickle").write_bytes(b"never read")
    assert_as_pickled(mini_imagenet.source(tmp_path, 6))


@pytest.mark.parametrize(
    "form",
    [
        lambda data, labels: {"data": data, "labels": np.array(labels)},
        lambda data, labels: {"data": list(data), "labels": [np.int64(label) for label in labels]},
        lambda data, labels: {b"data": data, b"labels": labels},
        lambda data, labels: {"data": np.asfortranarray(data), "labels": labels, "catname2label": {"n01": 5}},
        lambda data, labels: pickle.dumps({b"data": data, b"labels": labels}, protocol=2),
        python2_pickle,
    ],
    ids=["array labels", "list of images", "bytes keys", "Fortran order", "protocol 2", "Python 2"],
)
def test_forms_of_pickles(tmp_path, form):
    write_pickles(tmp_path, **{split: form(pixels(split), LABELS[split]) for split in LABELS})
    assert_as_pickled(mini_imagenet.source(tmp_path, 6))


def test_names_of_labels(tmp_path):
    names = {"n01": -2, "n02": 5, "n03": 11, "n99": 7}
    write_pickles(tmp_path, train={"data": pixels("train"), "labels": LABELS["train"], "catname2label": names})
    assert list(everything(mini_imagenet.source(tmp_path, 6)))[:4] == ["n01", "n02", "n03", "val/0"]


@pytest.mark.parametrize("names", [[1, 2], {"n01": [0]}, {"n01": 5}, 3])
def test_unusable_names_of_labels(tmp_path, names):
    content = {"data": pixels("train"), "labels": LABELS["train"], "catname2label": names}
    write_pickles(tmp_path, train=content)
    assert list(everything(mini_imagenet.source(tmp_path, 6)))[:3] == ["train/-2", "train/5", "train/11"]


def test_store(tmp_path):
    write_pickles(tmp_path)
    path = store.build(mini_imagenet.source(tmp_path, 6), tmp_path / "cache", progress=False)
    train = store.open_store(path, "train")
    assert train.counts.tolist() == [2, 3, 1]
    np.testing.assert_array_equal(train.images, pixels("train")[[1, 4, 0, 2, 5, 3]])


def test_each_pickle_is_read_once_and_not_kept(tmp_path, monkeypatch):
    write_pickles(tmp_path)
    read, arrays = [], []

    def load(path, original=safe_pickle.load):
        assert all(array() is None for array in arrays), "two splits in memory"
        content = original(path)
        read.append(path.name)
        arrays.append(weakref.ref(content["data"]))
        return content

    monkeypatch.setattr(safe_pickle, "load", load)
    source = mini_imagenet.source(tmp_path, 6)
    assert read == []
    store.build(source, tmp_path / "cache", progress=False)
    store.build(mini_imagenet.source(tmp_path, 6), tmp_path / "cache", progress=False)
    assert read == list(PICKLES.values())


def test_resizing(tmp_path):
    """Stripes that a resize without antialiasing would lose come out as their mean."""
    stripes = np.zeros((12, 12, 3), np.uint8)
    stripes[2::3] = 240
    write_pickles(tmp_path, test={"data": np.stack([stripes, np.full_like(stripes, 77)]), "labels": [0, 0]})
    striped, constant = everything(mini_imagenet.source(tmp_path, 4))["test/0"]
    assert striped.shape == (4, 4, 3)
    np.testing.assert_allclose(striped[1:3], 80, atol=1)
    assert np.all(constant == 77)


IMAGES = pixels("train", 6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": IMAGES, "labels": [0] * 5}, r"'labels' is int64 \[5\], expected one integer for each of 6 images"),
        ({"data": IMAGES, "labels": [0.5] * 6}, r"'labels' is float64 \[6\]"),
        ({"data": IMAGES, "labels": ["n01"] * 6}, r"'labels' is <U3 \[6\]"),
        ({"data": IMAGES, "labels": [[0], [0, 1]]}, "'labels' is a list of lists, expected an array"),
        ({"data": IMAGES.astype(np.float32), "labels": [0] * 6}, r"'data' is float32 \[6, 6, 6, 3\], expected uint8"),
        ({"data": IMAGES[..., 0], "labels": [0] * 6}, r"'data' is uint8 \[6, 6, 6\], expected"),
        ({"data": IMAGES[..., :1], "labels": [0] * 6}, r"'data' is uint8 \[6, 6, 6, 1\], expected"),
        ({"data": [IMAGES[0], IMAGES[1, :5]], "labels": [0, 0]}, "elements of 'data' differ in shape"),
        ({"data": IMAGES}, "has the keys 'data', expected 'data' and 'labels'"),
        ({b"images": IMAGES, b"labels": [0] * 6}, "has the keys 'images', 'labels', expected"),
        ([1, 2], "holds a list, expected a dict"),
        (b"\x80\x02}(", "truncated"),
        (b"cos\nsystem\n(Vtrue\ntR.", "asks for os.system"),
        ({"data": IMAGES[:0], "labels": np.zeros(0, int)}, "split 'train' of mini_imagenet-6 has no classes"),
    ],
)
def test_unusable_pickles(tmp_path, content, message):
    write_pickles(tmp_path, train=content)
    with pytest.raises(DataError, match=message) as caught:
        store.build(mini_imagenet.source(tmp_path, 6), tmp_path / "cache", progress=False)
    assert "no classes" in message or str(tmp_path / "train_phase_train.pickle") in str(caught.value)
    assert not (tmp_path / "cache").exists()


def write_images(root, csv_folder="", prefix="", size=6):
    """Writes images and lists; the first image of each split is greyscale. Returns the images' pixels by name."""
    (root / "images").mkdir(parents=True)
    (root / csv_folder).mkdir(exist_ok=True)
    decoded = {}
    for split, labels in LABELS.items():
        lines = ["filename,label"]
        for i, (array, label) in enumerate(zip(pixels(split, size), labels, strict=True)):
            name = f"{split}{i}.jpg"
            image = Image.fromarray(array)
            (image.convert("L") if i == 0 else image).save(root / "images" / name, "JPEG", quality=95)
            decoded[name] = np.asarray(Image.open(root / "images" / name).convert("RGB"))
            lines.append(f"{name},n{label + 10:02d}{split}")
        (root / csv_folder / f"{prefix}{split}.csv").write_text("\n".join(lines) + "\n")
    return decoded


@pytest.mark.parametrize(("csv_folder", "prefix"), [("", ""), ("", "ravi_"), ("splits", ""), ("splits", "ravi_")])
def test_images_with_lists(tmp_path, csv_folder, prefix):
    decoded = write_images(tmp_path, csv_folder, prefix)
    source = mini_imagenet.source(tmp_path, 6)
    loaded = everything(source)
    assert list(loaded) == ["n08train", "n15train", "n21train", "n10val", "n11val", "n10test"]
    expected = np.stack([decoded[f"train{i}.jpg"] for i in (0, 2, 5)])
    np.testing.assert_array_equal(loaded["n15train"], expected)
    store.verify(store.build(source, tmp_path / "cache", progress=False))


def test_grey_jpeg_becomes_colour(tmp_path):
    write_images(tmp_path)
    grey, colour = everything(mini_imagenet.source(tmp_path, 6))["n10test"]
    assert grey.shape == (6, 6, 3)
    assert np.all(grey == grey[..., :1])
    assert not np.all(colour == colour[..., :1])


def test_images_of_any_shape_are_resized(tmp_path):
    write_images(tmp_path)
    Image.new("RGB", (20, 10), (200, 100, 50)).save(tmp_path / "images" / "val1.jpg", "JPEG")
    images = everything(mini_imagenet.source(tmp_path, 6))["n11val"]
    assert images.shape == (1, 6, 6, 3)
    np.testing.assert_allclose(images[0].mean((0, 1)), [200, 100, 50], atol=3)


def test_pickles_go_first_if_complete(tmp_path):
    write_images(tmp_path)
    write_pickles(tmp_path)
    assert "train/5" in everything(mini_imagenet.source(tmp_path, 6))
    (tmp_path / "val.pickle").unlink()
    assert "n15train" in everything(mini_imagenet.source(tmp_path, 6))


def test_fingerprint(tmp_path):
    write_images(tmp_path)
    before = mini_imagenet.source(tmp_path, 6).digest()
    assert mini_imagenet.source(tmp_path, 6).digest() == before
    assert mini_imagenet.source(tmp_path, 7).digest() != before
    os.utime(tmp_path / "images" / "test1.jpg", ns=(0, 0))
    after = mini_imagenet.source(tmp_path, 6).digest()
    write_pickles(tmp_path)
    assert len({before, after, mini_imagenet.source(tmp_path, 6).digest()}) == 3


def test_missing_files(tmp_path, monkeypatch):
    write_pickles(tmp_path, LONG)
    (tmp_path / f"{LONG}val.pickle").unlink()
    (tmp_path / "train.csv").touch()
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(DataError) as caught:
        mini_imagenet.source(tmp_path.name)
    message = str(caught.value)
    assert f"not complete in {tmp_path}: as pickles it lacks {LONG}val.pickle (" in message
    assert "as images it needs train.csv, val.csv, test.csv and images/" in message
    for hint in ("kjunelee/MetaOptNet", "twitter-archive/meta-learning-lstm", "data.dir='FOLDER'"):
        assert hint in message
    assert "\n" not in message


def test_missing_image(tmp_path):
    write_images(tmp_path)
    (tmp_path / "images" / "val2.jpg").unlink()
    with pytest.raises(DataError, match=r"val\.csv line 4 names an image that cannot be read: .*val2\.jpg"):
        mini_imagenet.source(tmp_path, 6)


@pytest.mark.parametrize("damage", [b"", b"\xff\xd8\xff\xe0", None])
def test_damaged_image(tmp_path, damage):
    write_images(tmp_path, size=64)
    file = tmp_path / "images" / "val2.jpg"
    file.write_bytes(file.read_bytes()[:-200] if damage is None else damage)
    with pytest.raises(DataError, match=r"cannot read the image .*val2\.jpg"):
        everything(mini_imagenet.source(tmp_path, 64))


def test_image_that_went_away(tmp_path):
    write_images(tmp_path)
    source = mini_imagenet.source(tmp_path, 6)
    (tmp_path / "images" / "val2.jpg").unlink()
    with pytest.raises(DataError, match=r"cannot read .*val2\.jpg"):
        everything(source)


def test_malformed_list(tmp_path):
    write_images(tmp_path)
    (tmp_path / "val.csv").write_text("filename,label\nval0.jpg,n1\n\nval1.jpg\n")
    with pytest.raises(DataError, match=r"val\.csv line 4 is 'val1\.jpg', expected 'filename,label'"):
        mini_imagenet.source(tmp_path, 6)


def test_class_in_two_splits(tmp_path):
    write_images(tmp_path)
    (tmp_path / "val.csv").write_text("val0.jpg,n15train\n")
    with pytest.raises(DataError, match=r"class 'n15train'.* is in split 'train' and again in split 'val'"):
        store.build(mini_imagenet.source(tmp_path, 6), tmp_path / "cache", progress=False)


def test_empty_list(tmp_path):
    write_images(tmp_path)
    (tmp_path / "test.csv").write_text("filename,label\n")
    with pytest.raises(DataError, match="split 'test' of mini_imagenet-6 has no classes"):
        store.build(mini_imagenet.source(tmp_path, 6), tmp_path / "cache", progress=False)
