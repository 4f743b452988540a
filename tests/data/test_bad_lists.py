"""Lists of the split that are refused: the message names the list, the line and what is wrong with it."""

import json

import pytest

from maml_jax.data import folder
from maml_jax.errors import DataError
from tests.data.test_layout import write


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("train.json", {"annotations": [1, 2], "info": {}}),
        ("novel.json", {"class_names": ["c1"], "class_roots": []}),
        ("val.json", 7),
        ("base.json", [[1], [2]]),
        ("train.json", [{"x": 1}]),
        ("seen.txt", "c0\nc1\n"),
        ("mine.json", {"first": ["c0", "c1"], "second": ["c2"]}),
        ("subset.csv", "file,label\nimages/c0/c0_0.png,c0\n"),
        ("train.yaml", "- c0\n"),
        ("Test.pkl", "x"),
        ("val.jsonl", "{}"),
    ],
)
def test_what_looks_like_a_list_is_refused_by_name(root, file, content):
    (root / file).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=file.replace(".", r"\.")):
        dict(folder.source(root, 8).splits)
    if not file.startswith(("train.j", "novel", "val.json", "base")):
        assert list(folder.source(root, 8, "random").splits) == ["train", "val", "test"]


def test_several_lists_of_a_split(root):
    for name in ("birds_train.csv", "dogs_train.csv"):
        (root / name).write_text("images/c0/c0_0.png,c0\n")
    with pytest.raises(DataError, match=r"several lists of the train split: birds_train\.csv and dogs_train\.csv"):
        dict(folder.source(root, 8).splits)


def test_lists_in_several_folders(root):
    for place in ("one", "two"):
        (root / place).mkdir()
        (root / place / "train.txt").write_text("c0\n")
    with pytest.raises(DataError, match=r"lists of splits in several folders: one/, two/"):
        dict(folder.source(root, 8).splits)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("images/c0/x.heic", r"'images/c0/x\.heic', which is among the files of a kind that is not read"),
        ("images/c0/.x.png", r"'images/c0/\.x\.png', which is among the hidden files"),
        ("../raw/images/c0/c0_0.png", r"an image outside "),
        ("{elsewhere}", r"an image that does not lie in "),
        ("images/c0/c0_9.png", r"an image that cannot be read: there is no .*raw/images/c0/c0_9\.png"),
        ("same.png", r"an image that may be any of 2, such as images/c0/same\.png"),
    ],
)
def test_an_error_never_says_that_a_file_is_missing_which_is_there(root, tmp_path, path, message):
    write(root, "images/c0/same.png", "images/c1/same.png", "images/c0/.x.png")
    (root / "images" / "c0" / "x.heic").write_bytes(b"x")
    write(tmp_path, "elsewhere/q.png")
    path = path.format(elsewhere=tmp_path / "elsewhere" / "q.png")
    (root / "train.csv").write_text(f"images/c0/c0_0.png,c0\n{path},c0\n")
    with pytest.raises(DataError, match=rf"train\.csv line 2 names {message}") as caught:
        dict(folder.source(root, 8).splits)
    for word in str(caught.value).split("there is no ")[1:]:
        assert not (root / word).exists()


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ([("images/c0/c0_0.png", "0")], [("images/c0/c0_1.png", "0"), ("images/c1/c1_0.png", "1")]),
        ([("images/c0/c0_0.png", "7"), ("images/c1/c1_0.png", "8")], [("images/c1/c1_1.png", "3")]),
        ([("images/c0/c0_0.png", "robin")], [("images/c0/c0_1.png", "Robin"), ("images/c1/c1_1.png", "wren")]),
    ],
)
@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_class_folder_in_two_splits_is_one_class(root, train, test, form):
    for split, part in (("train", train), ("test", test)):
        text = "\n".join(map(",".join, part)) if form == "csv" else json.dumps(part)
        (root / f"{split}.{form}").write_text(text)
    with pytest.raises(
        DataError, match=r"images of the folder 'images/c[01]' in split 'train', as class .* in split 'test'"
    ):
        dict(folder.source(root, 8).splits)
    assert list(folder.source(root, 8, "images").splits) == ["train", "test"]


BAD_LISTS = {
    "a class twice": ("train.txt", "c0\nc1\nc0\n", r"train\.txt names the class 'c0' twice"),
    "an image without a class": (
        "train.txt",
        "c0\nloose.png\n",
        r"train\.txt line 2 is 'loose\.png', which lies in",
    ),
    "an image that is not there": (
        "train.txt",
        "images/c0/c0_9.png\n",
        r"line 1 names an image .*: there is no .*_9",
    ),
    "a class that is not there": ("splits.json", {"train": ["c0"], "test": ["c9"]}, r"the class 'c9', of which there"),
    "a folder that is not there": (
        "train.json",
        {"class_names": ["c0", "c9"], "class_roots": ["images/c0", "images/c9"]},
        r"names the class folder 'images/c9', which is not there",
    ),
    "an image twice": (
        "train.csv",
        "images/c0/c0_0.png,c0\nimages/c0/c0_0.png,c0\n",
        r"name images/c0/c0_0\.png more",
    ),
    "the list itself": ("train.csv", "images/c0/c0_0.png,c0\ntrain.csv,c0\n", r"which is none of the images"),
}


@pytest.mark.parametrize("bad", BAD_LISTS)
def test_what_a_list_may_not_say(root, bad):
    file, content, message = BAD_LISTS[bad]
    write(root, "loose.png")
    (root / file).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=message):
        dict(folder.source(root, 8).splits)


BAD_SPLITS = {
    "{": r"mine\.json is not JSON",
    '["c0"]': r"mine\.json must hold",
    '{"train": "c0"}': r"mine\.json must hold",
    '{"train": ["c0"], "test": ["c9"]}': r"mine\.json names the class 'c9', of which there is no folder",
    '{"train": ["c0", "c1"], "test": ["c1"]}': r"class 'c1' in split 'train' and again in 'test'",
}


@pytest.mark.parametrize("content", BAD_SPLITS)
def test_what_a_file_of_the_split_may_not_say(root, tmp_path, content):
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(DataError, match=BAD_SPLITS[content]):
        dict(folder.source(root, 8, str(tmp_path / "mine.json")).splits)
