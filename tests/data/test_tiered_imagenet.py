import io
import os
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from maml_jax.data import store, tiered_imagenet
from maml_jax.data.source import published_split
from maml_jax.errors import DataError

WNIDS = {"train": ["n01530575", "n01531178"], "val": ["n02099267"], "test": ["n03314780", "n07565083"]}
LABELS = {"train": [1, 0, 1], "val": [0, 0], "test": [0, 1]}
PICKLED = pickle.dumps


def pixels(split, size=8):
    seed = sorted(LABELS).index(split)
    return np.random.default_rng(seed).integers(0, 256, (len(LABELS[split]), size, size, 3), np.uint8)


def write_labels(root, **contents):
    for split, labels in LABELS.items():
        content = contents.get(split, {"labels": labels, "labels_str": WNIDS[split]})
        (root / f"{split}_labels.pkl").write_bytes(content if isinstance(content, bytes) else PICKLED(content))
    return root


def write_npz(root, save=np.savez):
    for split in LABELS:
        save(root / f"{split}_images.npz", images=pixels(split)[..., ::-1])  # BGR
    return write_labels(root)


def png(array):
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG")
    return np.frombuffer(content.getvalue(), np.uint8)


def write_png(root, key="label_specific", column=True):
    for split, labels in LABELS.items():
        encoded = [png(image)[:, None] if column else png(image) for image in pixels(split)]
        (root / f"{split}_images_png.pkl").write_bytes(pickle.dumps(encoded, protocol=2))
        names = {f"{key}_str": WNIDS[split]}
        (root / f"{split}_labels.pkl").write_bytes(pickle.dumps({key: np.array(labels), **names}))
    return root


def write_folders(root, split_folders=True):
    for split, labels in LABELS.items():
        for i, (image, label) in enumerate(zip(pixels(split), labels, strict=True)):
            folder = root / (split if split_folders else "") / WNIDS[split][label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i}.png")
    (root / "n99999999").mkdir() if not split_folders else None  # a class of ImageNet that is not in tiered-ImageNet
    return root


FORMS = {
    "npz": write_npz,
    "compressed npz": lambda root: write_npz(root, np.savez_compressed),
    "png": write_png,
    "flat png": lambda root: write_png(root, "labels", column=False),
    "split folders": write_folders,
    "class folders": lambda root: write_folders(root, split_folders=False),
}


def test_published_split():
    names = published_split("tiered_imagenet")
    assert {split: len(classes) for split, classes in names.items()} == {"train": 351, "val": 97, "test": 160}
    assert len({name for classes in names.values() for name in classes}) == 608


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pixels_and_names(tmp_path, form):
    source = tiered_imagenet.source(FORMS[form](tmp_path), 8)
    for split, labels in LABELS.items():
        classes = source.splits[split]
        assert [c.name for c in classes] == WNIDS[split]
        for label, c in enumerate(classes):
            expected = pixels(split)[np.array(labels) == label]
            np.testing.assert_array_equal(c.read((8, 8, 3)), expected)


def test_labels_without_names(tmp_path):
    write_npz(tmp_path)
    write_labels(tmp_path, **{split: {b"labels": labels} for split, labels in LABELS.items()})
    assert [c.name for c in tiered_imagenet.source(tmp_path, 8).splits["train"]] == ["train/0", "train/1"]


@pytest.mark.parametrize("names", [["crane", "crane"], [["n01530575"], [1, 2]], {"n01530575": 0}, None])
def test_words_and_nonsense_are_no_names(tmp_path, names):
    write_npz(tmp_path)
    words = {split: {"labels": labels, "labels_str": names} for split, labels in LABELS.items()}
    write_labels(tmp_path, **words)
    assert [c.name for c in tiered_imagenet.source(tmp_path, 8).splits["train"]] == ["train/0", "train/1"]


def test_resizing(tmp_path):
    assert tiered_imagenet.source(write_npz(tmp_path), 4).splits["val"][0].read((4, 4, 3)).shape == (2, 4, 4, 3)


def test_stored_npz_is_read_row_by_row(tmp_path, monkeypatch):
    """Reading a class takes the memory of that class, not of the split."""
    rows = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "x.npz", other=np.zeros(3), images=rows)
    from maml_jax.data import npz

    opened = npz._open_npz(tmp_path / "x.npz", "images")
    places = np.array([0, 1, 2, 7, 30, 31, 49])
    np.testing.assert_array_equal(opened[places], rows[places])


def build(root, tmp_path):
    return store.build(tiered_imagenet.source(root, 8), tmp_path / "cache", progress=False)


def flip(file, at):
    content = bytearray(file.read_bytes())
    content[at] ^= 0xFF
    file.write_bytes(content)


def replace_npz(root, **arrays):
    np.savez(root / "train_images.npz", **arrays)


EVIL = b"cos\nsystem\n(Vtouch victim\ntR."


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: write_labels(root, train={"labels": [0, 1]}),
            r"train_labels\.pkl: 'labels' is int64 \[2\], expected one integer for each of 3 images in .*train_imag",
        ),
        (
            lambda root: write_labels(root, val={"label": [0, 0]}),
            r"val_labels\.pkl has the keys 'label', expected 'label",
        ),
        (lambda root: write_labels(root, test=[0, 0]), r"test_labels\.pkl holds a list, expected a dict"),
        (lambda root: write_labels(root, train=EVIL), r"train_labels\.pkl asks for os\.system.*not loaded"),
        (lambda root: flip(root / "train_images.npz", 300), r"cannot read .*train_images\.npz: .*; download it again"),
        (
            lambda root: os.truncate(root / "val_images.npz", 300),
            r"cannot read .*val_images\.npz: .*; download it again",
        ),
        (
            lambda root: replace_npz(root, data=pixels("train")),
            r"train_images\.npz has the keys data\.npy, expected 'im",
        ),
        (
            lambda root: replace_npz(root, images=pixels("train") / 255),
            r"train_images\.npz: 'images' is float64 \[3, 8",
        ),
        (lambda root: replace_npz(root, images=pixels("train")[..., 0]), r"'images' is uint8 \[3, 8, 8\], expected"),
        (lambda root: replace_npz(root, images=np.array([None])), r"cannot read .*train_images\.npz: an array of obj"),
    ],
)
def test_damaged_npz(tmp_path, monkeypatch, damage, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    root = write_npz(tmp_path / "raw")
    damage(root)
    with pytest.raises(DataError, match=message):
        build(root, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (
            [png(pixels("train")[0])] * 2 + [png(pixels("train", 9)[0])],
            r"image 2 of .*png\.pkl is 9 x 9 pixels, but.*8 x 8",
        ),
        ([png(pixels("train")[0])[:60]] * 3, r"cannot read the image 0 of .*train_images_png\.pkl"),
        ({"a": 1}, r"train_images_png\.pkl holds a dict, expected a list of PNG files"),
        ([1, 2, 3], r"train_images_png\.pkl holds a list, expected a list of PNG files as arrays"),
        ([png(pixels("train")[0])] * 4, r"expected one integer for each of 4 images in .*train_images_png\.pkl"),
    ],
)
def test_damaged_png(tmp_path, encoded, message):
    (tmp_path / "raw").mkdir()
    root = write_png(tmp_path / "raw")
    (root / "train_images_png.pkl").write_bytes(pickle.dumps(encoded))
    with pytest.raises(DataError, match=message):
        build(root, tmp_path)
    assert not (tmp_path / "cache").exists()


def test_npz_in_a_zip_that_is_encrypted_or_no_zip(tmp_path):
    write_npz(tmp_path)
    (tmp_path / "train_images.npz").write_bytes(b"PK but not really")
    with pytest.raises(DataError, match=r"cannot read .*train_images\.npz"):
        build(tmp_path, tmp_path / "x")
    with zipfile.ZipFile(tmp_path / "train_images.npz", "w") as archive:
        archive.writestr("images.npy", b"no array")
    with pytest.raises(DataError, match=r"cannot read .*train_images\.npz"):
        build(tmp_path, tmp_path / "x")


def test_missing_files(tmp_path):
    write_npz(tmp_path)
    (tmp_path / "val_labels.pkl").unlink()
    with pytest.raises(DataError, match=r"tiered-ImageNet is not complete in .*few-shot-ssl-public.*data\.dir"):
        tiered_imagenet.source(tmp_path)
    with pytest.raises(DataError, match=r"not complete in .*nowhere"):
        tiered_imagenet.source(tmp_path / "nowhere")
