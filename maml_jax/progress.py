"""Telling the user how far it is."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

import rich.console
import rich.progress

_SECONDS_BETWEEN_LINES = 5.0
_T = TypeVar("_T")

_silent = False
_bar: rich.progress.Progress | None = None


def silence() -> None:
    """Says no more from this process; of several, one speaks."""
    global _silent
    _silent = True


def say(message: str, by_all: bool = False) -> None:
    """Prints a line to standard error, at once; above the bar, if there is one.

    That nobody can be told, since a terminal is gone or a log's disk is full, ends no run.

    Args:
      message: the line.
      by_all: of several processes, the silent ones say it, too.
    """
    if _silent and not by_all:
        return
    with contextlib.suppress(OSError):
        if _bar is not None:
            _bar.console.print(message, markup=False, highlight=False, soft_wrap=True)
        else:
            print(message, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds as 'm:ss' or 'h:mm:ss'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Meter:
    """How far work has come, at which rate, and how long the rest will take.

    A bar in a terminal, elsewhere a line now and then. Only time spent at the work counts: none before `start`, which a
    compilation may take, and none while `paused`.

    Args:
      label: what is being done.
      total: how much there is to do.
      unit: of what, in the plural.
      done: what was done before.
      show: whether to tell at all.
      lines: whether to tell by lines where there is no bar.
    """

    def __init__(self, label: str, total: int, unit: str, done: int = 0, show: bool = True, lines: bool = True):
        self._label, self._total, self._unit, self._show, self._lines = label, total, unit, show, lines
        self._first = self._done = done
        self._spent, self._since, self._spoke, self._bar = 0.0, None, 0.0, None

    def start(self) -> None:
        """The work begins now, unless it has begun before."""
        if self._since is None and not self._spent:
            self._since = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time within does not count."""
        running = self._since is not None
        self._spent, self._since = self.seconds, None
        try:
            yield
        finally:
            self._since = time.perf_counter() if running else None

    @property
    def seconds(self) -> float:
        """Time spent at the work so far."""
        return self._spent + (time.perf_counter() - self._since if self._since is not None else 0.0)

    @property
    def left(self) -> str:
        """How long the rest will take at the rate so far, such as '1:30 left'; '' before there is any."""
        done = self._done - self._first
        if done <= 0 or not self.seconds:
            return ""
        return f"{duration((self._total - self._done) * self.seconds / done)} left"

    def advance(self, done: int) -> None:
        """So much is done now, of `total`."""
        self._done = done
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, left=self.left)
        elif self._show and self._lines and self.seconds - self._spoke > _SECONDS_BETWEEN_LINES:
            self._spoke = self.seconds
            say(f"{self._label}, {done} of {self._total} {self._unit}" + (f", {self.left}" if self.left else ""))

    def __enter__(self) -> "Meter":
        global _bar
        if self._show and sys.stderr.isatty() and not _silent and _bar is None:
            columns = ("{task.description}", rich.progress.BarColumn(), "{task.completed} of {task.total}")
            console = rich.console.Console(stderr=True)
            bar = rich.progress.Progress(*columns, self._unit, "{task.fields[left]}", console=console, transient=True)
            bar.add_task(self._label, total=self._total, completed=self._done, left="")
            bar.start()
            self._bar = _bar = bar
        return self

    def __exit__(self, *exception) -> None:
        global _bar
        if self._bar is not None:
            self._bar.stop()
            self._bar = _bar = None


def track(items: Sequence[_T], label: str, unit: str, show: bool = True) -> Iterator[_T]:
    """Yields the items and tells how far it is, as `Meter` does."""
    with Meter(label, len(items), unit, show=show) as meter:
        meter.start()
        for done, item in enumerate(items):
            meter.advance(done)
            yield item
