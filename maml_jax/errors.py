"""Errors that are the user's to mend, as opposed to defects of this library."""

from collections.abc import Mapping
from typing import Any


class UserError(Exception):
    """A mistake in what the user gave; the command line prints it as one line and exits with status 2.

    Attributes:
      facts: what is wrong.
      settings: fields of the configuration, by their dotted names, and values that mend it, if such are known. The
        command line shows them as flags.
    """

    def __init__(self, facts: str, settings: Mapping[str, Any] | None = None):
        super().__init__(facts)
        self.facts = facts
        self.settings = dict(settings or {})

    def __str__(self) -> str:
        way_out = ", ".join(f"{field}={value!r}" for field, value in self.settings.items())
        return f"{self.facts}; use {way_out}" if way_out else self.facts


class ConfigError(UserError, ValueError):
    """A field of the configuration holds an unusable value; the message names the field, the value and the way out."""


class DataError(UserError, ValueError):
    """Image data is missing, damaged or too small for the episodes asked of it; the message names the file."""


class DiskError(UserError, OSError):
    """A file cannot be written: the disk is full, or read-only, or fails; the message names the file."""


class DeviceError(UserError, RuntimeError):
    """A device is missing, has too little memory or fails, or another process of the run has ended."""


class ProcessesApart(DeviceError):
    """Processes cannot go on together: one has ended, or its device failed. Waiting for one another makes no sense."""
