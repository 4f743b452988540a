import json
import tempfile

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from maml_jax.data import store
from maml_jax.data.source import ClassImages, LazySplits, Source, stamp
from maml_jax.errors import DataError

SHAPE = (4, 3, 2)


def pixels(seed, count, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def class_images(name, images, origin=""):
    return ClassImages(name, len(images), lambda: images, origin)


def make_source(splits=None, name="toy", **fingerprint):
    if splits is None:
        splits = {
            "train": [class_images("a", pixels(0, 3)), class_images("b", pixels(1, 5))],
            "test": [class_images("c", pixels(2, 2))],
        }
    return Source(name, fingerprint, SHAPE, splits)


def failing_source(error):
    def load():
        raise error

    return make_source({"train": [class_images("a", pixels(0, 3)), ClassImages("b", 2, load)]}, name="failing")


def test_store_returns_what_the_source_gave(built):
    train, test = store.open_store(built, "train"), store.open_store(built, "test")
    np.testing.assert_array_equal(train.images, np.concatenate([pixels(0, 3), pixels(1, 5)]))
    np.testing.assert_array_equal(train.class_images(1), pixels(1, 5))
    np.testing.assert_array_equal(test.class_images(0), pixels(2, 2))
    assert train.images.dtype == np.uint8
    assert train.offsets.dtype == np.int64
    assert train.offsets.tolist() == [0, 3, 8]
    assert train.counts.tolist() == [3, 5]
    assert train.class_names == ("a", "b")
    assert (train.split, train.num_classes, train.image_shape, train.nbytes) == ("train", 2, SHAPE, 8 * 24)
    assert store.split_names(built) == ("train", "test")


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(counts=st.lists(st.integers(1, 6), min_size=1, max_size=6), shape=st.tuples(*[st.integers(1, 5)] * 3))
def test_any_counts_and_shapes_round_trip(counts, shape):
    classes = [class_images(f"class {i}", pixels(i, count, shape)) for i, count in enumerate(counts)]
    with tempfile.TemporaryDirectory() as folder:
        path = store.build(Source("toy", {}, shape, {"val": classes}), folder, progress=False)
        store.verify(path)
        opened = store.open_store(path, "val")
        assert opened.counts.tolist() == counts
        for c, expected in enumerate(classes):
            np.testing.assert_array_equal(opened.class_images(c), expected.load())
        del opened


def test_store_is_read_only(built):
    with pytest.raises(ValueError, match="read-only"):
        store.open_store(built, "train").images[0] = 0


@pytest.mark.parametrize("c", [-1, 2])
def test_class_out_of_range(built, c):
    with pytest.raises(IndexError, match=f"class {c} of a store of 2 classes"):
        store.open_store(built, "train").class_images(c)


def test_files_are_plain_npy(built):
    assert sorted(file.name for file in built.iterdir()) == ["store.json", "test.npy", "train.npy"]
    assert np.load(built / "train.npy").shape == (8, *SHAPE)


def test_finished_store_is_found_without_listing_classes(tmp_path):
    source = make_source()

    def classes_of(split):
        raise AssertionError(f"{split} was listed")

    path = store.build(source, tmp_path, progress=False)
    lazy = Source(source.name, source.fingerprint, SHAPE, LazySplits(["train", "test"], classes_of))
    assert store.build(lazy, tmp_path, progress=False) == path


def test_every_setting_has_its_own_folder(tmp_path):
    sources = [make_source(version=1), make_source(version=2), make_source(name="other", version=1)]
    assert len({store.build(source, tmp_path, progress=False) for source in sources}) == 3
    assert make_source(a=1, b=2).digest() == make_source(b=2, a=1).digest()


def test_manifest_without_splits(built):
    (built / store.MANIFEST).write_text('{"format": 1, "splits": {}}')
    with pytest.raises(DataError, match=r"is damaged \(store\.json is not of format 1\)"):
        store.verify(built)


def test_verify_takes_the_moments(built):
    moments = store.verify(built)
    images = np.concatenate([pixels(0, 3), pixels(1, 5)])
    np.testing.assert_allclose(moments["train"].mean, images.mean((0, 1, 2)))
    np.testing.assert_allclose(moments["train"].std, images.std((0, 1, 2)))


def test_verify_reads_in_pieces(tmp_path, monkeypatch):
    """Bright images, whose squares overflow soonest, in pieces that do not divide their number."""
    monkeypatch.setattr(store, "_CHUNK", 3 * 24)
    images = np.full((10, *SHAPE), 255, np.uint8)
    path = store.build(make_source({"train": [class_images("a", images)]}), tmp_path, progress=False)
    moments = store.verify(path)["train"]
    np.testing.assert_array_equal([moments.mean, moments.std], [[255, 255], [0, 0]])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pixels(0, 2), r"class 'a' from here.png holds uint8 \[2, 4, 3, 2\], expected uint8 \[3, 4, 3, 2\]"),
        (pixels(0, 3, (4, 3, 1)), r"holds uint8 \[3, 4, 3, 1\]"),
        (pixels(0, 3).astype(np.float32), "holds float32"),
    ],
)
def test_images_not_as_announced(tmp_path, images, message):
    source = make_source({"train": [ClassImages("a", 3, lambda: images, "here.png")]})
    with pytest.raises(DataError, match=message):
        store.build(source, tmp_path / "cache", progress=False)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            {"train": [class_images("a", pixels(0, 1))], "test": [class_images("a", pixels(1, 1))]},
            "class 'a' is in split 'train' and again in split 'test'",
        ),
        ({"val": [class_images("a", pixels(0, 1))] * 2}, "'a' is in split 'val' and again in split 'val'"),
        ({"val": [class_images("a", pixels(0, 0))]}, "class 'a' has no images"),
        ({"val": []}, "split 'val' of toy has no classes"),
    ],
)
def test_unusable_classes(tmp_path, splits, message):
    with pytest.raises(DataError, match=message):
        store.build(make_source(splits), tmp_path, progress=False)


def test_a_split_that_is_not_there():
    lazy = LazySplits(["train"], lambda split: [class_images("a", pixels(0, 3))])
    assert len(lazy["train"]) == len(lazy) == 1
    with pytest.raises(KeyError, match="test"):
        lazy["test"]


@pytest.mark.parametrize("splits", [{}, {"training": []}])
def test_unknown_splits(splits):
    with pytest.raises(ValueError, match="expected some of"):
        list(make_source(splits).checked_splits())


def flip_last_byte(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_verify_finds_one_changed_bit(built):
    store.verify(built)
    flip_last_byte(built / "test.npy")
    with pytest.raises(DataError, match=r"test\.npy differs from its checksum.*delete .* and run again"):
        store.verify(built)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "train.npy").write_bytes((path / "train.npy").read_bytes()[:-1]), "bytes instead of"),
        (lambda path: (path / "train.npy").unlink(), "has 0 bytes instead of"),
        (lambda path: (path / "store.json").unlink(), "store.json"),
        (lambda path: (path / "store.json").write_text("{"), "cannot read store.json"),
        (lambda path: (path / "store.json").write_text("[]"), "cannot read store.json"),
        (lambda path: (path / "store.json").write_text('{"format": 0, "splits": {}}'), "not of format 1"),
    ],
)
def test_damage_is_found_on_opening_and_building(built, damage, message):
    damage(built)
    with pytest.raises(DataError, match=message) as opening:
        store.open_store(built, "train")
    assert f"delete {built} and run again" in str(opening.value)
    with pytest.raises(DataError, match=message):
        store.build(make_source(), built.parent, progress=False)


def test_header_of_another_shape(built):
    manifest = json.loads((built / "store.json").read_text())
    manifest["splits"]["train"]["counts"] = [3, 4]
    (built / "store.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"train\.npy holds uint8 \[8, 4, 3, 2\], not 7 images"):
        store.open_store(built, "train")
    (built / "train.npy").write_bytes(bytes((built / "train.npy").stat().st_size))
    with pytest.raises(DataError, match="not a NumPy file"):
        store.open_store(built, "train")


def test_missing_split(built):
    with pytest.raises(DataError, match="has no split 'val'; it has train, test"):
        store.open_store(built, "val")


def test_stamp_changes_with_the_file(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    one = stamp(tmp_path / "a")
    assert one == stamp(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"12")
    assert stamp(tmp_path / "a") != one
