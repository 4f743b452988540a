"""What lists say: tables of images and labels, lines of classes or images, and JSON in the forms in use.

Each form gives the images of each class of a split.
"""

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from maml_jax.data.archive import is_image
from maml_jax.data.layout import split_of
from maml_jax.data.spelling import Spelling
from maml_jax.errors import DataError

Classes = dict[str, list[str]]
"""Images of each class."""
Row = tuple[int, list[str]]
"""A line's number and its cells."""
_PATHS = {
    *("filename", "file_name", "file", "filepath", "path", "image", "images", "image_name", "image_names"),
    *("image_path", "image_paths", "img", "img_path"),
}
_LABELS = {
    *("label", "labels", "label_name", "image_label", "image_labels", "class", "class_name", "classname", "category"),
    *("target", "species", "wnid"),
}
_SPLITS = {"split", "set", "subset", "partition", "phase"}
_NUMBER = re.compile(r"[-+]?\d+(\.0*)?")


class Unreadable(Exception):
    """A file has none of the forms; the message says what it has."""


def rows_of(content: bytes, name: str, where: str) -> list[Row]:
    """The lines of a list that are not empty. A table's have cells, between commas, semicolons or tabs; others one."""
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = io.StringIO(content.decode("utf-16" if wide else "utf-8-sig", errors="replace"), newline="")
    try:
        if is_table(name):
            first = next((line for line in text if line.strip()), "")
            text.seek(0)
            lines = list(csv.reader(text, delimiter=max(",;\t", key=first.count), skipinitialspace=True))
        else:
            lines = [[line] for line in text]
    except csv.Error as error:
        raise DataError(f"cannot read {where}: {error}") from error
    stripped = ([cell.strip() for cell in row] for row in lines)
    return [(number, row) for number, row in enumerate(stripped, 1) if any(row)]


def is_table(name: str) -> bool:
    """Says whether a list is a table of images and labels, by its name."""
    return name.lower().endswith((".csv", ".tsv"))


def parse_json(content: bytes, where: str) -> Any:
    """The value of a JSON file.

    Raises:
      DataError: if it is not JSON.
    """
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}") from error


def of_list(content: bytes, name: str, where: str, split: str, spelling: Spelling) -> Classes:
    """Reads the list of one split.

    Args:
      content: the file's.
      name: its name, whose suffix says what it is.
      where: what to call it in messages.
      split: which split, for the names of classes that have only numbers.
      spelling: what its paths mean.

    Raises:
      DataError: if it names what is not there, or cannot be read.
    """
    if name.lower().endswith(".json"):
        try:
            return of_json(parse_json(content, where), where, split, spelling)
        except Unreadable as error:
            raise DataError(f"{where} looks like a list of the {split} split, but it {error}") from error
    rows = rows_of(content, name, where)
    if is_table(name) and not _is_column(rows, spelling):
        return of_table(rows, where, split, spelling)
    return of_lines(rows, where, split, spelling)


def by_column(rows: Sequence[Row], where: str, spelling: Spelling) -> dict[str, Classes]:
    """Reads a table that has a column for the split; nothing if it has none."""
    if len(rows) < 2:
        return {}
    head = [_word(cell) for cell in rows[0][1]]
    column = next((i for i, word in enumerate(head) if word in _SPLITS), None)
    if column is None or not all(len(row) > column and split_of(row[column]) for _, row in rows[1:]):
        return {}
    others = [(number, row[:column] + row[column + 1 :]) for number, row in rows]
    parts: dict[str, list[Row]] = {split_of(row[column]): [others[0]] for _, row in rows[1:]}
    for (_, row), other in zip(rows[1:], others[1:], strict=True):
        parts[split_of(row[column])].append(other)
    return {split: of_table(part, where, split, spelling) for split, part in sorted(parts.items())}


def of_table(rows: Sequence[Row], where: str, split: str, spelling: Spelling) -> Classes:
    """The images of each label, sorted by label. A head line is known by having no image."""
    head = _head(rows, spelling)
    body = rows[len(head) :]
    if not body:
        return {}
    words = [_word(cell) for cell in head[0][1]] if head else []
    path, label = _columns(words, body[0][1], spelling)
    classes: Classes = defaultdict(list)
    for number, row in body:
        if len(row) <= max(path, label) or not (row[path] and row[label]):
            raise DataError(f"{where} line {number} is '{','.join(row)[:80]}', expected 'filename,label'")
        classes[_name(row[label], split)].append(spelling.image_of(row[path], f"{where} line {number}"))
    return dict(sorted(classes.items()))


def of_lines(rows: Sequence[Row], where: str, split: str, spelling: Spelling) -> Classes:
    """The classes of a list of one per line, each a class, an image in its class folder, or an image and its label."""
    classes: Classes = defaultdict(list)
    whole: set[str] = set()
    for place, (number, row) in enumerate(rows):
        text = row[0]
        if name := spelling.class_folder(text):
            if name in whole:
                raise DataError(f"{where} names the class '{name}' twice")
            whole.add(name)
            classes[name] += spelling.classes()[name]
        elif (member := spelling.image(text)) and (name := spelling.class_of(member)):
            classes[name].append(member)
        elif pair := _pair(text, spelling):
            classes[_name(pair[1], split)].append(pair[0])
        elif text.startswith("#") or (place == 0 and _word(text) in _PATHS | _LABELS | {"classes", "names"}):
            continue
        elif member:
            raise DataError(f"{where} line {number} is '{text[:80]}', which lies in no class folder and has no label")
        elif is_image(text):
            spelling.image_of(text, f"{where} line {number}")
        else:
            raise DataError(f"{where} names the class '{text[:80]}', of which there is no folder")
    return dict(sorted(classes.items()))


def of_json(value: Any, where: str, split: str, spelling: Spelling) -> Classes:
    """Reads the JSON of one split.

    In the forms of EasyFSL (`class_names`, `class_roots`), of CloserLook (`image_names`, `image_labels` and perhaps
    `label_names`), an object of the images of each class or of the label of each image, and lists of classes, of
    images, of pairs or of objects of an image and its label.

    Raises:
      Unreadable: if it has none of the forms.
      DataError: if it names what is not there.
    """
    if isinstance(value, dict):
        return _of_object(value, where, split, spelling)
    if not isinstance(value, list):
        raise Unreadable(f"holds a {type(value).__name__}")
    if _all(value, str):
        return of_lines([(i, [text]) for i, text in enumerate(value, 1)], where, split, spelling)
    if all(isinstance(x, list) and len(x) >= 2 and _all(x[:2], str | int) for x in value):
        return of_table([(i, list(map(str, x))) for i, x in enumerate(value, 1)], where, split, spelling)
    if all(isinstance(x, dict) for x in value):
        keys = [(_key(x, _PATHS), _key(x, _LABELS)) for x in value]
        if all(path is not None and label is not None for path, label in keys):
            rows = [(i, [str(x[p]), str(x[c])]) for i, (x, (p, c)) in enumerate(zip(value, keys, strict=True), 1)]
            return of_table(rows, where, split, spelling)
    raise Unreadable("is a list of neither classes nor images with labels")


def _of_object(value: Mapping[str, Any], where: str, split: str, spelling: Spelling) -> Classes:
    lists = {key: x for key, x in value.items() if isinstance(x, list)}
    names, roots = lists.get("class_names"), lists.get("class_roots")
    if names is not None and roots is not None and len(names) == len(roots) and _all([*names, *roots], str):
        pairs = zip(names, roots, strict=True)
        folders = [spelling.class_folder(root) or spelling.class_folder(name) for name, root in pairs]
        lacking = next((root for root, folder in zip(roots, folders, strict=True) if folder is None), None)
        if lacking is not None:
            raise DataError(f"{where} names the class folder '{lacking}', which is not there")
        return {n: list(spelling.classes()[f]) for n, f in sorted(zip(names, folders, strict=True))}
    paths, labels = _key(lists, _PATHS), _key(lists, _LABELS)
    if paths and labels and len(lists[paths]) == len(lists[labels]) and _all(lists[paths], str):
        return _of_columns(lists[paths], lists[labels], lists.get("label_names"), where, split, spelling)
    for key in ("classes", "class_names", "labels", "label_names", "names"):
        if len(value) == 1 and key in lists:
            return of_json(lists[key], where, split, spelling)
    if value and all(isinstance(x, list) and _all(x, str) for x in value.values()):
        return {
            name: [spelling.image_of(path, f"{where}, class '{name}',") for path in images]
            for name, images in sorted(value.items())
        }
    if value and _all(value.values(), str | int) and all(is_image(path) or spelling.image(path) for path in value):
        return of_table([(i, list(map(str, x))) for i, x in enumerate(value.items(), 1)], where, split, spelling)
    raise Unreadable(f"is an object of {', '.join(map(repr, list(value)[:5])) or 'nothing'}")


def _of_columns(
    paths: Sequence[str], labels: Sequence[Any], names: Any, where: str, split: str, spelling: Spelling
) -> Classes:
    """The images of each label. A label that stands for one class folder and no other is called as that is."""
    images = [spelling.image_of(path, where) for path in paths]
    folders: dict[Any, set[str | None]] = defaultdict(set)
    for member, label in zip(images, labels, strict=True):
        folders[str(label)].add(spelling.class_of(member))
    only = [next(iter(found)) for found in folders.values() if len(found) == 1]
    if len(only) == len(folders) == len(set(only) - {None}):
        called = {label: next(iter(found)) for label, found in folders.items()}
    elif isinstance(names, list) and all(label.isdigit() and int(label) < len(names) for label in folders):
        called = {label: str(names[int(label)]) for label in folders}
    else:
        called = {label: _name(label, split) for label in folders}
    classes: Classes = defaultdict(list)
    for member, label in zip(images, labels, strict=True):
        classes[called[str(label)]].append(member)
    return dict(sorted(classes.items()))


def _head(rows: Sequence[Row], spelling: Spelling) -> Sequence[Row]:
    """The head line, if there is one."""
    known = bool(rows) and (len(rows[0][1]) > 1 or _word(rows[0][1][0]) in _PATHS)
    return rows[: int(known and not any(_is_path(cell, spelling) for cell in rows[0][1]))]


def _columns(words: Sequence[str], row: Sequence[str], spelling: Spelling) -> tuple[int, int]:
    """Where a table has the path and the label."""
    named = [i for i, word in enumerate(words) if word in _PATHS and i < len(row) and _is_path(row[i], spelling)]
    by_suffix = [i for i, cell in enumerate(row) if is_image(cell)]
    path = next((i for i in named or by_suffix or range(len(row)) if _is_path(row[i], spelling)), 0)
    labels = [i for i, word in enumerate(words) if word in _LABELS and i != path]
    return path, labels[0] if labels else (path + 1 if path + 1 < len(row) or not path else 0)


def _is_column(rows: Sequence[Row], spelling: Spelling) -> bool:
    """Says whether a table has no labels: one column, or classes and what is said of them."""
    if all(len(row) == 1 for _, row in rows):
        return any(spelling.class_folder(row[0]) or spelling.image(row[0]) for _, row in rows[:2])
    return not any(_is_path(cell, spelling) for _, row in rows for cell in row) and any(
        spelling.class_folder(row[0]) for _, row in rows[:2]
    )


def _is_path(cell: str, spelling: Spelling) -> bool:
    return is_image(cell) or (bool(cell) and spelling.image(cell) is not None)


def _pair(text: str, spelling: Spelling) -> tuple[str, str] | None:
    """The image and the label of a line such as 'cat/1.png 0' or '0,cat/1.png'."""
    for separator in ("\t", ",", ";", " "):
        for path, label in ((text.rpartition(separator)[::2]), text.partition(separator)[::-2]):
            if path and label and (member := spelling.image(path)):
                return member, label.strip().strip("'\"")
    return None


def _name(label: str, split: str) -> str:
    """The name of a class: numbers may begin at 0 in every split."""
    return f"{split}/{label}" if _NUMBER.fullmatch(label) else label


def _word(cell: str) -> str:
    return re.sub(r"[\s-]+", "_", cell.strip().strip("'\"#").strip().lower())


def _key(value: Mapping[str, Any], words: Iterable[str]) -> str | None:
    return next((key for key in value if _word(key) in words), None)


def _all(values: Iterable[Any], kind: Any) -> bool:
    return all(isinstance(value, kind) for value in values)
