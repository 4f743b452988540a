"""What the command line's verbs do, as functions of a checked configuration."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax

from maml_jax import config as config_lib
from maml_jax import data, report, results
from maml_jax import train as training
from maml_jax.checkpoint import Checkpoints
from maml_jax.config import Config
from maml_jax.data.account import in_words
from maml_jax.data.watch import Watch
from maml_jax.errors import ConfigError
from maml_jax.evaluate import Evaluation, Evaluator
from maml_jax.experiment import Experiment, stored_data
from maml_jax.experiment.pretraining import pretraining
from maml_jax.files import make_folder, write_whole
from maml_jax.lock import only_one
from maml_jax.meta.step import MetaState
from maml_jax.models.start import begin_from, take
from maml_jax.models.tested import to_test
from maml_jax.parallel import failures_explained
from maml_jax.progress import say
from maml_jax.startup import open_experiment, start_jax


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
    experiment = open_experiment(config, workdir)
    make_folder(workdir)
    with _to_itself(workdir):
        if jax.process_index() == 0:
            write_whole(stored, lambda file: file.write(config_lib.to_json(config).encode()))
        training.train(experiment, workdir, _begun(config, experiment, workdir))
    with Checkpoints(workdir / "checkpoints") as checkpoints:  # with a fresh optimiser's state
        learned = checkpoints.restore_model(experiment.testing.checkpoint, experiment.fresh_state())
    evaluation = _evaluate(experiment, learned, workdir)
    if jax.process_index() == 0:
        try:
            say(f"report: {report.write(workdir, experiment, learned, config_lib.flatten(config))}")
        except Exception as error:  # whatever it is: what was trained and evaluated is there
            say(f"no report was written ({type(error).__name__}: {error}); maml-jax report --workdir {workdir}")
    return evaluation


def remake_report(config: Config, workdir: Path) -> None:
    """Writes the report of a run anew, from its metrics, its evaluations and its checkpoint.

    Raises:
      UserError: there is no run, or it does not fit the configuration.
    """
    run = to_test(config, workdir, None)
    if jax.process_index() == 0:
        print(report.write(workdir, run.experiment, run.state, config_lib.flatten(run.trained)))


def _to_itself(folder: Path) -> contextlib.AbstractContextManager:
    """Keeps other runs out of a folder; of the processes of one run, the first sees to that."""
    return only_one(folder) if jax.process_index() == 0 else contextlib.nullcontext()


def _begun(config: Config, experiment: Experiment, workdir: Path) -> MetaState | None:
    """Where a training starts that is to start from another's end; None if it is not, or has begun."""
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        begun = checkpoints.latest_step("latest") is not None
    if not begun and config.train.start:
        return begin_from(config.train.start, experiment.fresh_state())
    return _pretrained(config, experiment, workdir / "pretrain") if not begun and config.train.pretrain else None


def _pretrained(config: Config, experiment: Experiment, folder: Path) -> MetaState:
    """Where meta-training starts after supervised training of the encoder, which is done first, or gone on with."""
    make_folder(folder)
    say(f"supervised training of the encoder for {config.train.pretrain} steps, in {folder}")
    supervised = pretraining(config, experiment, experiment.stores)
    training.train(supervised, folder)
    kind = "best" if config.train.validate_every else "latest"
    with Checkpoints(folder / "checkpoints") as checkpoints:
        found = checkpoints.restore_model(kind, supervised.fresh_state())
    return take(found.params, found.stats, experiment.fresh_state(), f"{folder}, step {int(found.step)}", "encoder/")


def evaluate(config: Config, workdir: Path, weights: str | None = None, own_code: bool = False) -> Evaluation | None:
    """Evaluates a trained model under `config`, writes and prints what came of it.

    Args:
      config: what it is tested under.
      workdir: where results go; of the run, if no other model is given.
      weights: the name or the folder of a model, see `models.tested.settings`.
      own_code: see `models.tested.to_test`.

    Returns:
      The outcome; None in all processes but the first.

    Raises:
      UserError: there is no such model, or it does not fit the configuration.
    """
    run = to_test(config, workdir, weights, own_code)
    make_folder(workdir)
    return _evaluate(run.experiment, run.state, workdir, run.origin)


def audit(
    config: Config, workdir: Path, quick: bool = False, weights: str | None = None, own_code: bool = False
) -> bool:
    """Audits a trained model, and writes `audit/report.md` into a work directory.

    Args:
      config: what it is tested under.
      workdir: where the audit goes; of the run, if no other model is given.
      quick: take a tenth of the tasks.
      weights: as of `evaluate`.
      own_code: as of `evaluate`.

    Returns:
      Whether it passed: no prediction that should not depend on other queries does.

    Raises:
      UserError: there is no such model, or it does not fit the configuration.
    """
    from maml_jax import audit as auditing  # draws pictures, which takes long to load
    from maml_jax.audit.subject import Subject, protocol_of

    if config.parallel.processes > 1:
        raise ConfigError("an audit is made by one process", {"parallel.processes": 1})
    run = to_test(config, workdir, weights, own_code)
    subject = Subject.of(run.config, run.trained, run.experiment, run.state, quick)
    protocol = protocol_of(run.config, run.experiment, run.state, subject)
    folder = workdir / auditing.FOLDER
    make_folder(folder)
    with only_one(folder), failures_explained():
        measures = auditing.audit(subject, protocol, run.experiment.stores, folder)
    print(f"{measures['headline']['sentence']}\n{folder / 'report.md'}")
    passed = measures["leak_certificate"].get("passed", True)
    if not passed:
        say("the audit failed: under a normalisation that is said to be inductive, predictions depend on other queries")
    return passed


def _evaluate(
    experiment: Experiment, state: MetaState, workdir: Path, origin: Mapping[str, Any] = MappingProxyType({})
) -> Evaluation | None:
    t = experiment.testing
    with Watch(experiment.stores) as watch, failures_explained():
        result = Evaluator(experiment, t.split)(state.params, state.stats, t.tasks, show=True)
        watch.check()
    if jax.process_index() > 0:
        return None
    results.write(workdir, experiment, result, int(state.step), origin)
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
