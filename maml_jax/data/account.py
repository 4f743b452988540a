"""What became of all that was found: the rule that made the split, what was left out, and what was changed.

A source fills its account as its classes are listed and read; the store keeps it.
"""

import dataclasses
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

_EXAMPLES = 3


class Tally:
    """Counts things by reason, and keeps the names of some. Several threads may add to it."""

    def __init__(self):
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = defaultdict(list)

    def add(self, reason: str, names: Iterable[str]) -> None:
        """Counts things that share a reason."""
        names = list(names)
        with self._lock:
            if names:
                self._counts[reason] += len(names)
                self._examples[reason] = sorted([*self._examples[reason], *names])[:_EXAMPLES]

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Of each reason the `count` and a few `examples`."""
        return {reason: {"count": count, "examples": self._examples[reason]} for reason, count in self._counts.items()}


@dataclasses.dataclass
class Account:
    """What a source says of itself.

    Attributes:
      rule: how the classes, or images, came to their splits: what follows 'the split is'.
      left_out: files, images and classes that the store does not have.
      notes: images that were changed to be shown as a viewer shows them, and whatever else is to be known.
      used: the lists that the split is made of.
    """

    rule: str = ""
    left_out: Tally = dataclasses.field(default_factory=Tally)
    notes: Tally = dataclasses.field(default_factory=Tally)
    used: set[str] = dataclasses.field(default_factory=set)

    def to_json(self) -> dict[str, Any]:
        """What a store keeps of it."""
        return {"split_rule": self.rule, "left_out": self.left_out.to_json(), "notes": self.notes.to_json()}


def in_words(tally: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each reason of a tally, as a store keeps it: '3 hidden, such as .a, .b'."""
    return [f"{entry['count']} {reason}, such as {', '.join(entry['examples'])}" for reason, entry in tally.items()]
