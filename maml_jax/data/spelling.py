"""Finds the images and class folders of a tree that lists mean, however they spell them."""

import functools
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from maml_jax.data.archive import Tree, is_image
from maml_jax.data.layout import base_of
from maml_jax.errors import DataError


def tidy(path: str) -> str:
    """A path with '/' between its parts, without './', quotes, or space around it."""
    parts = path.strip().strip("'\"").strip().replace("\\", "/").split("/")
    return "/" * (parts[0] == "" and len(parts) > 1) + "/".join(part for part in parts if part not in ("", "."))


class Spelling:
    """The images and class folders of a tree, by all the paths that may mean them.

    A path counts from the tree's root, from the folder that holds everything or from `images/`; may be absolute, or
    begin with folders of another place or machine; may lack the suffix, or differ in upper and lower case. Where only
    the end of a path is found, or a bare name, it must be the only one.

    Args:
      tree: where to look.
      classes: lists the class folders, when they are first asked for.
    """

    def __init__(self, tree: Tree, classes: Callable[[], Mapping[str, Sequence[str]]]):
        self._tree = tree
        self.classes = functools.cache(classes)

    @functools.cached_property
    def _images(self) -> "_Paths":
        return _Paths(filter(is_image, self._tree.members), suffixes=True)

    @functools.cached_property
    def _folders(self) -> "_Paths":
        return _Paths(self.classes())

    @functools.cached_property
    def _own(self) -> set[str]:
        """The tree's own absolute path, and as the user may have written it."""
        path = self._tree.path
        return {f"{tidy(str(place))}/" for place in (path.absolute(), path.resolve()) if str(place) != "/"}

    @functools.cached_property
    def _starts(self) -> list[str]:
        """What paths may leave out at their front."""
        base = base_of(self._tree)
        outer = base[: -len("images/")] if base.lower().endswith("images/") else base
        return list(dict.fromkeys(("", "images/", outer, base)))

    def image(self, text: str) -> str | None:
        """The image that a path means; None if there is none, or no telling which."""
        return self._find(tidy(text), self._images)

    def class_folder(self, text: str) -> str | None:
        """The class whose folder a path or name means; None if there is none, or no telling which."""
        if text.strip() in self.classes():
            return text.strip()
        return self._find(tidy(text), self._folders)

    def _find(self, path: str, paths: "_Paths") -> str | None:
        parts = path.split("/")
        if not path or ".." in parts:
            return None
        inside = next((path.removeprefix(own) for own in self._own if path.startswith(own)), path)
        parts = inside.split("/")
        for i in range(len(parts)):  # without the folders of another place, the longest rest first
            for start in self._starts:
                if found := paths.exactly(start + "/".join(parts[i:])):
                    return found
        return paths.by_end(inside)

    def class_of(self, member: str) -> str | None:
        """The class whose folder an image lies in."""
        return self._class_of.get(member)

    @functools.cached_property
    def _class_of(self) -> dict[str, str]:
        return {member: name for name, members in self.classes().items() for member in members}

    def image_of(self, text: str, where: str) -> str:
        """As `image`.

        Args:
          text: the path.
          where: the list and line, for the message.

        Raises:
          DataError: if there is none; never says of a file that is there that it is not.
        """
        if found := self.image(text):
            return found
        path = tidy(text)
        raise DataError(f"{where} names {self._why(path)}")

    def _why(self, path: str) -> str:
        near, far = self._tree.path / path.lstrip("/"), Path(path)
        if ".." in path.split("/"):
            return f"an image outside {self._tree.path}: '{path}'"
        if len(found := self._images.ends(path)) > 1:
            return f"an image that may be any of {len(found)}, such as {found[0]}: '{path}'"
        for reason, members in self._tree.left_out.items():
            if any(member == path or member.endswith(f"/{path}") for member in members):
                return f"'{path}', which is among the {reason}"
        if far.is_absolute() and far.exists():
            return f"an image that does not lie in {self._tree.path}: '{path}'"
        if self._tree.path.is_dir() and near.is_file():
            return f"'{path}', which is none of the images that are read"
        return f"an image that cannot be read: there is no {near}"


class _Paths:
    """Paths by themselves and by their ends, in any case, with or without their suffixes."""

    def __init__(self, paths: Iterable[str], suffixes: bool = False):
        self._exact = set(paths)
        self._suffixes = suffixes

    @functools.cached_property
    def _loose(self) -> dict[str, list[str]]:
        return self._by(lambda path: path)

    @functools.cached_property
    def _names(self) -> dict[str, list[str]]:
        return self._by(lambda path: path.rpartition("/")[2])

    def _by(self, key: Callable[[str], str]) -> dict[str, list[str]]:
        found = defaultdict(list)
        for path in sorted(self._exact):
            folded = _fold(key(path))
            found[folded].append(path)
            if self._suffixes and "." in folded.rpartition("/")[2]:
                found[folded.rpartition(".")[0]].append(path)
        return found

    def exactly(self, path: str) -> str | None:
        """The one that a whole path means."""
        if path in self._exact:
            return path
        folded = _fold(path)
        found = self._loose.get(folded) or (self._loose.get(folded.rpartition(".")[0]) if is_image(path) else None)
        return found[0] if found and len(found) == 1 else None

    def ends(self, path: str) -> list[str]:
        """All that end in a path; if none do exactly, in any case and without its suffix."""
        folded = _fold(path)
        found = self._names.get(folded.rpartition("/")[2], [])
        exact = [one for one in found if _ends(one, path)]
        return exact or [one for one in found if _ends(_fold(one), folded) or "/" not in path]

    def by_end(self, path: str) -> str | None:
        """The only one that ends in a path."""
        found = self.ends(path)
        return found[0] if len(found) == 1 else None


def _ends(path: str, end: str) -> bool:
    return path == end or path.endswith(f"/{end}")


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()
