"""The command line: verbs, flags, configuration, and errors as one line."""

import contextlib
import difflib
import itertools
import os
import re
import runpy
import time
from pathlib import Path

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

from maml_jax import config as config_lib
from maml_jax import data, evaluate, experiment, train
from maml_jax.checkpoint import Checkpoints
from maml_jax.data import sinusoid
from maml_jax.data.store import ClassStore
from maml_jax.data.stream import Images, place
from maml_jax.errors import ConfigError, UserError
from maml_jax.files import write_whole
from maml_jax.progress import duration, say, silence

USAGE = """\
usage: python launch.py [VERB] [--config FILE] [--workdir DIR] [--config.FIELD=VALUE ...]

  train      meta-train, then evaluate on the test split (the default). Run again on the same work directory, it goes on
             where it was.
  evaluate   evaluate the run in --workdir, under the settings it was trained with unless told otherwise
  prepare    build the data set's store, verify it and say what is in it; with --check, verify the one that is there
  compare    train and evaluate all methods, each with its configuration beside --config, and print one table

  --config FILE           a file of configs/ or one of yours (default: configs/glyphs_5w1s.py, which needs no data)
  --workdir DIR           where checkpoints, metrics and results go (default: runs/NAME of the configuration)
  --config.FIELD=VALUE    sets one field, such as --config.inner.steps=10

examples:
  python launch.py
  python launch.py --config configs/omniglot_5w1s.py --config.data.dir=datasets/omniglot --workdir runs/omniglot
  python launch.py evaluate --workdir runs/omniglot --config.eval.tasks=6000
  python launch.py evaluate --workdir runs/omniglot --config.model.norm=metabn
  python launch.py compare --config configs/omniglot_5w1s.py --workdir runs/compare --config.data.dir=datasets/omniglot

fields, with their defaults (a configuration may override them):
"""

_VERBS = ("train", "evaluate", "prepare", "compare")
_DEFAULT = "glyphs_5w1s.py"


def main(arguments: list[str], configs: Path) -> int:
    """Runs the command line.

    Args:
      arguments: what follows the program's name.
      configs: the folder of the project's configurations.

    Returns:
      The exit status: 0, 2 for a mistake of the user's, 130 if stopped by Ctrl-C or SIGTERM.
    """
    if {"-h", "--help", "help"} & set(arguments):
        print(USAGE + _describe_fields(configs / "default.py"))
        return 0
    try:
        verb, config, workdir = _parse([a for a in arguments if a != "--check"], configs)
        if verb == "prepare":
            return _prepare(config, check="--check" in arguments)
        if "--check" in arguments:
            raise ConfigError("--check goes with prepare: python launch.py prepare --check")
        if verb == "compare":
            return _compare(arguments, configs, workdir)
        return _run(verb, config, workdir)
    except UserError as error:
        # A file's name, or a line of a hostile list, may hold line breaks and commands to the terminal.
        say("error: " + "".join(c if c.isprintable() else "?" for c in str(error)))
        return 2
    except KeyboardInterrupt:
        say("interrupted")
        return 130


def _describe_fields(default: Path) -> str:
    fields = re.findall(r"^    c\.(\w[\w.]*) = (.+?)  # (.+)$", default.read_text(), re.MULTILINE)
    shown = []
    for name, value, comment in fields:
        same = re.fullmatch(r'c\.(\w+)\.get_oneway_ref\("(\w+)"\)', value)
        if not value.startswith("ml_collections"):
            shown.append(f"  {name:24} {f'as {same[1]}.{same[2]}' if same else value:16} {comment}")
    return "\n".join(shown)


def _parse(arguments: list[str], configs: Path) -> tuple[str, ml_collections.ConfigDict, Path]:
    """The verb, the checked configuration and the work directory that the arguments ask for."""
    argv = ["launch.py", *arguments]
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    try:
        before = values(argv, known_only=True)
        workdir = Path(values.workdir) if values.workdir else None
        named = any(re.match(r"--?config(=|$)", a) for a in before)
        if workdir and "evaluate" in before and not named:
            stored = config_lib.load(_existing(workdir) / "config.json", _default(configs))
            config_flags.DEFINE_config_dict("config", stored, flag_values=values, sys_argv=argv)
        else:
            default = str(configs / _DEFAULT)
            config_flags.DEFINE_config_file("config", default, flag_values=values, sys_argv=argv)
        values.unparse_flags()
        verbs = values(argv)[1:]
        config = values.config
        config.items()  # a file that could not be loaded speaks up at the first use
    except (flags.Error, AttributeError, TypeError, ValueError, KeyError, OSError, SyntaxError) as error:
        if isinstance(error, UserError):
            raise
        raise ConfigError(_explain(error, arguments, _default(configs))) from error
    if len(verbs) > 1 or not set(verbs) <= set(_VERBS):
        raise ConfigError(f"cannot make sense of {' '.join(verbs)!r}; the verbs are {', '.join(_VERBS)}; see --help")
    config_lib.check(config)
    if workdir is None:
        workdir = Path("runs") / Path(config_flags.get_config_filename(values["config"])).stem
    return (verbs or ["train"])[0], config, workdir


def _existing(workdir: Path) -> Path:
    if not (workdir / "config.json").exists():
        raise ConfigError(
            f"--workdir {workdir} holds no run (no config.json); train first, or name the folder of a run"
        )
    return workdir


def _default(configs: Path) -> ml_collections.ConfigDict:
    """What `default.py` says: the fields there are."""
    return runpy.run_path(str(configs / "default.py"))["get_config"]()


def _explain(error: Exception, arguments: list[str], default: ml_collections.ConfigDict) -> str:
    """One line for an error that parsing the flags ended with."""
    fields = config_lib.flatten(default)
    for argument in arguments:
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if match and match[1] not in fields:
            close = difflib.get_close_matches(match[1], fields, 1)
            hint = f"; did you mean {close[0]};" if close else ""
            return f"there is no field {match[1]!r}{hint or ';'} see --help for all of them"
    reason = " ".join(str(error).split()).removeprefix("Configuration is not available because of an earlier failure ")
    wrong = re.search(r"flag --config\.([\w.]+)=", reason)
    if wrong and wrong[1] in fields:
        kind = type(fields[wrong[1]]).__name__
        return f"{reason} ({wrong[1]} takes a value of type {kind}, such as {fields[wrong[1]]!r})"
    return reason


def _run(verb: str, config: ml_collections.ConfigDict, workdir: Path) -> int:
    stored = workdir / "config.json"
    if stored.exists() and verb == "train":
        config_lib.check_same_run(config, config_lib.load(stored, config.copy_and_resolve_references()), workdir)
    _start_jax(config.parallel)
    if config.model.precision == "float32":
        jax.config.update("jax_default_matmul_precision", "float32")
    experiment.check_devices(config)
    stores = data.open_stores(experiment.stored_data(config))
    experiment.check_data(config, stores, training=verb == "train")
    jax.config.update("jax_compilation_cache_dir", str(data.default_cache_dir() / "xla"))
    say(
        f"jax {jax.__version__} on {len(jax.devices())} {jax.devices()[0].device_kind} device(s), "
        f"work directory {workdir}"
    )
    if verb == "train":
        workdir.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            write_whole(stored, lambda file: file.write(config_lib.to_json(config).encode()))
        splits = ["train", "val"] if config.train.validate_every else ["train"]
        try:
            train.train(config, _placed(config, {split: stores[split] for split in splits}), workdir)
        except train.Interrupted as interrupted:
            say(str(interrupted))
            return 130
    else:
        _existing(workdir)
    split = config.eval.split
    if config.data.name == sinusoid.NAME:
        from maml_jax import regression  # draws, which takes a second to load

        print(regression.evaluate(config, _placed(config, {split: stores[split]})[split], workdir))
        return 0
    _evaluate(config, _placed(config, {split: stores[split]})[split], workdir)
    return 0


def _compare(arguments: list[str], configs: Path, workdir: Path) -> int:
    from maml_jax import compare

    settings = [a for a in arguments if re.match(r"--?(no)?config\.", a)]

    def launch(verb, config, folder, *more):
        return main([verb, "--config", str(config), "--workdir", str(folder), *settings, *more], configs)

    named = [re.sub(r"--?config=", "", a) for a in arguments if re.match(r"--?config=", a)]
    following = [b for a, b in itertools.pairwise(arguments) if re.fullmatch(r"--?config", a)]
    return compare.compare(Path((named + following or [str(configs / _DEFAULT)])[0]), workdir, launch)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_jax(parallel: ml_collections.ConfigDict) -> None:
    """Sets up the devices of this process, and its place among several.

    A CPU is made several devices, which take tasks side by side: on small tensors, XLA alone leaves cores idle.
    """
    with contextlib.suppress(RuntimeError):  # JAX has started, as within a program of the user's own
        jax.config.update("jax_num_cpu_devices", parallel.cpu_devices or _cores())
    if parallel.coordinator == "auto":
        jax.distributed.initialize()
    elif parallel.coordinator:
        jax.distributed.initialize(parallel.coordinator, parallel.processes, parallel.process)
    if jax.process_index() > 0:
        silence()


def _placed(config: ml_collections.ConfigDict, stores: dict[str, ClassStore]) -> dict[str, Images]:
    images = place(stores, config.data.placement, config.data.device_share)
    if images == stores:
        size = sum(store.nbytes for store in stores.values())
        say(f"the {' and '.join(stores)} images ({size / 2**30:.2f} GiB) stay on the host and are streamed")
    return images


def _evaluate(config: ml_collections.ConfigDict, images: Images, workdir: Path) -> None:
    e = config.eval
    trained = config_lib.load(workdir / "config.json", config.copy_and_resolve_references())
    like = config.copy_and_resolve_references()
    like.model.norm = trained.model.norm
    shape = experiment.image_shape(config, images)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        state = checkpoints.restore(e.checkpoint, train.fresh_state(like, shape))
    if like.model.norm != config.model.norm:
        state = train.renormalized(state, train.fresh_state(config, shape))
    began = last = time.monotonic()

    def progress(done):
        nonlocal last
        now = time.monotonic()
        if now - last > 10:
            last = now
            say(f"evaluated {done} of {e.tasks} tasks, {duration((now - began) / done * (e.tasks - done))} left")

    result = evaluate.Evaluator(config, images, e.split)(state.params, state.stats, e.tasks, progress)
    if jax.process_index() > 0:
        return
    evaluate.write(workdir, config, result, int(state.step))
    print(
        f"{e.split} accuracy {result.accuracy:.2%} ± {result.ci95:.2%} over {e.tasks} tasks, "
        f"{e.way}-way {e.shot}-shot, {e.query} queries per class, {e.steps} inner steps, "
        f"meta-step {int(state.step)} ({e.checkpoint})"
    )


def _prepare(config: ml_collections.ConfigDict, check: bool) -> int:
    report = data.prepare(experiment.stored_data(config), check=check)
    print(f"{report['name']}: verified {report['path']}\n{report['terms']}")
    height, width, channels = report["image_shape"]
    for split, facts in report["splits"].items():
        mean, std = (", ".join(f"{value:.4f}" for value in facts[name]) for name in ("mean", "std"))
        print(
            f"  {split:5} {facts['classes']:5} classes {facts['images']:7} images {facts['bytes'] / 2**20:8.1f} MiB  "
            f"mean {mean}  std {std}"
        )
    print(f"  images of {height} x {width} pixels, {channels} channel{'s' * (channels > 1)}; means of pixels in [0, 1]")
    for split, facts in report["splits"].items():
        if facts["published"] not in (None, facts["classes"]):
            say(
                f"note: the published {split} split of {report['name']} has {facts['published']} classes, this one "
                f"{facts['classes']}: results on it are not comparable"
            )
    return 0
