"""Errors that are the user's to mend, as opposed to defects of this library."""


class UserError(Exception):
    """A mistake in what the user gave; the command line prints it as one line and exits with status 2."""


class ConfigError(UserError, ValueError):
    """A field of the configuration holds an unusable value; the message names the field, the value and the way out."""


class DataError(UserError, ValueError):
    """Image data is missing, damaged or too small for the episodes asked of it; the message names the file."""
