"""Archives packed in every way, and an archive for each split."""

import numpy as np
import pytest

from maml_jax.data import folder
from tests.data.test_archive import write_tar, write_zip
from tests.data.test_layout import names, paths_of, write


@pytest.mark.parametrize("write_archive", [write_zip, write_tar])
@pytest.mark.parametrize(
    "spell", [lambda p: f"./{p}", lambda p: f"/{p}", lambda p: p.replace("/", "\\"), lambda p: f"./top//{p}"]
)
def test_archives_in_every_spelling(tmp_path, write_archive, spell):
    root = write(tmp_path / "raw", *paths_of(("train", "test")))
    files = {spell(str(path.relative_to(root))): path.read_bytes() for path in root.rglob("*.png")}
    files |= {spell("../outside/1.png"): b"x", spell("train/train_a/notes.docx"): b"x"}
    source = folder.source(write_archive(tmp_path / ("x.zip" if write_archive is write_zip else "x.tar"), files), 8)
    expected = {split: {c.name: c.load() for c in classes} for split, classes in folder.source(root, 8).splits.items()}
    for split, classes in source.splits.items():
        for c in classes:
            np.testing.assert_array_equal(c.load(), expected[split][c.name])
    assert sum(entry["count"] for entry in source.account.left_out.to_json().values()) == 2


@pytest.mark.parametrize("suffix", ["zip", "tar"])
@pytest.mark.parametrize(
    "words", [("train", "val", "test"), ("Base", "Val", "Novel"), ("meta-train", "meta-val", "meta-test")]
)
@pytest.mark.parametrize("inside", ["", "{}/", "images/", "{}/images/"])
def test_an_archive_for_each_split(tmp_path, suffix, words, inside):
    """Whether each holds the folder that it is named after, or what is in there."""
    expected = folder.source(write(tmp_path / "raw", *paths_of(words)), 8)
    (tmp_path / "packed").mkdir()
    for word in words:
        start = inside.format(word)
        files = {
            start + path.relative_to(tmp_path / "raw" / word).as_posix(): path.read_bytes()
            for path in (tmp_path / "raw" / word).rglob("*.png")
        }
        files |= {f"{start}.DS_Store": b"x"}
        (write_zip if suffix == "zip" else write_tar)(tmp_path / "packed" / f"{word}.{suffix}", files)
    source = folder.source(tmp_path / "packed", 8)
    assert names(source) == names(expected)
    for split, classes in source.splits.items():
        for one, other in zip(classes, expected.splits[split], strict=True):
            np.testing.assert_array_equal(one.load(), other.load())
    assert source.account.rule == expected.account.rule or inside
    (left_out,) = source.account.left_out.to_json().values()
    assert left_out["count"] == 3
