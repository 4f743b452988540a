"""What the command line's verbs do, as functions of a checked configuration."""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

import jax

from maml_jax import config as config_lib
from maml_jax import data, report, results
from maml_jax import train as training
from maml_jax.checkpoint import Checkpoints
from maml_jax.config import Config
from maml_jax.config.transfer import for_data
from maml_jax.data.account import in_words
from maml_jax.errors import ConfigError, DataError
from maml_jax.evaluate import Evaluation, Evaluator
from maml_jax.experiment import Experiment, stored_data
from maml_jax.files import write_whole
from maml_jax.meta.step import MetaState
from maml_jax.models.start import begin_from
from maml_jax.progress import say, silence


def train(config: Config, workdir: Path) -> Evaluation | None:
    """Meta-trains, or goes on where a run stopped, and evaluates it.

    Raises:
      UserError: something is wrong with the configuration, the data or the work directory.
      Interrupted: SIGINT or SIGTERM came; the steps taken are in the latest checkpoint.
    """
    stored = workdir / "config.json"
    if stored.exists():
        config_lib.check_same_run(config, config_lib.load(stored), workdir)
    start_jax(config.parallel)
    experiment = _start(config, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        write_whole(stored, lambda file: file.write(config_lib.to_json(config).encode()))
    training.train(experiment, workdir, _begun(config, experiment, workdir))
    return _evaluate(experiment, restore(experiment, workdir), workdir)


def _begun(config: Config, experiment: Experiment, workdir: Path) -> MetaState | None:
    """Where a training starts that is to start from another's end; None if it is not, or has begun."""
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        begun = checkpoints.latest_step("latest") is not None
    return None if begun or not config.train.start else begin_from(config.train.start, experiment.fresh_state())


def evaluate(config: Config, workdir: Path) -> Evaluation | None:
    """Evaluates the run in a work directory under `config`, writes and prints what came of it.

    Returns:
      The outcome; None in all processes but the first.

    Raises:
      UserError: there is no run, or it does not fit the configuration.
    """
    run = trained_run(config, workdir)
    return _evaluate(run.experiment, run.state, workdir)


def audit(config: Config, workdir: Path, quick: bool = False) -> bool:
    """Audits the run in a work directory, and writes `audit/report.md` there.

    Args:
      config: what it is tested under.
      workdir: of the run.
      quick: take a tenth of the tasks.

    Returns:
      Whether it passed: no prediction that should not depend on other queries does.

    Raises:
      UserError: there is no run, or it does not fit the configuration.
    """
    from maml_jax import audit as auditing  # draws pictures, which takes long to load
    from maml_jax.audit.subject import Subject, protocol_of

    if config.parallel.processes > 1:
        raise ConfigError("an audit is made by one process", {"parallel.processes": 1})
    run = trained_run(config, workdir)
    subject = Subject.of(*run, quick)
    protocol = protocol_of(run.config, run.experiment, run.state, subject)
    folder = workdir / auditing.FOLDER
    measures = auditing.audit(subject, protocol, run.experiment.stores, folder)
    print(f"{measures['headline']['sentence']}\n{folder / 'report.md'}")
    passed = measures["leak_certificate"].get("passed", True)
    if not passed:
        say("the audit failed: under a normalisation that is said to be inductive, predictions depend on other queries")
    return passed


class Run(NamedTuple):
    """A trained run, to be tested.

    Attributes:
      config: what it is tested under.
      trained: what it was trained under.
      experiment: of `config`.
      state: what was learned.
    """

    config: Config
    trained: Config
    experiment: Experiment
    state: MetaState


def trained_run(config: Config, workdir: Path) -> Run:
    """The run in a work directory, to be tested under `config`.

    Raises:
      UserError: there is no run, or it does not fit the configuration.
    """
    trained = config_lib.load(config_lib.existing(workdir) / "config.json")
    start_jax(config.parallel)
    if config.data.name != trained.data.name:
        with Checkpoints(workdir / "checkpoints") as checkpoints:
            arrays, _ = checkpoints.read(config.eval.checkpoint)
        parameters = {name.removeprefix("params.").replace(".", "/"): leaf for name, leaf in arrays.items()}
        config = for_data(config, trained, parameters)
    experiment = _start(config, workdir, trained)
    try:
        return Run(config, trained, experiment, restore(experiment, workdir))
    except DataError as error:
        raise _misfit(error, config, workdir) from error


def _start(config: Config, workdir: Path, trained: Config | None = None) -> Experiment:
    """Opens the data and builds the experiment: to train, unless it has been `trained`."""
    if config.model.precision == "float32":
        jax.config.update("jax_default_matmul_precision", "float32")
    stores = data.open_stores(stored_data(config))
    experiment = Experiment.of(config, stores, trained is None, trained)
    jax.config.update("jax_compilation_cache_dir", str(data.default_cache_dir() / "xla"))
    say(
        f"jax {jax.__version__} on {len(jax.devices())} {jax.devices()[0].device_kind} device(s), "
        f"work directory {workdir}"
    )
    say_what_surprises(experiment)
    return experiment


def say_what_surprises(experiment: Experiment) -> None:
    """Says what a user might not expect of the devices, or of JAX's own settings."""
    used, there, tasks = len(experiment.devices), len(jax.devices()), experiment.training.tasks
    if experiment.tasks is not None and used < there:
        say(f"{used} of the {there} devices take part in training, which share train.tasks={tasks} evenly")
    if jax.config.jax_enable_x64:
        say("JAX_ENABLE_X64 is set: images, parameters and results are float32 all the same")


def start_jax(parallel: Config) -> None:
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


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def restore(experiment: Experiment, workdir: Path) -> MetaState:
    """What a run has learned, from the checkpoint that `testing.checkpoint` names, with a fresh optimiser's state.

    Raises:
      DataError: there is no checkpoint, it cannot be read, or it is of another model.
    """
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.restore_model(experiment.testing.checkpoint, experiment.fresh_state())


def _misfit(error: DataError, config: Config, workdir: Path) -> DataError:
    """The error of a checkpoint that does not fit, with the settings of the model that differ from its training."""
    trained = config_lib.load(workdir / "config.json")
    old, new = config_lib.flatten(trained), config_lib.flatten(config)
    shaping = ("learn_rates", "rates_per_step", "precondition", "steps")
    sections = ("model.", "task.way", "data.image_size", *(f"inner.{name}" for name in shaping))
    changed = [field for field in new if field.startswith(sections) and new[field] != old[field]]
    if not changed:
        return error
    differences = ", ".join(f"{field} is {new[field]!r} and was {old[field]!r}" for field in changed)
    return DataError(f"{error.facts}; of the settings, {differences}", {field: old[field] for field in changed})


def _evaluate(experiment: Experiment, state: MetaState, workdir: Path) -> Evaluation | None:
    t = experiment.testing
    result = Evaluator(experiment, t.split)(state.params, state.stats, t.tasks, show=True)
    if jax.process_index() > 0:
        return None
    results.write(workdir, experiment, result, int(state.step))
    if report.is_curve(experiment):
        report.draw_curves(experiment, state, workdir / "report" / "curves.png")
    facts = t.facts
    print(
        f"{t.split} {result} over {t.tasks} tasks, {facts['way']}-way {facts['shot']}-shot, {facts['query']} queries "
        f"per class, {t.steps} inner steps, meta-step {int(state.step)} ({t.checkpoint})"
    )
    for row in result.by_step:
        named = (f"{name} {row[name]:.4f} ± {row[name + '_ci95']:.4f}" for name in ("loss", "accuracy") if name in row)
        print(f"  after {row['steps']:>2} steps  " + "  ".join(named))
    return result


def prepare(config: Config, check: bool) -> None:
    """Builds the data set's store, or with `check` takes the one that is there; verifies and describes it."""
    report = data.prepare(stored_data(config), check=check)
    print(f"{report['name']}: verified {report['path']}\n{report['terms']}")
    height, width, channels = report["image_shape"]
    for split, facts in report["splits"].items():
        mean, std = (", ".join(f"{value:.4f}" for value in facts[name]) for name in ("mean", "std"))
        print(
            f"  {split:5} {facts['classes']:5} classes {facts['images']:7} images {facts['bytes'] / 2**20:8.1f} MiB  "
            f"mean {mean}  std {std}"
        )
    print(f"  images of {height} x {width} pixels, {channels} channel{'s' * (channels > 1)}; means of pixels in [0, 1]")
    if report["split_rule"]:
        print(f"  the split is {report['split_rule']}")
    for line in in_words(report["left_out"]):
        print(f"  left out: {line}")
    for line in in_words(report["notes"]):
        print(f"  note: {line}")
    for split, facts in report["splits"].items():
        if facts["published"] not in (None, facts["classes"]):
            say(
                f"note: the published {split} split of {report['name']} has {facts['published']} classes, this one "
                f"{facts['classes']}: results on it are not comparable"
            )
