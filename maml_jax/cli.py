"""The command line: verbs, flags, configuration, and errors as one line."""

import importlib
import importlib.metadata
import os
import platform
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

import maml_jax
from maml_jax import config as config_lib
from maml_jax.config import fields
from maml_jax.errors import ConfigError, ProcessesApart, UserError
from maml_jax.progress import say

USAGE = """\
usage: maml-jax [VERB] [--config NAME] [--workdir DIR] [--config.FIELD=VALUE ...]
       python launch.py is the same, in a checkout

  train      meta-train, then evaluate on the test split (the default). Run again on the same work directory, it goes on
             where it was.
  evaluate   evaluate the run in --workdir, or --weights, under the settings of its training unless told otherwise
  prepare    build the data set's store, verify it and say what is in it; with --check, verify the one that is there
  compare    train and evaluate all methods, each with its configuration beside --config, and print one table
  reproduce  train what a published figure belongs to and print ours beside it; see maml-jax reproduce --help
  audit      write a report on how far the accuracy of the run in --workdir, or of --weights, can be trusted: with
             fewer queries, each by itself, in other orders of the labels, ...; run again, it goes on where it was;
             --quick: on fewer tasks
  report     draw the report of the run in --workdir anew, as after training
  replay     take the meta-step again that training stopped at for a number that is infinite or none
  export     write the model of a run as a folder of plain files; see maml-jax export --help
  predict    tell the classes of your own pictures by a few of each; see maml-jax predict --help

  --config NAME           a configuration of configs/, or a file of yours (default: glyphs_5w1s, which needs no data)
  --workdir DIR           where checkpoints, metrics and results go (default: runs/NAME of the configuration)
  --weights NAME_OR_DIR   what to evaluate or audit, in place of the run in --workdir: a model that comes with this
                          program, such as glyphs_5w1s, or a folder of maml-jax export; results go to
                          runs/weights/NAME unless --workdir says where; --own-code: import code of your own
  --config.FIELD=VALUE    sets one field, such as --config.inner.steps=10
  --version               versions of this program, of JAX and of Python

examples:
  maml-jax
  maml-jax --config omniglot_5w1s --config.data.dir=datasets/omniglot --workdir runs/omniglot
  maml-jax evaluate --workdir runs/omniglot --config.eval.tasks=6000
  maml-jax evaluate --workdir runs/omniglot --config.model.norm=metabn
  maml-jax audit --weights glyphs_5w1s
  maml-jax compare --config omniglot_5w1s --workdir runs/compare --config.data.dir=datasets/omniglot

fields, with their defaults (a configuration may override them):
"""

_VERBS = ("train", "evaluate", "prepare", "compare", "audit", "report")
_TESTING = ("evaluate", "audit")  # which take weights
_OF_A_RUN = (*_TESTING, "report")  # which take the configuration that it was trained under
_WITH_ARGUMENTS_OF_THEIR_OWN = {
    "export": "maml_jax.models.weights",
    "predict": "maml_jax.models.classify",
    "reproduce": "maml_jax.reproduce",
    "replay": "maml_jax.nonfinite",
}
_DEFAULT = "glyphs_5w1s"


def console() -> int:
    """Runs the command line of this process; the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: nothing half-built stays behind
    try:
        try:
            return main(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # what reads the output has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at the end would say so again
        return 128 + signal.SIGPIPE


def main(arguments: Sequence[str]) -> int:
    """Runs the command line.

    Args:
      arguments: what follows the program's name.

    Returns:
      The exit status: 0, 1 for an audit that failed, 2 for a mistake of the user's, 130 if stopped by Ctrl-C or
      SIGTERM. Of several processes that cannot go on together, this one ends here, with 2.
    """
    try:
        return _run(list(arguments))
    except UserError as error:
        say(_in_one_line(error), by_all=True)
        if isinstance(error, ProcessesApart):
            from maml_jax.startup import end_at_once

            end_at_once(2)
        return 2
    except KeyboardInterrupt as stopped:
        say(str(stopped) or "interrupted")
        return 130


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in _WITH_ARGUMENTS_OF_THEIR_OWN:
        return importlib.import_module(_WITH_ARGUMENTS_OF_THEIR_OWN[arguments[0]]).main(arguments[1:])
    if {"-h", "--help", "help"} & set(arguments):
        from maml_jax.config.describe import help_text

        print(USAGE + help_text())
        return 0
    if "--version" in arguments:
        print(f"maml-jax {maml_jax.__version__}, jax {jax.__version__}, python {platform.python_version()}")
        return 0
    request = parse(arguments)
    from maml_jax import commands  # with all that it needs, which takes longer than to find a mistake

    if request.verb == "prepare":
        commands.prepare(request.config, request.check)
    elif request.verb == "compare":
        _compare(request)
    elif request.verb == "audit":
        passed = commands.audit(request.config, request.workdir, request.quick, request.weights, request.own_code)
        return 0 if passed else 1
    elif request.verb == "report":
        commands.remake_report(request.config, request.workdir)
    elif request.verb == "evaluate":
        commands.evaluate(request.config, request.workdir, request.weights, request.own_code)
    else:
        commands.train(request.config, request.workdir)
    return 0


def _in_one_line(error: UserError) -> str:
    """An error with its way out as flags.

    A file's name, or a line of a hostile list, may hold line breaks and commands to the terminal.
    """
    ways = " ".join(as_flag(field, value) for field, value in error.settings.items())
    line = f"error: {error.facts}; use {ways}" if ways else f"error: {error.facts}"
    return "".join(c if c.isprintable() else "?" for c in line)


def as_flag(field: str, value: Any) -> str:
    """The argument that sets a field, as a shell takes it."""
    return f"--config.{field}={shlex.quote(str(value))}"


class Request(NamedTuple):
    """What the arguments ask for.

    Attributes:
      verb: one of `train`, `evaluate`, `prepare`, `compare`, `audit` and `report`.
      config: the configuration, checked.
      workdir: the work directory.
      check: whether to verify a store that is there.
      quick: whether to audit on a tenth of the tasks.
      weights: the model to test, in place of that of the work directory; None for the latter.
      own_code: whether to import code of the user's own that they need.
      file: of the configuration; None if it is that of the work directory.
      rest: the arguments that set fields, among others.
    """

    verb: str
    config: ml_collections.ConfigDict
    workdir: Path
    check: bool
    quick: bool
    weights: str | None
    own_code: bool
    file: Path | None
    rest: list[str]


def parse(arguments: list[str]) -> Request:
    """What the arguments ask for.

    Raises:
      ConfigError: they make no sense, or the configuration does not.
    """
    try:
        return _parse(arguments)
    except (flags.Error, AttributeError, TypeError, ValueError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise ConfigError(_explain(error, arguments)) from error


def _parse(arguments: list[str]) -> Request:
    values = _flags()
    flags.DEFINE_string("config", None, "", flag_values=values)
    rest = values(["maml-jax", *arguments], known_only=True)  # overrides stay, and verbs
    workdir = Path(values.workdir) if values.workdir else None
    file, config = _configuration(values, workdir, trained=bool(set(_OF_A_RUN) & set(rest)))
    config, verbs = _overridden(config, rest)
    if len(verbs) > 1 or not set(verbs) <= set(_VERBS):
        raise ConfigError(
            f"cannot make sense of {' '.join(verbs)!r}; the verbs are {', '.join(_VERBS)}, "
            f"and {', '.join(_WITH_ARGUMENTS_OF_THEIR_OWN)}, which come first; see --help"
        )
    verb = (verbs or ["train"])[0]
    if values.check and verb != "prepare":
        raise ConfigError("--check goes with prepare: maml-jax prepare --check")
    if values.quick and verb != "audit":
        raise ConfigError("--quick goes with audit: maml-jax audit --workdir DIR --quick")
    if values.weights and verb not in _TESTING:
        raise ConfigError(
            f"--weights goes with {', '.join(_TESTING)} and predict; to train on from there",
            {"train.start": values.weights},
        )
    config_lib.check(config)
    own_code = values["own-code"].value
    if workdir is None:
        workdir = _results_of(values.weights) if values.weights else Path("runs") / file.stem
    return Request(verb, config, workdir, values.check, values.quick, values.weights, own_code, file, rest)


def _configuration(
    values: flags.FlagValues, workdir: Path | None, trained: bool
) -> tuple[Path | None, ml_collections.ConfigDict]:
    """The configuration before fields are set, and its file; None if it is that of a trained model."""
    if trained and values.config is None and values.weights:
        from maml_jax.models.tested import settings  # with all that it needs, which takes long

        return None, settings(values.weights)
    if trained and values.config is None and workdir:
        if (workdir / "model.safetensors").exists():
            raise ConfigError(f"--workdir {workdir} holds exported weights, and no run; use --weights {workdir}")
        return None, config_lib.load(config_lib.existing(workdir) / "config.json")
    file, given = config_lib.find(values.config or _DEFAULT)
    return file, config_lib.from_file(file, *given)


def _results_of(weights: str) -> Path:
    from maml_jax.models.tested import results_folder

    return results_folder(weights)


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_string("weights", None, "", flag_values=values)
    flags.DEFINE_boolean("own-code", False, "", flag_values=values)
    flags.DEFINE_boolean("check", False, "", flag_values=values)
    flags.DEFINE_boolean("quick", False, "", flag_values=values)
    return values


def _overridden(config: ml_collections.ConfigDict, arguments: list[str]) -> tuple[ml_collections.ConfigDict, list[str]]:
    """A configuration with the fields set that the arguments set, and what else there is among them."""
    values = _flags()  # to suggest these if a flag is misspelt
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
    others = values(arguments)[1:]
    return values.config, others


def _explain(error: Exception, arguments: list[str]) -> str:
    """One line for an error that parsing the flags ended with."""
    for argument in arguments:
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if match and match[1] not in fields.BY_NAME and match[1] not in fields.SECTIONS:
            return config_lib.unknown(match[1])
    reason = " ".join(str(error).split())
    wrong = re.search(r"flag --config\.([\w.]+)=", reason)
    if wrong and wrong[1] in fields.BY_NAME:
        usual = fields.default_of(wrong[1])
        return f"{reason} ({wrong[1]} takes a value of type {type(usual).__name__}, such as {usual!r})"
    return reason


def _compare(request: Request) -> None:
    """Gives every method the fields that were set, and compares them."""
    from maml_jax import compare

    files = compare.files(request.file)
    configs = {suffix: _overridden(config_lib.from_file(file), request.rest)[0] for suffix, file in files.items()}
    for config in configs.values():
        config_lib.check(config)
    compare.compare(configs, request.workdir)
