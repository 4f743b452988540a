"""Configurations: made from the table of fields, checked, and kept as JSON beside a run."""

import difflib
import json
import runpy
import traceback
from pathlib import Path
from typing import Any

import ml_collections

from maml_jax.bounded import read_bytes
from maml_jax.config.checks import check_together
from maml_jax.config.fields import BY_NAME, FIELDS, check_value
from maml_jax.config.rules import Same
from maml_jax.errors import ConfigError, UserError

Config = ml_collections.ConfigDict


def default() -> ml_collections.ConfigDict:
    """Every field with its default, locked: another name or type raises an error."""
    config = ml_collections.ConfigDict()
    for field in FIELDS:
        section, _, name = field.name.rpartition(".")
        if section and section not in config:
            config[section] = ml_collections.ConfigDict()
        value = field.default
        if isinstance(value, Same):
            other, _, same = value.field.rpartition(".")
            value = config[other].get_oneway_ref(same)
        (config[section] if section else config)[name] = value
    return config.lock()


def presets() -> Path:
    """The folder of the configurations that come with this library: in the package, or `configs/` in a checkout."""
    packaged = Path(__file__).parents[1] / "presets"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "configs"


def preset_names() -> list[str]:
    """The names of the configurations that come with this library."""
    return sorted(path.stem for path in presets().glob("*.py") if path.stem != "__init__")


def preset(name: str) -> ml_collections.ConfigDict:
    """A configuration that comes with this library, such as 'mini_5w1s', to change further; 'default' is the defaults.

    Raises:
      ConfigError: there is none of that name.
    """
    if name not in preset_names():
        close = difflib.get_close_matches(name, preset_names(), 3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(preset_names())}"
        raise ConfigError(f"there is no configuration {name!r}; {hint}")
    return from_file(presets() / f"{name}.py")


def find(text: str) -> tuple[Path, list[str]]:
    """The file that `--config` means, and what its `get_config` is given.

    Args:
      text: the name of a preset, such as 'mini_5w1s'; or a path, such as 'configs/mini_5w1s.py' (the preset, wherever
        one stands) or 'mine.py'. What follows a colon is given to the file's `get_config`.

    Raises:
      ConfigError: there is no such preset or file.
    """
    name, colon, argument = text.partition(":")
    path = Path(name)
    if not path.is_file():
        named = path.suffix == ".py" and path.parent == Path("configs")
        if path.stem in preset_names() and (named or name == path.stem):
            path = presets() / f"{path.stem}.py"
        elif path.suffix == ".py" or len(path.parts) > 1:
            close = difflib.get_close_matches(path.stem, preset_names(), 1)
            hint = f"; did you mean --config {close[0]}?" if close else ""
            raise ConfigError(f"there is no file {path}{hint}")
        else:
            preset(name)  # raises an error that says which there are
    return path, [argument] if colon else []


def from_file(path: Path, *arguments: str) -> ml_collections.ConfigDict:
    """What the `get_config` of a Python file returns, locked.

    Raises:
      ConfigError: it cannot be read, fails, or returns something else.
    """
    try:
        config = runpy.run_path(str(path))["get_config"](*arguments)
    except UserError:
        raise
    except KeyError as error:
        if error.args != ("get_config",):
            raise _failed(path, error) from error
        raise ConfigError(f"{path} has no function get_config") from error
    except Exception as error:  # whatever the user's file raises
        raise _failed(path, error) from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"get_config of {path} returns {type(config).__name__}, not a ConfigDict")
    return config.lock()


def _failed(path: Path, error: Exception) -> ConfigError:
    """That a file failed, and in which of its lines."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f"{path}, line {lines[-1]}" if lines else f"{path}"
    if isinstance(error, OSError) and not lines:
        return ConfigError(f"cannot read the configuration {path}: {error.strerror or error}")
    hint = ""
    if isinstance(error, ModuleNotFoundError) and error.name == "configs":
        hint = '; write `from maml_jax.config import preset` and `preset("default")`, which work everywhere'
    reason = " ".join(str(error).split())
    return ConfigError(f"{where}: {type(error).__name__}: {reason}{hint}")


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses a configuration that cannot work, before anything is read or compiled.

    Raises:
      ConfigError: naming the field, its value and what it must be.
    """
    fields = flatten(config)
    _check_names(fields)
    for name in BY_NAME:  # in the order of the table
        check_value(name, fields[name])
    check_together(config)


def _check_names(fields: dict[str, Any]) -> None:
    for name in fields.keys() - BY_NAME.keys():
        raise ConfigError(unknown(name))
    for name in BY_NAME.keys() - fields.keys():
        raise ConfigError(f'the configuration lacks {name}; start from maml_jax.config.preset("default")')


def unknown(name: str) -> str:
    """One line about a field that does not exist."""
    close = difflib.get_close_matches(name, BY_NAME, 1)
    return f"there is no field {name!r}{f'; did you mean {close[0]}?' if close else ''} See --help for all of them"


def flatten(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """All fields by their dotted names, references resolved."""
    fields = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            fields |= {f"{name}.{field}": v for field, v in flatten(value).items()}
        else:
            fields[name] = value
    return fields


def to_json(config: ml_collections.ConfigDict) -> str:
    """A configuration as JSON, one object per section."""
    return json.dumps(config.copy_and_resolve_references().to_dict(), indent=2) + "\n"


def load(path: Path) -> ml_collections.ConfigDict:
    """Reads a file of `to_json`; see `from_json`."""
    try:
        text = read_bytes(path).decode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    return from_json(text, path)


def from_json(text: str, path: Path) -> ml_collections.ConfigDict:
    """Reads what `to_json` wrote to a file; fields that came into being since have their defaults.

    Raises:
      ConfigError: it is damaged, or holds a field that does not exist.
    """
    try:
        stored = _flat(json.loads(text))
    except (ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    config = default()
    for name, value in stored.items():
        if name not in BY_NAME:
            raise ConfigError(f"{path} has a field {name!r}, which this version does not know; a later one wrote it")
        try:
            check_value(name, value)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.facts}") from error
    config.update_from_flattened_dict(stored)
    return config


def existing(workdir: Path) -> Path:
    """The work directory, if it holds a run.

    Raises:
      ConfigError: it does not.
    """
    if not (workdir / "config.json").exists():
        raise ConfigError(
            f"--workdir {workdir} holds no run (no config.json); train first, or name the folder of a run"
        )
    return workdir


def _flat(stored: dict, prefix: str = "") -> dict[str, Any]:
    fields = {}
    for name, value in stored.items():
        if isinstance(value, dict):
            fields |= _flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = tuple(value) if isinstance(value, list) else value
    return fields


def changes(config: ml_collections.ConfigDict, stored: ml_collections.ConfigDict) -> dict[str, str]:
    """What differs from a stored configuration: 'old -> new' by field."""
    new, old = flatten(config), flatten(stored)
    return {name: f"{old[name]!r} -> {new[name]!r}" for name in BY_NAME if new[name] != old[name]}


def check_same_run(config: ml_collections.ConfigDict, stored: ml_collections.ConfigDict, workdir: Path) -> None:
    """Refuses to continue a run under settings that would make it another one.

    Raises:
      ConfigError: naming the fields that differ and the way out.
    """
    # A cosine that is under way ends where it was to end.
    tied = {"train.steps"} if config.outer.schedule == stored.outer.schedule == "cosine" else set()
    found = changes(config, stored)
    refused = [name for name in found if name in tied or not BY_NAME[name].free]
    if refused:
        old = flatten(stored)
        shown = ", ".join(f"{name} {found[name]}" for name in refused)
        raise ConfigError(
            f"{workdir} holds a run with other settings ({shown}); a new run needs another --workdir, and to "
            "go on with this one",
            {name: old[name] for name in refused},
        )
