"""Meta-test: accuracy over many tasks of classes never seen in training."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
import numpy as np
import scipy.stats

from maml_jax import experiment
from maml_jax.data.sampler import DeviceImages
from maml_jax.data.stream import Feed, Images, episode
from maml_jax.files import write_whole
from maml_jax.meta.outer import task_loss
from maml_jax.meta.parallel import AXIS, my_share, replicate, spread
from maml_jax.nn.norm import Normalization
from maml_jax.tree import PyTree

_TASKS_PER_CALL = 25


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation.

    Attributes:
      accuracies: of each task, `[tasks]`, in [0, 1].
      losses: query loss of each task after adaptation, `[tasks]`.
    """

    accuracies: np.ndarray
    losses: np.ndarray

    @property
    def accuracy(self) -> float:
        """Mean accuracy over tasks, in [0, 1]."""
        return float(self.accuracies.mean())

    @property
    def loss(self) -> float:
        """Mean query loss over tasks."""
        return float(self.losses.mean())

    @property
    def ci95(self) -> float:
        """Half the width of the 95 % Student-t interval of the mean accuracy over tasks."""
        n = len(self.accuracies)
        deviation = float(self.accuracies.std(ddof=1))
        return float(scipy.stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)


class Evaluator:
    """Scores meta-parameters on tasks of one split, by the protocol of `config.eval`; compiles once.

    Args:
      config: the configuration.
      images: the split's images, on the device or on the host.
      split: its name.
    """

    def __init__(self, config: ml_collections.ConfigDict, images: Images, split: str):
        spec = experiment.eval_tasks(config, split)
        model = experiment.build_model(config, spec.way, experiment.image_shape(config, images))
        inner = experiment.build_inner(config)
        devices = self._devices = jax.devices()
        self._spec = spec
        self._images = replicate(images, devices) if isinstance(images, DeviceImages) else images
        self._tasks_per_call = -(-_TASKS_PER_CALL // len(devices)) * len(devices)

        def run_tasks(params, stats, images, call):
            def run(slot):
                task = episode(spec, images, call, slot, self._tasks_per_call)
                _, result = task_loss(model, inner, params, stats, task, config.eval.steps, train=False)
                return result.accuracy, result.loss

            share = jax.lax.map(run, my_share(self._tasks_per_call))
            return jax.lax.all_gather(share, AXIS, tiled=True)

        self._run_tasks = spread(run_tasks, devices, config.parallel.backend)

    def __call__(
        self, params: PyTree, stats: PyTree, tasks: int, progress: Callable[[int], None] = lambda done: None
    ) -> Evaluation:
        """Adapts to tasks 0 .. tasks - 1 and scores their queries.

        Args:
          params: meta-parameters.
          stats: statistics of `global` layers.
          tasks: how many.
          progress: called now and then with the number of tasks done.
        """
        outcomes = []
        params, stats = replicate((params, stats), self._devices)
        calls = math.ceil(tasks / self._tasks_per_call)  # a surplus at the end is cut off
        with Feed(self._spec, self._images, self._devices, self._tasks_per_call, 0, calls, most=1) as feed:
            for call in range(calls):
                ((images, _),) = feed.between(call, call + 1)
                outcomes.append(jax.device_get(self._run_tasks(params, stats, images, np.int32(call))))
                progress(min((call + 1) * self._tasks_per_call, tasks))
        accuracies, losses = (np.concatenate(x)[:tasks] for x in zip(*outcomes, strict=True))
        return Evaluation(accuracies, losses)


def write(workdir: Path, config: ml_collections.ConfigDict, evaluation: Evaluation, step: int) -> None:
    """Writes `eval.json` (the figures and their protocol) and `eval_tasks.npz` (the tasks) into a work directory.

    Args:
      workdir: the folder.
      config: what the evaluation ran under.
      evaluation: its outcome.
      step: meta-steps of the checkpoint evaluated.
    """
    e = config.eval
    report = {
        "accuracy": evaluation.accuracy,
        "ci95": evaluation.ci95,
        "loss": evaluation.loss,
        "n_tasks": len(evaluation.accuracies),
        "protocol": {
            "data": config.data.name,
            "split": e.split,
            "way": e.way,
            "shot": e.shot,
            "query": e.query,
            "inner_steps": e.steps,
            "augment": e.augment,
            "norm": config.model.norm,
            "transductive": Normalization.parse(config.model.norm).transductive,
            "checkpoint": e.checkpoint,
            "step": step,
            "seed": config.seed,
        },
    }
    write_whole(workdir / "eval_tasks.npz", lambda file: np.savez(file, **dataclasses.asdict(evaluation)))
    write_whole(workdir / "eval.json", lambda file: file.write((json.dumps(report, indent=2) + "\n").encode()))
