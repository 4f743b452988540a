"""Telling the user how far it is."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

import rich.console
import rich.progress

_SECONDS_BETWEEN_LINES = 5.0
_T = TypeVar("_T")

_silent = False


def silence() -> None:
    """Says no more from this process; of several, one speaks."""
    global _silent
    _silent = True


def say(message: str) -> None:
    """Prints a line to standard error, at once."""
    if not _silent:
        print(message, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds as 'm:ss' or 'h:mm:ss'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def track(items: Sequence[_T], label: str, unit: str, show: bool = True) -> Iterator[_T]:
    """Yields the items and tells how far it is: a bar if standard error is a terminal, else a line now and then.

    Args:
      items: what to go through.
      label: what is being done.
      unit: what the items are, in the plural.
      show: whether to tell at all.
    """
    if show and sys.stderr.isatty():
        console = rich.console.Console(stderr=True)
        yield from rich.progress.track(items, description=label, console=console, transient=True)
        return
    spoke = time.monotonic()
    for done, item in enumerate(items):
        if show and time.monotonic() - spoke > _SECONDS_BETWEEN_LINES:
            say(f"{label}, {done} of {len(items)} {unit}")
            spoke = time.monotonic()
        yield item
