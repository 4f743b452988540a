"""What a field of the configuration may hold: rules, in words and as tests."""

import ast
import dataclasses
import difflib
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from maml_jax.errors import ConfigError

_LARGEST = {int: 2**31, float: 3.4e38}  # what int32 and float32 hold


class Rule(NamedTuple):
    """What the value of a field must be.

    Attributes:
      words: completes 'must be ...'; '' if any value of the field's type will do.
      holds: the test; it may raise a `ConfigError` that says more than `words`.
      choices: the values there are, if they can be listed.
      explained: what `--help` says in place of `words`, if that is more.
      limit: numbers must be smaller in size; None is what the type holds on a device.
    """

    words: str = ""
    holds: Callable[[Any], bool] = lambda value: True
    choices: tuple[str, ...] = ()
    explained: str = ""
    limit: float | None = None


@dataclasses.dataclass(frozen=True)
class Same:
    """The default of a field that follows another until it is set."""

    field: str


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a configuration.

    Attributes:
      name: dotted, as in 'inner.steps'.
      default: its value unless set; its type is the field's.
      rule: what its value must be.
      meaning: what it does, and its unit.
      free: whether it may change when a run goes on, without making it another run.
    """

    name: str
    default: Any
    rule: Rule
    meaning: str
    free: bool = False

    @property
    def section(self) -> str:
        """What stands before the dot; '' if there is none."""
        return self.name.rpartition(".")[0]


tied = Field
free = functools.partial(Field, free=True)

ANY = Rule()
POSITIVE = Rule("greater than 0", lambda value: value > 0)
FRACTION = Rule("in [0, 1)", lambda value: 0 <= value < 1)
SHARE = Rule("in (0, 1]", lambda value: 0 < value <= 1)
SEED = Rule("in [0, 2**32)", lambda value: value >= 0, limit=2**32)


def at_least(low: float) -> Rule:
    """A number from `low` on."""
    return Rule(f"at least {low}", lambda value: value >= low)


def one_of(*plain: str, **explained: str) -> Rule:
    """One of the names, some of which come with an explanation, by keyword."""
    choices = tuple(dict.fromkeys((*plain, *explained)))
    shown = ", ".join(f"{name} ({explained[name]})" if explained.get(name) else name for name in choices)
    return Rule(f"one of {', '.join(choices)}", lambda value: value in choices, choices, shown)


def one_of_or(rule: Rule, words: str, pattern: str) -> Rule:
    """As `rule`, or anything that matches a regular expression as a whole."""
    return rule._replace(
        words=f"{rule.words}, or {words}",
        holds=lambda value: rule.holds(value) or bool(re.fullmatch(pattern, value)),
        explained=f"{rule.explained}, or {words}",
    )


def _is_regular(value: str) -> bool:
    try:
        re.compile(value)
    except re.error:
        return False
    return True


PATTERN = Rule("a regular expression", _is_regular)
META_STEPS = Rule(
    "meta-steps, whole numbers of at least 0",
    lambda value: all(type(m) is int and 0 <= m < _LARGEST[int] for m in value),
)
ADDRESS = Rule(
    "HOST:PORT of the first process, 'auto', or '' for one process",
    lambda value: value in ("", "auto") or bool(re.fullmatch(r".+:\d{1,5}", value)),
)


def options(text: str) -> dict[str, Any]:
    """The options that a text such as `'blocks=3, activation=gelu'` gives.

    Args:
      text: what stands between the brackets of a call: names with numbers, strings (quoted, or one bare word), True,
        False, None, or tuples, lists and dictionaries of these.

    Returns:
      The values by name.

    Raises:
      ValueError: it is no such text.
    """
    try:
        call = ast.parse(f"call({text}\n)", mode="eval").body
        plain = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args
        names = [word.arg for word in call.keywords] if plain else [None]
        if None not in names and len(set(names)) == len(names):
            return {word.arg: _literal(word.value) for word in call.keywords}
    except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError):
        pass
    raise ValueError(f"{text!r} are not options such as 'blocks=3, activation=gelu'")


def _literal(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def _are_options(text: str) -> bool:
    try:
        options(text)
    except ValueError:
        return False
    return True


OPTIONS = Rule("options such as 'blocks=3, activation=gelu'", _are_options)


def check(name: str, value: Any, kind: type, rule: Rule) -> None:
    """Refuses a value of a field.

    Args:
      name: the field's.
      value: what it holds.
      kind: of which type it must be; a whole number counts as a float, too.
      rule: what else it must be.

    Raises:
      ConfigError: naming the field, its value and what it must be.
    """
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{name}={value!r} must be of type {kind.__name__}")
    if kind in _LARGEST and not abs(value) < (rule.limit or _LARGEST[kind]):  # true of NaN, too
        words = "a finite number, as float32 has them" if kind is float else "a smaller number"
        raise ConfigError(f"{name}={value!r} must be {words}{', ' * bool(rule.words)}{rule.words}")
    if not rule.holds(value):
        close = difflib.get_close_matches(str(value), rule.choices, 1)
        raise ConfigError(f"{name}={value!r} must be {rule.words}", {name: close[0]} if close else {})
