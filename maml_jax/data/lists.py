"""Lists in a tree that say which images, or which classes, belong to which split: where they are, and which count."""

import functools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from maml_jax.data import list_forms
from maml_jax.data.account import Account
from maml_jax.data.archive import LIST_SUFFIXES, UNKNOWN, Tree, is_image
from maml_jax.data.layout import LIST_FOLDERS, all_folders, base_of, class_folders, split_of
from maml_jax.data.source import SPLITS
from maml_jax.data.spelling import Spelling
from maml_jax.data.split import Listing, by_split
from maml_jax.errors import DataError

_ORDER = (".csv", ".tsv", ".json", ".txt", ".lst", ".list")
_DATA_SUFFIXES = (".yaml", ".yml", ".xml", ".xlsx", ".parquet", ".jsonl", ".pkl", ".pickle", ".npz", ".npy", ".mat")
"""Of files that may hold a split, and are not read as lists."""
NUMBERED = "splits whose classes have only numbers for names, so that nothing tells whether they share some"


def listed(
    tree: Tree,
    account: Account | None = None,
    depth: int = 0,
    shared: bool = False,
    way_out: Mapping[str, Any] | None = None,
) -> Listing:
    """The images that lists in the tree name, by split; nothing if there are no lists.

    Args:
      tree: where to look.
      account: told of the rule, and of the lists that are used.
      depth: of class folders; see `layout.class_depth`.
      shared: whether splits may share classes.
      way_out: the settings with which they may.

    Raises:
      DataError: if a list is malformed, names what is not there or twice, or what looks like one cannot be read.
    """
    account = Account() if account is None else account
    spelling = Spelling(tree, functools.partial(_classes, tree, depth))
    places = _places(tree)
    _refuse_several(tree, places)
    for place, files in places.items():
        if listing := _read_place(tree, place, files, spelling, account):
            if not shared:
                check_classes(listing, tree, account, way_out or {})
            check_images(listing, tree)
            return listing
    for place, files in places.items():
        for file in files:
            _refuse_if_list(tree, place + file, spelling)
    return {}


def _classes(tree: Tree, depth: int) -> Mapping[str, Sequence[str]]:
    """The class folders; where it is not plain how deep they lie, folders at any depth: the lists tell."""
    try:
        return class_folders(tree, depth)
    except DataError:
        return all_folders(tree)


def _places(tree: Tree) -> dict[str, list[str]]:
    """The text files in each folder that is no class's, in the order in which folders are looked at."""
    base = base_of(tree)
    with_images = {part for member in tree.members if is_image(member) for part in _above(member)}
    outside = list(_above(f"{base}x"))
    found: dict[str, list[str]] = defaultdict(list)
    for member in tree.members:
        folder, _, name = member.rpartition("/")
        place = f"{folder}/" if folder else ""
        if name.lower().endswith(LIST_SUFFIXES) and (place in outside or place not in with_images):
            found[place].append(name)
    known = _usual(tree)
    order = [*(place for place in known if place in found), *(place for place in found if place not in known)]
    return {place: found[place] for place in dict.fromkeys(order)}


def _usual(tree: Tree) -> list[str]:
    """The folders where lists are usual."""
    return [f"{start}{folder}" for start in _above(f"{base_of(tree)}x") for folder in LIST_FOLDERS]


def _refuse_several(tree: Tree, places: Mapping[str, Sequence[str]]) -> None:
    """Refuses lists in several folders, none of which is one where lists are usual."""
    full = [place for place, files in places.items() if any(split_of(_stem(file), strict=False) for file in files)]
    if len(full) > 1 and full[0] not in _usual(tree):
        raise DataError(
            f"{tree.path} has lists of splits in several folders: {', '.join(full)}; the ones to use belong in splits/"
        )


def _above(member: str) -> Iterator[str]:
    """The folders that a member lies in, the outermost, '', first."""
    parts = member.split("/")[:-1]
    yield from ("/".join(parts[:i]) + "/" * (i > 0) for i in range(len(parts) + 1))


def _read_place(tree: Tree, place: str, files: Sequence[str], spelling: Spelling, account: Account) -> Listing:
    """Reads the lists of one folder."""
    for file in sorted(files, key=_rank):
        if listing := _read_whole(tree, place + file, spelling):
            account.rule = f"as {place}{file} has it"
            account.used.add(place + file)
            return listing
    chosen = {split: _chosen(tree, place, files, split) for split in SPLITS}
    found = {split: place + file for split, file in chosen.items() if file}
    listing = {
        split: list_forms.of_list(tree.read(file), file, f"{tree.path / file}", split, spelling)
        for split, file in found.items()
    }
    if listing:
        several = len(found) > 1
        account.rule = f"as the list{'s' * several} {', '.join(found.values())} {'have' if several else 'has'} it"
        account.used.update(found.values())
    return listing


def _read_whole(tree: Tree, file: str, spelling: Spelling) -> Listing:
    """Reads a list of all splits: JSON by split, or a table with a column for it; nothing if it is none."""
    stem, where = _stem(file), f"{file} in {tree.path}"
    if file.lower().endswith(".json"):
        named = stem in ("split", "splits")
        try:
            parts = by_split(list_forms.parse_json(tree.read(file), where))
        except DataError:
            if named or split_of(stem, strict=False):
                raise
            return {}
        if parts is None:
            if named:
                raise _must_hold(where)
            return {}
        try:
            return {split: list_forms.of_json(part, where, split, spelling) for split, part in parts.items()}
        except list_forms.Unreadable as error:
            raise _must_hold(where) from error
    if list_forms.is_table(file) and not split_of(stem, strict=False):
        rows = list_forms.rows_of(tree.read(file), file, where)
        return list_forms.by_column(rows, f"{tree.path / file}", spelling)
    return {}


def _must_hold(where: str) -> DataError:
    return DataError(f'{where} must hold {{"train": [class names], "val": [...], "test": [...]}}')


def _chosen(tree: Tree, place: str, files: Sequence[str], split: str) -> str:
    """The list of a split: one that is named after it alone goes first, then tables, JSON and lines; '' if none."""
    ranked = sorted((file for file in files if split_of(_stem(file), strict=False) == split), key=_rank)
    if len(ranked) > 1 and _rank(ranked[0])[:2] == _rank(ranked[1])[:2]:
        both = f"{place}{ranked[0]} and {place}{ranked[1]}"
        raise DataError(f"{tree.path} has several lists of the {split} split: {both}")
    return ranked[0] if ranked else ""


def _rank(file: str) -> tuple[bool, int, str]:
    stem = _stem(file)
    return split_of(stem) == "", _ORDER.index(file[file.rindex(".") :].lower()), file


def _stem(file: str) -> str:
    return file.rpartition("/")[2].rpartition(".")[0].lower()


def _refuse_if_list(tree: Tree, file: str, spelling: Spelling) -> None:
    """Refuses what looks like a list of some of the classes or images, but of which split there is no telling."""
    content = tree.read(file)
    try:
        is_json = file.lower().endswith(".json")
        texts = set(_texts(list_forms.parse_json(content, file)) if is_json else _cells(content, file))
    except DataError:
        return
    named = {name for text in texts if (name := spelling.class_folder(text))}
    images = {member for text in texts - named if is_image(text) and (member := spelling.image(text))}
    total, in_classes = len(spelling.classes()), sum(map(len, spelling.classes().values()))
    if (1 < len(named) < total) or (images and not len(images) >= in_classes > 0):
        drawn = "; without lists, the split is drawn" if total else ""
        what = f"{len(named)} of {total} classes" if len(named) > 1 else f"{len(images)} images"
        raise DataError(
            f"{tree.path / file} looks like a list, since it names {what}, but does not say of which split: lists are "
            f"called train, val and test, or have a key or a column for the split{drawn}",
            {"data.split": "random"} if total else {},
        )


def _cells(content: bytes, file: str) -> Iterator[str]:
    for _, row in list_forms.rows_of(content, file, file):
        yield from (cell for text in row for cell in {text, *text.split()})


def _texts(value: Any) -> Iterator[str]:
    """All text in a JSON value."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            left += value
        elif isinstance(value, dict):
            left += [*value, *value.values()]


def refuse_unread(tree: Tree) -> None:
    """Refuses files that are named after a split, and are of a kind that may hold one but is not read.

    Raises:
      DataError: if there is one.
    """
    for file in tree.left_out.get(UNKNOWN, ()):
        if "/" not in file and file.lower().endswith(_DATA_SUFFIXES) and split_of(_stem(file)):
            raise DataError(
                f"{tree.path / file} is named after a split, but lists are read from {', '.join(_ORDER)} files; "
                "without lists, the split is drawn",
                {"data.split": "random"},
            )


def check_images(listing: Listing, tree: Tree) -> None:
    """Refuses images that are named twice.

    Raises:
      DataError: if one is.
    """
    counts = Counter(member for classes in listing.values() for names in classes.values() for member in names)
    if counts and max(counts.values()) > 1:
        twice = max(counts, key=counts.get)
        raise DataError(f"the lists in {tree.path} name {twice} more than once")


def check_classes(listing: Listing, tree: Tree, account: Account, way_out: Mapping[str, Any]) -> None:
    """Refuses classes in several splits, as far as their names and the folders of their images tell.

    Raises:
      DataError: if there is one.
    """
    split_by_name: dict[str, str] = {}
    labels: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for split, classes in listing.items():
        for name, members in classes.items():
            if name in split_by_name:
                both = f"is in split '{split_by_name[name]}' and again in split '{split}'"
                differ = "if these are different classes, their names have to differ"
                raise DataError(f"class '{name}' from {tree.path} {both}; {differ}", way_out)
            split_by_name[name] = split
            for member in members:
                labels[member.rpartition("/")[0]][split].add(name)
    tells = len(labels) > 1 and all(len(names) == 1 for by in labels.values() for names in by.values())
    for folder, by in labels.items():
        if tells and len(by) > 1:
            (one, as_one), (other, as_other) = ((split, min(names)) for split, names in list(by.items())[:2])
            raise DataError(
                f"{tree.path} has images of the folder '{folder}' in split '{one}', as class '{as_one}', and in split "
                f"'{other}', as class '{as_other}'",
                way_out,
            )
    numbered = [split for split, classes in listing.items() if any(name.startswith(f"{split}/") for name in classes)]
    if not tells and len(numbered) > 1:
        account.notes.add(NUMBERED, numbered)
