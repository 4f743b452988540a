"""What is audited: a trained model under each way to normalise it, and the tasks that all measures share."""

import dataclasses
import hashlib
import math
from typing import Any

import jax
import numpy as np

from maml_jax import config as config_lib
from maml_jax.config import Config
from maml_jax.data.stream import drawn_classes, example
from maml_jax.episode import Tasks
from maml_jax.errors import ConfigError, DataError
from maml_jax.experiment import Experiment
from maml_jax.experiment.method import build_tested
from maml_jax.experiment.tasks import build_tasks
from maml_jax.meta.method import Method
from maml_jax.meta.step import MetaState
from maml_jax.nn.norm import Normalization
from maml_jax.results import surroundings
from maml_jax.tree import PyTree

VERSION = 2
"""Raise it with any change to what is measured, so that no measure of an earlier version is taken for one of this."""

_QUERIES = 15  # per class, or as many as there are
_SIZES = (1, 2, 5, _QUERIES)
_LEAK_QUERIES = 10_000
_ORDERED = 100
_USUAL = 600


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many tasks the measures take.

    Attributes:
      rows: most measures, all the same tasks.
      many: the long run, of which `rows` are the first.
      leak: the leak certificate.
      ordered: label orders.
    """

    rows: int
    many: int
    leak: int
    ordered: int

    @classmethod
    def of(cls, tasks: int, queries: int, quick: bool) -> "Counts":
        """The counts for `eval.tasks` tasks of so many queries each; a tenth if it is to be quick."""
        share = (0.1 if quick else 1.0) * min(1.0, tasks / _USUAL)
        rows = max(2, round(tasks * (0.1 if quick else 1.0)))
        leak = max(1, math.ceil(_LEAK_QUERIES * share / queries))
        return cls(rows, 10 * rows, leak, min(rows, max(2, round(_ORDERED * share))))


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model under audit.

    Attributes:
      methods: by normalisation; the one that is asked about comes first.
      transductive: of each, whether queries are normalised together.
      params: meta-parameters.
      stats: the statistics that outlive an episode.
      fresh: both as they were before training.
      steps: inner steps.
      tasks: with `pool` queries per class.
      train_tasks: of the classes trained on; None if there are none.
      way: classes of a task.
      shot: support images per class.
      query: queries per class of the protocol.
      pool: queries per class there are.
      classified: whether tasks have classes.
      seed: of what is drawn beside the tasks.
      backend: 'shard_map' or 'pmap'.
      counts: of tasks.
    """

    methods: dict[str, Method]
    transductive: dict[str, bool]
    params: PyTree
    stats: PyTree
    fresh: tuple[PyTree, PyTree]
    steps: int
    tasks: Tasks
    train_tasks: Tasks | None
    way: int
    shot: int
    query: int
    pool: int
    classified: bool
    seed: int
    backend: str
    counts: Counts

    @property
    def own(self) -> str:
        """The normalisation that is asked about."""
        return next(iter(self.methods))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Queries per class that are measured, in order."""
        return tuple(sorted({*(q for q in _SIZES if q <= self.pool), self.query, self.pool}))

    def of_kind(self, transductive: bool) -> str | None:
        """The normalisation that is, or is not, transductive: the own one if it is of that kind; None if none is."""
        return next((norm for norm in self.methods if self.transductive[norm] == transductive), None)

    @property
    def labels(self) -> np.ndarray:
        """Of all queries of a task, `[way * pool]`."""
        return np.repeat(np.arange(self.way), self.pool)

    def classes(self, count: int) -> np.ndarray | None:
        """What labels stand for in tasks 0 .. count - 1, `[count, way]`."""
        return drawn_classes(self.tasks, count)

    @classmethod
    def of(
        cls,
        config: Config,
        trained: Config,
        experiment: Experiment,
        state: MetaState,
        quick: bool,
    ) -> "Subject":
        """The model of a run.

        Args:
          config: what it is to be tested under.
          trained: what it was trained under.
          experiment: of `config`.
          state: what was learned.
          quick: take a tenth of the tasks.
        """
        e, split = config.eval, config.eval.split
        classified = split in experiment.stores
        pool = _pool(experiment, split, e.shot, e.query) if classified else e.query
        fresh = experiment.tested.init(jax.random.key(config.seed), example(experiment.eval_tasks[split]))
        methods = _methods(config, experiment) if classified else {config.model.norm: experiment.tested}
        parse = lambda norm: Normalization.parse(norm, config.inner.steps)  # noqa: E731
        return cls(
            methods=methods,
            transductive={norm: parse(norm).transductive for norm in methods},
            params=state.params,
            stats=state.stats,
            fresh=fresh,
            steps=e.steps,
            tasks=_tasks(config, trained, experiment, split, pool),
            train_tasks=_train_tasks(config, trained, experiment, pool) if classified else None,
            way=e.way,
            shot=e.shot,
            query=e.query,
            pool=pool,
            classified=classified,
            seed=config.seed,
            backend=experiment.backend,
            counts=Counts.of(e.tasks, e.way * pool, quick),
        )


def _pool(experiment, split, shot, query):
    """Queries per class: as many as the classes have, up to what the audit wants; never fewer than the protocol's."""
    return max(query, min(_QUERIES, int(experiment.stores[split].counts.min()) - shot))


def _tasks(config, trained, experiment, split, query):
    changed = config.copy_and_resolve_references()
    changed.eval.split, changed.eval.query = split, query
    return build_tasks(changed, experiment.stores, False, trained)[1][split]


def _train_tasks(config, trained, experiment, pool):
    if config.eval.split == "train" or "train" not in experiment.stores or config.data.name != trained.data.name:
        return None
    try:
        query = min(pool, _pool(experiment, "train", config.eval.shot, config.eval.query))
        return _tasks(config, trained, experiment, "train", query)
    except (ConfigError, DataError):  # too few classes, or images
        return None


def _methods(config: Config, experiment: Experiment) -> dict[str, Method]:
    """The method under each normalisation that the model can be tested with."""
    own = config.model.norm
    others = ("per_step_batch",) if own == "per_step" else ("batch", "metabn")
    if "per_step" in own and own != "per_step":
        others = ()  # parameters of a step's own, or of some layers: no other normalisation has a place for them
    methods = {own: experiment.tested}
    for norm in others:
        changed = config.copy_and_resolve_references()
        changed.model.norm = norm
        methods.setdefault(norm, build_tested(changed, config.eval.way))
    return methods


def protocol_of(config: Config, experiment: Experiment, state: MetaState, subject: Subject) -> dict[str, Any]:
    """All that the figures of a measure depend on."""
    settings = config_lib.flatten(config)
    kept = ("seed", "model.", "inner.", "data.normalize", "data.image_size", "data.stored_size", "data.channels")
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((state.params, state.stats)):
        digest.update(np.asarray(leaf).tobytes())
    t = experiment.testing
    return {
        "audit": VERSION,
        "step": int(state.step),
        "checkpoint": t.checkpoint,
        "parameters_sha256": digest.hexdigest(),
        "split": t.split,
        "inner_steps": t.steps,
        **t.facts,
        "pool": subject.pool,
        "tasks": dataclasses.asdict(subject.counts),
        "settings": {name: value for name, value in settings.items() if name.startswith(kept)},
        "data": t.data,
        **surroundings(),
    }
