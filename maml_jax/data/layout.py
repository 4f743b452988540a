"""Where the class folders of a tree are: at its root or further in, all together or by split, one level deep or two."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from maml_jax.data.archive import Tree, is_image
from maml_jax.errors import DataError

LIST_FOLDERS = ("", "splits/", "split/", "fs-splits/")
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn", "base", "background"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "novel", "evaluation"), "test"),
}
_WEAK = re.compile(r"background|evaluation|base|novel", re.IGNORECASE)
"""What names a split only beside another: Omniglot's `images_background/` alone just holds everything."""
_NOISE = {"meta", "phase", "set", "split", "data", "image", "images", "img", "imgs", "class", "classes", "folder"}
_OMNIGLOT = re.compile(r"character\d+")


def split_of(name: str, strict: bool = True) -> str:
    """The split that a folder or file is named after: 'Train', 'meta-val', 'novel', 'train_phase'; '' if none.

    Args:
      name: without a suffix.
      strict: whether words that have nothing to do with splits make it another name.
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = [word.removeprefix("meta").removesuffix("set") for word in re.findall(r"[a-z]+", spaced.lower())]
    found = {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS}
    others = [word for word in words if word and word not in _SPLIT_WORDS and word not in _NOISE]
    return found.pop() if len(found) == 1 and not (strict and others) else ""


def base_of(tree: Tree) -> str:
    """The folder that class folders or splits lie in: '', or single folders that hold everything, or `images/`."""
    inside, base = list(filter(is_image, tree.members)), ""
    while True:
        tops: dict[str, list[str]] = defaultdict(list)
        flat = False
        for member in inside:
            top, slash, rest = member.partition("/")
            if slash:
                tops[top].append(rest)
            flat |= not slash
        images = [top for top in tops if top.lower() == "images"]
        if not images and (len(tops) != 1 or flat):
            return base
        (top,) = images[:1] or tops
        is_split = split_of(top) and not _WEAK.search(top)
        if not images and (is_split or any("/" not in rest for rest in tops[top])):
            return base
        inside, base = tops[top], f"{base}{top}/"


def _tops(members: Iterable[str]) -> set[str]:
    return {member.partition("/")[0] for member in members if "/" in member}


def split_starts(tree: Tree) -> tuple[dict[str, list[str]], list[str]]:
    """The folders of each split, and those beside them that hold images too, with the base that both lie in.

    One folder among others is a class for all its name, such as CIFAR-100's `train/`, if its images lie in it directly.
    """
    base = base_of(tree)
    members = [member for member in tree.members if member.startswith(base) and is_image(member)]
    starts, others = defaultdict(list), []
    for top in sorted(_tops(member.removeprefix(base) for member in members)):
        if split := split_of(top):
            starts[split].append(f"{base}{top}/")
        else:
            others.append(f"{base}{top}/")
    own = tuple(folder for folders in starts.values() for folder in folders)
    deep = any(member.removeprefix(base).count("/") > 1 for member in members if member.startswith(own))
    if others and len(starts) == 1 and not deep:
        return {}, others
    order = ("train", "val", "test")
    return {split: starts[split] for split in order if split in starts}, others


def split_folders(tree: Tree, depth: int = 0) -> dict[str, dict[str, list[str]]]:
    """The images of class folders below the folders of each split; nothing if there are none.

    Args:
      tree: where to look.
      depth: see `class_depth`.

    Raises:
      DataError: if a split has several folders, or `class_depth` does not know.
    """
    starts, _ = split_starts(tree)
    for split, folders in starts.items():
        if len(folders) > 1:
            raise DataError(f"{tree.path} has several folders of the {split} split: {' and '.join(folders)}")
    inner = {split: _through(tree, folder) for split, (folder,) in starts.items()}
    depth = class_depth(tree, inner.values(), depth)
    found = {split: _by_folder(tree.members, start, depth) for split, start in inner.items()}
    return {split: classes for split, classes in found.items() if any(classes.values())}


def _through(tree: Tree, start: str) -> str:
    """The folder that class folders lie in below a split's own: itself, or `images/`, or one of the same split."""
    while True:
        members = [m.removeprefix(start) for m in tree.members if m.startswith(start) and is_image(m)]
        tops = _tops(members)
        top = tops.pop() if len(tops) == 1 else ""
        same = top.lower() == "images" or (split_of(top) and split_of(top) == split_of(start.split("/")[-2]))
        if not (same and all(member.count("/") > 1 for member in members)):
            return start
        start += f"{top}/"


def class_folders(tree: Tree, depth: int = 0, merge_splits: bool = False) -> dict[str, list[str]]:
    """The images of each class folder, sorted by name; empty folders too.

    Class folders lie at the root, below `images/` if there is one, or below a single folder that holds everything.

    Args:
      tree: where to look.
      depth: see `class_depth`.
      merge_splits: whether class folders may also lie below `train/`, `val/` and `test/`.
    """
    base = base_of(tree)
    starts, others = split_starts(tree)
    if merge_splits and starts and not others:
        inner = [_through(tree, folder) for folders in starts.values() for folder in folders]
        depth = class_depth(tree, inner, depth)
        merged: dict[str, list[str]] = defaultdict(list)
        for start in inner:
            for name, members in _by_folder(tree.members, start, depth).items():
                merged[name] += members
        return dict(sorted(merged.items()))
    found = _by_folder(tree.members, base, class_depth(tree, [base], depth))
    return {name: members for name, members in found.items() if f"{name}/" not in LIST_FOLDERS}


def class_depth(tree: Tree, starts: Iterable[str], asked: int = 0) -> int:
    """How many folders below `starts` make up a class: 1 where a class is a folder, 2 in Omniglot's Alphabet/character.

    It is plain where images lie one level deep, or in one folder of each class's own, or are Omniglot's.

    Args:
      tree: where to look.
      starts: folders that class folders lie in.
      asked: the answer, if it is known; 0 if not.

    Raises:
      DataError: if it is not plain, or there are no images so deep.
    """
    places: dict[tuple[str, ...], str] = {}
    starts = list(starts)
    for member in filter(is_image, tree.members):
        for start in starts:
            if member.startswith(start) and len(parts := member.removeprefix(start).split("/")) > 1:
                places.setdefault(tuple(parts[:-1]), member)
    deepest = max(map(len, places), default=1)
    if asked > deepest:
        raise DataError(f"{tree.path} has no images {asked} folders deep", {"data.class_depth": deepest})
    if asked or deepest == 1:
        return asked or 1
    if all(len(place) == 2 and _OMNIGLOT.fullmatch(place[1]) for place in places):
        return 2
    below: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for place in places:
        below[place[0]].add(place)
    if all(len(found - {(top,)}) <= 1 for top, found in below.items()):
        return 1
    example = next(place for place in places if len(place) == deepest)
    lower = len({place for place in places if len(place) == deepest})
    raise DataError(
        f"{tree.path} has images {deepest} folders deep, such as {places[example]}: is a class a folder like "
        f"'{example[0]}', of which there are {len(below)} (data.class_depth=1), or like '{'/'.join(example)}', of "
        f"which there are {lower} (data.class_depth={deepest})?",
        {"data.class_depth": deepest},
    )


def all_folders(tree: Tree) -> dict[str, list[str]]:
    """The images of every folder with images in or below it, by its path; of deeper folders last."""
    base = base_of(tree)
    found: dict[str, list[str]] = defaultdict(list)
    for member in filter(is_image, tree.members):
        folders = member.removeprefix(base).split("/")[:-1]
        for depth in range(1, len(folders) + 1 if member.startswith(base) else 0):
            found["/".join(folders[:depth])].append(member)
    return dict(sorted(found.items(), key=lambda item: (item[0].count("/"), item[0])))


def by_last_folder(tree: Tree) -> dict[str, list[str]]:
    """Groups all images by the name of the folder that they lie in, wherever that is; sorted."""
    classes: dict[str, list[str]] = defaultdict(list)
    for member in tree.members:
        folder, _, file = member.rpartition("/")
        classes[folder.rpartition("/")[2]] += [member] if is_image(file) else []
    return dict(sorted(classes.items()))


def outline(tree: Tree, most: int = 8) -> str:
    """What there is in a tree, for a message: its folders with images, and how many lie where."""
    counts: dict[str, int] = defaultdict(int)
    for member in filter(is_image, tree.members):
        counts[member.rpartition("/")[0] or "."] += 1
    shown = [f"{folder} ({count})" for folder, count in sorted(counts.items())[:most]]
    return f"images in {', '.join(shown)}{', ...' if len(counts) > most else ''}" if counts else "no images"


def _by_folder(members: Iterable[str], start: str, depth: int) -> dict[str, list[str]]:
    """Groups images by the first `depth` folders below `start` that they are in, at whatever depth."""
    classes: dict[str, list[str]] = defaultdict(list)
    for member in members:
        *folders, _ = member.removeprefix(start).split("/")
        if member.startswith(start) and len(folders) >= depth and member != start:
            classes["/".join(folders[:depth])] += [member] if is_image(member) else []
    return dict(sorted(classes.items()))


def unused(tree: Tree, used: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
    """The images that no class of any split has."""
    taken = {member for classes in used.values() for members in classes.values() for member in members}
    return [member for member in tree.members if is_image(member) and member not in taken]
