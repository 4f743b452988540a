"""Telling the user how far it is."""

import sys

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
