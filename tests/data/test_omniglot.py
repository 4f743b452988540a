import io
import itertools
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maml_jax.data import omniglot, store
from maml_jax.errors import ConfigError, DataError

SPLIT = {
    "train": ["Greek/character01", "Greek/character02"],
    "val": ["Latin/character01"],
    "test": ["Latin/character02"],
}
PARTS = {"images_background": SPLIT["train"], "images_evaluation": SPLIT["val"] + SPLIT["test"]}


def png(seed):
    """Black ink on white, one bit per pixel, 105 pixels each way, as in Omniglot."""
    ink = np.random.default_rng(seed).random((15, 15)) < 0.2
    content = io.BytesIO()
    Image.fromarray(~np.kron(ink, np.ones((7, 7), bool))).save(content, "PNG")
    return content.getvalue()


PNGS = {
    (part, f"{name}/{i:02d}.png"): png([ord(name[0]), int(name[-2:]), i])
    for part, names in PARTS.items()
    for name in names
    for i in range(1, 21)
}


def write_zips(root, files=PNGS):
    for part in PARTS:
        with zipfile.ZipFile(root / f"{part}.zip", "w") as archive:
            for (of_part, name), content in reversed(files.items()):
                if of_part == part:
                    archive.writestr(f"{part}/{name}", content)


def write_folders(root, files=PNGS):
    for (part, name), content in files.items():
        (root / part / name).parent.mkdir(parents=True, exist_ok=True)
        (root / part / name).write_bytes(content)


@pytest.fixture
def small(monkeypatch):
    """Makes the Vinyals split one of four classes."""
    monkeypatch.setattr(omniglot, "vinyals_split", lambda: SPLIT)


def everything(source):
    return {c.name: c.load() for split in source.splits for c in source.splits[split]}


def test_vinyals_split():
    names = omniglot.vinyals_split()
    assert {split: len(classes) for split, classes in names.items()} == {"train": 1028, "val": 172, "test": 423}
    assert len({name for classes in names.values() for name in classes}) == 1623
    assert "Angelic/character01" in names["train"]
    assert "Hebrew/character22" in names["val"]
    assert {"Gurmukhi/character42", "ULOG/character26"} <= set(names["test"])


def test_random_split_is_a_partition_that_follows_the_seed():
    names = omniglot.random_split(0)
    assert {split: len(classes) for split, classes in names.items()} == {"train": 1100, "val": 100, "test": 423}
    shuffled, ordered = [itertools.chain(*split.values()) for split in (names, omniglot.vinyals_split())]
    assert sorted(shuffled) == sorted(ordered)
    assert names == omniglot.random_split(0)
    assert set(names["test"]) != set(omniglot.random_split(1)["test"])


def test_store(tmp_path, small):
    write_zips(tmp_path)
    path = store.build(omniglot.source(tmp_path), tmp_path / "cache", progress=False)
    train = store.open_store(path, "train")
    assert train.class_names == ("Greek/character01", "Greek/character02")
    assert train.counts.tolist() == [20, 20]
    assert train.image_shape == (28, 28, 1)


def test_images_are_inverted_and_in_order(tmp_path, small):
    write_zips(tmp_path)
    images = everything(omniglot.source(tmp_path, image_size=105))["Latin/character02"]
    assert images.shape == (20, 105, 105, 1)
    assert images.dtype == np.uint8
    assert set(np.unique(images)) == {0, 255}
    for i, image in enumerate(images, 1):
        paper = np.asarray(Image.open(io.BytesIO(PNGS["images_evaluation", f"Latin/character02/{i:02d}.png"])))
        np.testing.assert_array_equal(image[..., 0] == 255, ~paper)


def test_resizing_averages(tmp_path, small):
    """An antialiased resize keeps the mean; picking pixels would not, and would leave no grey."""
    write_zips(tmp_path)
    large = everything(omniglot.source(tmp_path, image_size=105))["Greek/character01"]
    little = everything(omniglot.source(tmp_path, image_size=28))["Greek/character01"]
    np.testing.assert_allclose(little.mean((1, 2, 3)), large.mean((1, 2, 3)), rtol=0.03)
    assert np.mean((little > 10) & (little < 245)) > 0.2


def test_archives_folders_and_a_mixture_give_the_same_pixels(tmp_path, small):
    roots = [tmp_path / name for name in ("zips", "folders", "mixed")]
    for root in roots:
        root.mkdir()
    write_zips(roots[0])
    write_folders(roots[1])
    write_zips(roots[2])
    write_folders(roots[2])
    (roots[2] / "images_background.zip").unlink()
    one, *others = [everything(omniglot.source(root)) for root in roots]
    assert len(one) == 4
    for other in others:
        assert list(other) == list(one)
        for name in one:
            np.testing.assert_array_equal(other[name], one[name])


def test_file_managers_files_are_ignored(tmp_path, small):
    junk = {
        ("images_background", "Greek/character01/._01.png"): b"junk",
        ("images_background", ".DS_Store/character01/01.png"): b"junk",
        ("images_background", "Greek/character01/Thumbs.db"): b"junk",
    }
    write_folders(tmp_path, {**PNGS, **junk})
    assert len(everything(omniglot.source(tmp_path))) == 4


def test_fingerprint(tmp_path, small):
    write_zips(tmp_path)
    assert omniglot.source(tmp_path).digest() == omniglot.source(tmp_path, seed=1).digest()
    assert omniglot.source(tmp_path).digest() != omniglot.source(tmp_path, image_size=32).digest()
    random = [omniglot.source(tmp_path, "random", seed=seed).digest() for seed in (0, 1)]
    assert len({omniglot.source(tmp_path).digest(), *random}) == 3
    before = omniglot.source(tmp_path).digest()
    os.utime(tmp_path / "images_background.zip", ns=(0, 0))
    assert omniglot.source(tmp_path).digest() != before


def test_fingerprint_of_folders(tmp_path, small):
    write_folders(tmp_path)
    before = omniglot.source(tmp_path).digest()
    assert omniglot.source(tmp_path).digest() == before
    os.utime(tmp_path / "images_background/Greek/character01/07.png", ns=(0, 0))
    assert omniglot.source(tmp_path).digest() != before


def test_missing_files(tmp_path, monkeypatch):
    write_zips(tmp_path)
    (tmp_path / "images_evaluation.zip").unlink()
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(DataError) as caught:
        omniglot.source(tmp_path.name)
    message = str(caught.value)
    assert f"needs images_evaluation.zip (or the folder images_evaluation) in {tmp_path};" in message
    assert "https://github.com/brendenlake/omniglot" in message
    assert "data.dir='FOLDER'" in message
    assert "\n" not in message


def test_missing_images(tmp_path, small):
    files = {key: content for key, content in PNGS.items() if key[1] != "Latin/character02/07.png"}
    write_zips(tmp_path, files)
    source = omniglot.source(tmp_path)
    assert len(source.splits["val"]) == 1
    with pytest.raises(DataError, match=r"1 of 1 classes do not have 20 images, such as Latin/character02 with 19"):
        source.splits["test"]


def test_missing_class(tmp_path, small):
    write_folders(tmp_path, {key: content for key, content in PNGS.items() if "Greek/character02" not in key[1]})
    with pytest.raises(DataError, match="such as Greek/character02 with 0"):
        omniglot.source(tmp_path).splits["train"]


def test_truncated_archive(tmp_path, small):
    write_zips(tmp_path)
    file = tmp_path / "images_background.zip"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cannot read .*images_background\.zip.*download it again"):
        store.build(omniglot.source(tmp_path), tmp_path / "cache", progress=False)
    assert not (tmp_path / "cache").exists()


def test_damaged_archive_member(tmp_path, small):
    write_zips(tmp_path)
    file = tmp_path / "images_background.zip"
    wrong = bytearray(file.read_bytes())
    wrong[wrong.index(PNGS["images_background", "Greek/character01/03.png"]) + 60] ^= 0xFF
    file.write_bytes(wrong)
    with pytest.raises(
        DataError, match=r"cannot read images_background/Greek/character01/03\.png in .*images_background\.zip.*CRC"
    ):
        everything(omniglot.source(tmp_path))


@pytest.mark.parametrize("damage", [lambda png: png[:-30], lambda png: png[:60], lambda png: b"", lambda png: b"GIF?"])
@pytest.mark.parametrize("write", [write_zips, write_folders])
def test_damaged_image(tmp_path, small, damage, write):
    key = ("images_evaluation", "Latin/character01/05.png")
    write(tmp_path, {**PNGS, key: damage(PNGS[key])})
    with pytest.raises(DataError, match=r"cannot read the image .*Latin/character01/05\.png in .*images_evaluation"):
        everything(omniglot.source(tmp_path))


def test_image_that_went_away(tmp_path, small):
    write_folders(tmp_path)
    source = omniglot.source(tmp_path)
    (tmp_path / "images_evaluation/Latin/character01/05.png").unlink()
    with pytest.raises(DataError, match=r"cannot read .*05\.png"):
        everything(source)


def test_unknown_split(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.split is 'lake'; choose one of vinyals, random"):
        omniglot.source(tmp_path, "lake")


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("MAML_JAX_TEST_DATA"), reason="MAML_JAX_TEST_DATA is not set")
@pytest.mark.parametrize(("split", "counts"), [("vinyals", (1028, 172, 423)), ("random", (1100, 100, 423))])
def test_real_omniglot(tmp_path, split, counts):
    source = omniglot.source(Path(os.environ["MAML_JAX_TEST_DATA"]) / "omniglot", split)
    path = store.build(source, tmp_path, progress=False)
    store.verify(path)
    for subset, classes in zip(("train", "val", "test"), counts, strict=True):
        opened = store.open_store(path, subset)
        assert opened.images.shape == (20 * classes, 28, 28, 1)
        assert set(opened.counts) == {20}
        assert 0.05 < opened.images.mean() / 255 < 0.12
