"""Lists of the split, in all the forms and spellings that are read."""

import json

import pytest

from maml_jax.data import folder, store
from tests.data.test_layout import names, write

SPLIT_OF = {f"c{i}": split for i, split in enumerate(["train"] * 3 + ["val"] * 2 + ["test"] * 2)}
EXPECTED = {split: [name for name in SPLIT_OF if SPLIT_OF[name] == split] for split in ("train", "val", "test")}
WORDS = {"train": "base", "val": "val", "test": "novel"}


def assert_read(source, images=3):
    found = {split: {c.name: c.count for c in classes} for split, classes in source.splits.items()}
    assert found == {split: dict.fromkeys(part, images) for split, part in EXPECTED.items()}


def rows(part):
    return [(f"images/{name}/{name}_{i}.png", name) for name in part for i in range(3)]


JSON_FORMS = {
    "EasyFSL": lambda part: {"class_names": part, "class_roots": [f"images/{name}" for name in part]},
    "EasyFSL of elsewhere": lambda part: {
        "class_names": part,
        "class_roots": [f"./data/x/images/{name}/" for name in part],
    },
    "CloserLook": lambda part: {
        "label_names": list(SPLIT_OF),
        "image_names": [path for path, _ in rows(part)],
        "image_labels": [list(SPLIT_OF).index(name) for _, name in rows(part)],
    },
    "classes": lambda part: part,
    "images": lambda part: [path for path, _ in rows(part)],
    "pairs": lambda part: [list(row) for row in rows(part)],
    "objects": lambda part: [{"file_name": path, "category": name} for path, name in rows(part)],
    "images of each class": lambda part: {name: [path for path, n in rows(part) if n == name] for name in part},
    "label of each image": lambda part: dict(rows(part)),
    "columns": lambda part: {"filename": [p for p, _ in rows(part)], "label": [n for _, n in rows(part)]},
    "class_names alone": lambda part: {"class_names": part},
}


@pytest.mark.parametrize("form", JSON_FORMS)
@pytest.mark.parametrize("words", [{}, WORDS, {"train": "Meta-Train", "val": "Meta-Val", "test": "Meta-Test"}])
def test_json_of_each_split(root, form, words):
    for split, part in EXPECTED.items():
        (root / f"{words.get(split, split)}.json").write_text(json.dumps(JSON_FORMS[form](part)))
    source = folder.source(root, 8)
    assert_read(source)
    assert ".json" in source.account.rule


@pytest.mark.parametrize("form", ["classes", "images", "pairs", "images of each class", "EasyFSL"])
@pytest.mark.parametrize("file", ["splits.json", "split.json", "my_partition.json"])
def test_json_of_all_splits(root, form, file):
    content = {word: JSON_FORMS[form](EXPECTED[split]) for split, word in WORDS.items()}
    (root / file).write_text(json.dumps(content), encoding="utf-8-sig")
    source = folder.source(root, 8)
    assert_read(source)
    assert source.account.rule == f"as {file} has it"


SPELLINGS = {
    "plain": lambda root, path: path,
    "dot": lambda root, path: f"./{path}",
    "dots": lambda root, path: f"././/{path}",
    "absolute": lambda root, path: str(root / path),
    "of another machine": lambda root, path: f"/home/me/data/birds/{path}",
    "of another folder": lambda root, path: f"filelists/birds/{path}",
    "backslashes": lambda root, path: path.replace("/", "\\"),
    "of Windows": lambda root, path: "C:\\data\\birds\\" + path.replace("/", "\\"),
    "spaces": lambda root, path: f"  {path}  ",
    "quotes": lambda root, path: f'"{path}"',
    "quotes after a space": lambda root, path: f' "{path}"',
    "single quotes": lambda root, path: f"'{path}'",
    "without images/": lambda root, path: path.removeprefix("images/"),
    "bare names": lambda root, path: path.rpartition("/")[2],
    "without suffix": lambda root, path: path.removesuffix(".png"),
    "bare without suffix": lambda root, path: path.rpartition("/")[2].removesuffix(".png"),
    "another suffix": lambda root, path: path.removesuffix("png") + "JPEG",
    "upper case": lambda root, path: path.upper(),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("suffix", ["csv", "txt"])
def test_spellings_of_paths(root, spelling, suffix):
    spell = SPELLINGS[spelling]
    for split, part in EXPECTED.items():
        lines = [f"{spell(root, path)}{',' + name if suffix == 'csv' else ''}" for path, name in rows(part)]
        (root / f"{split}.{suffix}").write_text("\n".join(lines))
    assert_read(folder.source(root, 8))


HEADS = [
    "filename,label",
    "image,class",
    "Filename,Label",
    "path,category",
    "IMAGE NAME,CLASS NAME",
    "x,y",
    "#file;label",
    "id,wnid",
]


@pytest.mark.parametrize("head", ["", *HEADS])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_heads_and_encodings(root, head, end, encoding):
    for split, part in EXPECTED.items():
        lines = ([head.replace(";", ",")] if head else []) + [",".join(row) for row in rows(part)] + ["", ""]
        (root / f"{split}.csv").write_bytes(end.join(lines).encode(encoding))
    assert_read(folder.source(root, 8))


ROWS = {
    "label first": ("label,filename", lambda i, path, name: f"{name},{path}"),
    "label first, no head": ("", lambda i, path, name: f"{name},{path}"),
    "numbered": (",filename,label", lambda i, path, name: f"{i},{path},{name}"),
    "numbered, no head": ("", lambda i, path, name: f"{i},{path},{name}"),
    "columns between": ("path,width,height,label", lambda i, path, name: f"{path},8,8,{name}"),
    "semicolons": ("filename;label", lambda i, path, name: f"{path};{name}"),
    "tabs": ("filename\tlabel", lambda i, path, name: f"{path}\t{name}"),
    "further columns": ("", lambda i, path, name: f"{path},{name},3,1,4"),
}


@pytest.mark.parametrize("form", ROWS)
def test_columns_of_tables(root, form):
    head, row = ROWS[form]
    for split, part in EXPECTED.items():
        lines = [head] * bool(head) + [row(i, path, name) for i, (path, name) in enumerate(rows(part))]
        (root / f"{split}.csv").write_text("\n".join(lines))
    assert_read(folder.source(root, 8))


@pytest.mark.parametrize("column", ["split", "Set", "subset", "partition"])
@pytest.mark.parametrize("file", ["labels.csv", "all images.csv", "splits.csv"])
def test_a_column_for_the_split(root, column, file):
    lines = [f"{WORDS[split]},{path},{name}" for split, part in EXPECTED.items() for path, name in rows(part)]
    (root / file).write_text("\n".join([f"{column},file,label", *lines]))
    assert_read(folder.source(root, 8))


@pytest.mark.parametrize(
    "line",
    [
        lambda path, name: name,
        lambda path, name: f"images/{name}/",
        lambda path, name: f"./{name}",
        lambda path, name: f"/home/me/birds/{name}/",
        lambda path, name: f"{path} {name}",
        lambda path, name: f"{path}\t{name}",
        lambda path, name: path,
    ],
)
@pytest.mark.parametrize("file", ["{}.txt", "ravi_{}.txt", "lists/{}_classes.txt", "splits/{}.lst"])
def test_lines(root, line, file):
    for split, part in EXPECTED.items():
        (root / file.format(split)).parent.mkdir(exist_ok=True)
        lines = dict.fromkeys(line(path, name) for path, name in rows(part))
        (root / file.format(split)).write_text("# classes\n" * ("lists" in file) + "\n".join(lines))
    assert_read(folder.source(root, 8))


def test_lists_tell_how_deep_classes_are(tmp_path):
    root = write(tmp_path, *(f"{g}/{c}/{i}.png" for g in ("ant", "bee") for c in ("x", "y") for i in range(2)))
    (root / "train.txt").write_text("ant/x\nbee/x\n")
    (root / "test.txt").write_text("ant/y\nbee/y\n")
    assert names(folder.source(root, 8)) == {"train": ["ant/x", "bee/x"], "test": ["ant/y", "bee/y"]}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("README.txt", "These are seven classes."),
        ("classes.txt", "\n".join(SPLIT_OF)),
        ("meta.json", '{"author": "me"}'),
    ],
)
def test_what_is_no_list_is_none(root, file, content):
    (root / file).write_text(content)
    source = folder.source(root, 8)
    assert list(source.splits) == ["train", "val", "test"]
    assert "drawn at random with seed 0" in source.account.rule


def test_lists_that_are_not_used_are_counted(root):
    for split, part in EXPECTED.items():
        (root / f"{split}.csv").write_text("\n".join(map(",".join, rows(part))))
        (root / f"{split}.txt").write_text("\n".join(part))
    (root / "all.csv").write_text("x")
    source = folder.source(root, 8)
    assert_read(source)
    assert source.account.rule == "as the lists train.csv, val.csv, test.csv have it"
    left = source.account.left_out.to_json()[folder.UNUSED_TEXTS]
    assert left == {"count": 4, "examples": ["all.csv", "test.txt", "train.txt"]}


def test_where_nothing_tells_whether_classes_are_the_same_it_is_noted(tmp_path):
    root = write(tmp_path, *(f"images/{i}.png" for i in range(8)))
    for start, split in ((0, "train"), (4, "test")):
        (root / f"{split}.csv").write_text("\n".join(f"{start + i}.png,{i % 2}" for i in range(4)))
    source = folder.source(root, 8)
    assert names(source) == {"train": ["train/0", "train/1"], "test": ["test/0", "test/1"]}
    kept = store.account(store.build(source, tmp_path / "cache", progress=False))
    (reason,) = kept["notes"]
    assert "only numbers for names" in reason


@pytest.mark.parametrize("known", [True, False])
def test_labels_of_images_from_several_folders(tmp_path, known):
    """Which no class folder stands for: they are called as the list says, or by their numbers."""
    root = write(tmp_path, *(f"images/{c}/{i}.png" for c in "ab" for i in range(8)))
    for k, split in enumerate(("train", "test")):
        paths = [f"images/{c}/{4 * k + i}.png" for i in range(4) for c in "ab"]
        labels = [2 * k + i % 2 for i in range(4) for _ in "ab"]
        names_known = {"label_names": ["red", "blue", "old", "new"]} if known else {}
        content = {"image_names": paths, "image_labels": labels, **names_known}
        (root / f"{split}.json").write_text(json.dumps(content))
    source = folder.source(root, 8)
    expected = {"train": ["blue", "red"], "test": ["new", "old"]} if known else {}
    assert names(source) == (expected or {"train": ["train/0", "train/1"], "test": ["test/2", "test/3"]})


def test_broken_json_beside_the_lists_is_none(root):
    for split, part in EXPECTED.items():
        (root / f"{split}.txt").write_text("\n".join(part))
    (root / "notes.json").write_text("{")
    assert_read(folder.source(root, 8))
