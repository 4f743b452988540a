"""All fields of a configuration, from the two halves of their table.

What else there is to know about a field follows from its entry: `configs/default.py`, the checks, `--help`, what may
change when a run goes on, and the list of settings in `configs/README.md`.
"""

from typing import Any

from maml_jax.config import fields_learning, fields_running, rules
from maml_jax.config.rules import Same

SECTIONS = {
    "": "the run",
    "data": "images and how they are shown to the model",
    "task": "a training episode",
    "model": "the network and its loss",
    "inner": "adaptation to one task",
    "outer": "the meta-update",
    "train": "the length of a run, and what happens on the way",
    "parallel": "over devices",
    "eval": "the protocol of validation and test",
}

FIELDS = (*fields_learning.FIELDS, *fields_running.FIELDS)
BY_NAME = {field.name: field for field in FIELDS}


def default_of(name: str) -> Any:
    """The value a field has if nothing is set."""
    value = BY_NAME[name].default
    return default_of(value.field) if isinstance(value, Same) else value


def check_value(name: str, value: Any) -> None:
    """Refuses a value that a field cannot have, whatever the others are.

    Raises:
      ConfigError: naming the field, its value and what it must be.
    """
    rules.check(name, value, type(default_of(name)), BY_NAME[name].rule)
