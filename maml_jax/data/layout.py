"""Where the class folders of a tree are: at its root or further in, all together or by split."""

from collections import defaultdict
from collections.abc import Iterable

from maml_jax.data.archive import Tree, is_image

LIST_FOLDERS = ("", "splits/", "split/", "fs-splits/")
_SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def class_folders(tree: Tree, merge_splits: bool = False) -> dict[str, list[str]]:
    """The images of each class folder, sorted by name; empty folders too.

    Class folders lie at the root, below `images/` if there is one, or below a single folder that holds everything.

    Args:
      tree: where to look.
      merge_splits: whether class folders may also lie below `train/`, `val/` and `test/`.
    """
    prefix = prefix_of(tree.members)
    below = [member for member in tree.members if member.startswith(prefix)]
    if merge_splits and (by_split := _by_split_folder(below, prefix)):
        merged: dict[str, list[str]] = defaultdict(list)
        for start in by_split.values():
            for name, members in _by_folder(below, start).items():
                merged[name] += members
        return dict(sorted(merged.items()))
    return {name: members for name, members in _by_folder(below, prefix).items() if f"{name}/" not in LIST_FOLDERS}


def by_last_folder(tree: Tree) -> dict[str, list[str]]:
    """Groups all images by the name of the folder that they lie in, wherever that is; sorted."""
    classes: dict[str, list[str]] = defaultdict(list)
    for member in tree.members:
        folder, _, file = member.rpartition("/")
        classes[folder.rpartition("/")[2]] += [member] if is_image(file) else []
    return dict(sorted(classes.items()))


def split_folders(tree: Tree) -> dict[str, dict[str, list[str]]]:
    """The images of class folders below `train/`, `val/` and `test/`; nothing if there are no such folders."""
    starts = _by_split_folder(tree.members, prefix_of(tree.members))
    found = {split: _by_folder(tree.members, start) for split, start in starts.items()}
    return found if any(members for classes in found.values() for members in classes.values()) else {}


def prefix_of(members: Iterable[str], images_too: bool = True) -> str:
    """The folder that class folders or splits lie in: '', or the single one there is, and `images/` below."""
    prefix = ""
    tops = {member.partition("/")[0] for member in members if "/" in member}
    if len(tops) == 1 and (top := next(iter(tops))) not in (*_SPLIT_FOLDERS, "images"):
        inside = {rest for member in members if "/" in (rest := member.removeprefix(f"{top}/"))}
        prefix = f"{top}/" if inside else ""
    if images_too and any(member.startswith(f"{prefix}images/") for member in members):
        prefix += "images/"
    return prefix


def _by_split_folder(members: Iterable[str], prefix: str) -> dict[str, str]:
    """The folder of each split, with its prefix."""
    found = {}
    tops = {member.removeprefix(prefix).partition("/")[0] for member in members if "/" in member.removeprefix(prefix)}
    for folder, split in _SPLIT_FOLDERS.items():
        if folder in tops:
            found.setdefault(split, f"{prefix}{folder}/")
    return found


def _by_folder(members: Iterable[str], prefix: str) -> dict[str, list[str]]:
    """Groups images by the folder below `prefix` that they are in, at whatever depth."""
    classes: dict[str, list[str]] = defaultdict(list)
    for member in members:
        name, slash, _ = member.removeprefix(prefix).partition("/")
        if member.startswith(prefix) and slash:
            classes[name] += [member] if is_image(member) else []
    return dict(sorted(classes.items()))
