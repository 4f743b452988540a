"""Lists in a tree that say which images, or which classes, belong to which split."""

import csv
import functools
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from maml_jax.data.archive import Tree, is_image
from maml_jax.data.layout import LIST_FOLDERS, class_folders, prefix_of
from maml_jax.data.source import SPLITS
from maml_jax.data.split import pick, read_json
from maml_jax.errors import DataError


def listed(tree: Tree, prefixes: Sequence[str] = ("",)) -> dict[str, dict[str, list[str]]]:
    """The images that lists in the tree name; nothing if there are no lists.

    Args:
      tree: where to look.
      prefixes: what the lists' names may begin with.

    Raises:
      DataError: if a list is malformed, or names what is not there or twice.
    """
    members, root = set(tree.members), prefix_of(tree.members, images_too=False)
    places = [f"{start}{folder}" for start in dict.fromkeys(("", root)) for folder in LIST_FOLDERS]
    for place in places:
        if (file := f"{place}splits.json") in members:
            origin = f"{file} in {tree.path}"
            return pick(class_folders(tree), read_json(tree.read(file), origin), origin)
    found: dict[str, tuple[str, Callable]] = {}
    for split in SPLITS:
        for file in (f"{place}{prefix}{split}" for place in places for prefix in prefixes):
            for suffix, read in ((".csv", _read_csv), (".txt", _read_names)):
                if file + suffix in members:
                    found.setdefault(split, (file + suffix, read))
    if not found:
        return {}
    listing = {split: read(tree, file, split) for split, (file, read) in found.items()}
    counts = Counter(member for classes in listing.values() for names in classes.values() for member in names)
    if counts and max(counts.values()) > 1:
        twice = max(counts, key=counts.get)
        raise DataError(f"the lists in {tree.path} name {twice} more than once")
    return listing


def _text(tree: Tree, file: str) -> io.StringIO:
    return io.StringIO(tree.read(file).decode("utf-8-sig", errors="replace"), newline="")


def _read_names(tree: Tree, file: str, split: str) -> dict[str, list[str]]:
    """The classes of a list of one name per line."""
    names = sorted(line.strip() for line in _text(tree, file) if line.strip())
    return pick(class_folders(tree), {split: names}, f"{file} in {tree.path}")[split]


def _read_csv(tree: Tree, file: str, split: str) -> dict[str, list[str]]:
    """The images of each label of a list, sorted by label."""
    find = _finder(tree)
    classes: dict[str, list[str]] = defaultdict(list)
    try:
        lines = list(csv.reader(_text(tree, file)))
    except csv.Error as error:
        raise DataError(f"cannot read {tree.path / file}: {error}") from error
    for number, line in enumerate(lines, 1):
        where = f"{tree.path / file} line {number}"
        line = [column.strip() for column in line]
        if not line or line[1:2] == ["label"]:
            continue
        if len(line) < 2 or not all(line[:2]):
            raise DataError(f"{where} is '{','.join(line)[:80]}', expected 'filename,label'")
        # Numbers may begin at 0 in every split.
        name = f"{split}/{line[1]}" if line[1].isdigit() else line[1]
        classes[name].append(find(line[0], where))
    return dict(sorted(classes.items()))


def _finder(tree: Tree) -> Callable[[str, str], str]:
    """What finds the member that a list means by a path."""
    members = set(filter(is_image, tree.members))
    prefixes = dict.fromkeys(("", "images/", prefix_of(tree.members, images_too=False), prefix_of(tree.members)))

    @functools.cache
    def by_name() -> dict[str, list[str]]:
        names = defaultdict(list)
        for member in members:
            names[member.rpartition("/")[2]].append(member)
        return names

    def find(path: str, where: str) -> str:
        for prefix in prefixes:
            if prefix + path in members:
                return prefix + path
        if "/" not in path and len(by_name()[path]) == 1:
            return by_name()[path][0]
        raise DataError(f"{where} names an image that cannot be read: there is no {tree.path / path}")

    return find
