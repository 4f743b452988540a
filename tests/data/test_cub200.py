import gzip

import numpy as np
import pytest
from PIL import Image

from maml_jax.data import cub200, inat2017, store
from maml_jax.errors import ConfigError, DataError
from tests.data.test_archive import write_tar
from tests.data.test_folder import save

CLASSES = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross", "004.Groove_billed_Ani"]


def pixels(name, i):
    return np.random.default_rng([int(name[:3]), i]).integers(0, 256, (8, 8, 3), np.uint8)


def write_images(root, prefix="images"):
    for name in CLASSES:
        for i in range(2):
            save(root / prefix / name / f"{name[4:]}_{i}.png", pixels(name, i))


def write_lists(root, where, splits):
    (root / where).mkdir(parents=True)
    for split, names in splits.items():
        lines = [f"{name[4:]}_{i}.png,{name},6,12" for name in names for i in range(2)]
        (root / where / f"{split}.csv").write_text("\n".join(["filename, label, concept_label", *lines]))


def names(source):
    return {split: [c.name for c in classes] for split, classes in source.splits.items()}


@pytest.mark.parametrize("prefix", ["images", "CUB_200_2011/images", ""])
def test_closerlook(tmp_path, prefix):
    """Class i, from 0: training if even, validation if i mod 4 = 1, test if i mod 4 = 3."""
    write_images(tmp_path, prefix)
    source = cub200.source(tmp_path, image_size=8)
    assert names(source) == {"train": [CLASSES[0], CLASSES[2]], "val": [CLASSES[1]], "test": [CLASSES[3]]}
    np.testing.assert_array_equal(source.splits["val"][0].load(), [pixels(CLASSES[1], i) for i in range(2)])
    assert source.digest() == cub200.source(tmp_path, "closerlook", 8).digest()


def test_archive(tmp_path):
    write_images(tmp_path / "raw", "CUB_200_2011/images")
    root = tmp_path / "raw"
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.png")}
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in" / "CUB_200_2011.tgz", {"attributes.txt": b"x", "CUB_200_2011/README": b"", **files})
    one, other = cub200.source(tmp_path / "in", image_size=8), cub200.source(root, image_size=8)
    assert names(one) == names(other)
    for split in one.splits:
        for a, b in zip(one.splits[split], other.splits[split], strict=True):
            np.testing.assert_array_equal(a.load(), b.load())


@pytest.mark.parametrize("where", ["fs-splits", "split", "."])
def test_feat(tmp_path, where):
    write_images(tmp_path)
    if where != ".":
        write_lists(tmp_path, where, {"train": CLASSES[2:], "val": CLASSES[:1], "test": CLASSES[1:2]})
    else:
        write_lists(tmp_path / "x", where="y", splits={"train": CLASSES[2:], "val": CLASSES[:1], "test": CLASSES[1:2]})
        for file in (tmp_path / "x" / "y").iterdir():
            file.rename(tmp_path / file.name)
        (tmp_path / "x" / "y").rmdir()
        (tmp_path / "x").rmdir()
    source = cub200.source(tmp_path, "feat", 8)
    assert names(source) == {"train": CLASSES[2:], "val": CLASSES[:1], "test": CLASSES[1:2]}
    np.testing.assert_array_equal(source.splits["val"][0].load(), [pixels(CLASSES[0], i) for i in range(2)])
    assert source.digest() != cub200.source(tmp_path, "closerlook", 8).digest()


@pytest.mark.parametrize("name", ["closerlook", "feat"])
def test_published_splits(tmp_path, name):
    for n in range(1, 201):
        (tmp_path / "images" / f"{n:03}.Bird").mkdir(parents=True)
    found = names(cub200.source(tmp_path, name))
    assert {split: len(classes) for split, classes in found.items()} == {"train": 100, "val": 50, "test": 50}
    assert sorted(bird for classes in found.values() for bird in classes) == [f"{n:03}.Bird" for n in range(1, 201)]


def test_feat_without_lists(tmp_path):
    """As FEAT's data/cub/split/val.csv and test.csv begin and end, and classes that neither has."""
    ends = {"train": ("003", "198"), "val": ("159", "106"), "test": ("133", "173")}
    for numbers in ends.values():
        for n in numbers:
            save(tmp_path / "images" / f"{n}.Bird" / "1.png", pixels(n, 0))
    found = names(cub200.source(tmp_path, "feat", 8))
    assert found == {split: sorted(f"{n}.Bird" for n in numbers) for split, numbers in ends.items()}


def test_unusable(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.split is 'vinyals'; choose one of closerlook, feat"):
        cub200.source(tmp_path, "vinyals")
    with pytest.raises(DataError, match=r"CUB-200-2011 is not in .*nowhere"):
        cub200.source(tmp_path / "nowhere")
    save(tmp_path / "images" / "other" / "1.png", pixels("001", 0))
    with pytest.raises(DataError, match=r"CUB-200-2011 is not in"):
        dict(cub200.source(tmp_path).splits)
    with pytest.raises(DataError, match=r"CUB-200-2011 is not in"):
        dict(cub200.source(tmp_path, "feat").splits)
    (tmp_path / "CUB_200_2011.tgz").write_bytes(gzip.compress(b"x" * 9999)[:20])
    with pytest.raises(DataError, match=r"cannot read .*CUB_200_2011\.tgz"):
        store.build(cub200.source(tmp_path), tmp_path / "cache", progress=False)
    assert not (tmp_path / "cache").exists()


def write_inat(root):
    for split in ("train", "test"):
        for i in range(3):
            file = root / "images" / "Aves" / f"{split}{i // 2}" / f"{i}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 9), (10 * i, 0, 0)).save(file)
        (root / "fs-splits").mkdir(exist_ok=True)
        lines = [f"Aves/{split}{i // 2}/{i}.jpg,{i // 2}" for i in range(3)]
        (root / "fs-splits" / f"{split}.csv").write_text("path,label\n" + "\n".join(lines))


def test_inat2017(tmp_path):
    with pytest.raises(DataError, match=r"meta-iNat is not complete in .*inat_comp.*fs-splits/train\.csv"):
        inat2017.source(tmp_path / "nowhere")
    write_inat(tmp_path)
    source = inat2017.source(tmp_path, 8)
    assert names(source) == {"train": ["train/0", "train/1"], "test": ["test/0", "test/1"]}
    path = store.build(source, tmp_path / "cache", progress=False)
    assert store.split_names(path) == ("train", "test")
    assert store.open_store(path, "train").counts.tolist() == [2, 1]
