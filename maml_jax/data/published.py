"""Published splits of the classes of a data set, kept here as lists, and what may be asked for instead of them."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maml_jax.data import folder
from maml_jax.data.account import Account
from maml_jax.data.archive import Tree
from maml_jax.data.images import Look
from maml_jax.data.source import SPLITS, MissingFiles, Source, published_split
from maml_jax.data.split import JsonSplit, Listing, random_split
from maml_jax.errors import ConfigError

Classes = Mapping[str, Sequence[str]]
"""Images of each class."""
RANDOM = "random"


def plain(name: str) -> str:
    """A class name without what folders spell differently: letters and digits alone, in lower case."""
    return re.sub(r"[^0-9a-z]", "", name.lower())


@dataclasses.dataclass(frozen=True)
class PublishedSplit:
    """A split of the classes of a data set by a list that is kept here.

    Attributes:
      name: what it is called in `data.split`.
      data: name of the data set, and of the list, `splits/<data>.txt`.
      origin: whose it is, for messages.
      key: what of a class name tells the class, as of a folder, so of an entry of the list; '' if nothing does.
    """

    name: str
    data: str
    origin: str
    key: Callable[[str], str] = plain

    @functools.cached_property
    def split_of(self) -> Mapping[str, str]:
        """The split of each class, by its key."""
        return {self.key(name): split for split, names in published_split(self.data).items() for name in names}

    def known(self, classes: Classes) -> dict[str, Sequence[str]]:
        """Those of some classes that are of the data set."""
        return {name: members for name, members in classes.items() if self.key(name) in self.split_of}

    def pick(self, classes: Classes) -> Listing:
        """The classes of each split, sorted by name; some may be lacking, and those of no split are left out."""
        listing: dict[str, dict[str, Sequence[str]]] = {split: {} for split in SPLITS}
        for name, members in sorted(self.known(classes).items()):
            listing[self.split_of[self.key(name)]][name] = members
        return listing

    def source(
        self,
        tree: Tree,
        classes: Callable[[Account], Classes],
        missing: MissingFiles,
        look: Look,
        split: str,
        seed: int,
        fingerprint: Mapping[str, Any],
    ) -> Source:
        """A source of images in a tree, split as asked.

        Args:
          tree: where the images are.
          classes: finds the images of each class, to build a store; told of the account.
          missing: what is raised if it finds none of the data set's.
          look: what images are made into.
          split: `name` or '' for this split; 'random' for 64, 16 and 20 % of the classes, drawn by `seed`; or a JSON
            file of the classes of each split.
          seed: of what is drawn.
          fingerprint: what the pixels depend on, beside all these.

        Raises:
          ConfigError: if there is no such split.
          DataError: if its JSON file cannot be read.
        """
        split = split or self.name
        if split not in (self.name, RANDOM) and not split.endswith(".json"):
            raise ConfigError(f"data.split is '{split}'; choose one of {self.name}, {RANDOM}, or a .json file")
        chosen = JsonSplit(Path(split)) if split.endswith(".json") else None
        account = Account(self.origin)

        def listing() -> Listing:
            known = self.known(classes(account))
            if not any(known.values()):
                raise missing
            if chosen:
                account.rule = f"as {split} has it"
                return chosen.pick(known)
            if split == RANDOM:
                account.rule = f"drawn at random with seed {seed}: 64, 16 and 20 % of all classes, as data.split asks"
                return random_split(known, seed, tree)
            return self.pick(known)

        asked = {"split": chosen.stamp() if chosen else split, **({"seed": seed} if split == RANDOM else {})}
        kind = "json" if chosen else split
        return folder.image_source(
            f"{self.data}-{kind}-{look.size}", tree, listing, look, {**fingerprint, **asked}, account
        )
