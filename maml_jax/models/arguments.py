"""The arguments of a verb that has its own."""

import argparse
from typing import NoReturn

from maml_jax.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Reads the arguments of a verb; a mistake in them is an error like any other.

    Args:
      verb: its name.
      description: what it does.
      **how: to `argparse`.
    """

    def __init__(self, verb: str, description: str, **how):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(
            f"maml-jax {verb}", description=description, formatter_class=formatter, allow_abbrev=False, **how
        )

    def error(self, message: str) -> NoReturn:
        """Refuses the arguments."""
        raise ConfigError(f"{message}; see {self.prog} --help")
