"""Supervised training of an encoder on all classes of the training split, as an experiment like any other.

Its method takes no inner steps and its tasks' query sets are batches of all classes, so that a meta-step is a step of
plain supervised training. Validation is by the nearest class mean of features, on the tasks of the real experiment.
"""

import dataclasses
from collections.abc import Mapping

import ml_collections

from maml_jax.data.store import ClassStore
from maml_jax.experiment import Experiment
from maml_jax.experiment.method import build_learner, build_outer, build_tested
from maml_jax.experiment.tasks import build_tasks
from maml_jax.meta.inner import InnerLoop, sgd
from maml_jax.meta.outer import Maml


def pretraining(
    config: ml_collections.ConfigDict, experiment: Experiment, stores: Mapping[str, ClassStore]
) -> Experiment:
    """The supervised training that `train.pretrain` asks for.

    Layers normalise by the batch, whatever they do in meta-training: a norm of another kind starts afresh there.

    Args:
      config: of the run.
      experiment: of the same configuration.
      stores: the images by split.
    """
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(
        {
            "model.norm": "batch",
            "model.head": "meta",
            "eval.head": "prototypes",
            "eval.steps": 0,
            "outer.method": "maml",
            "outer.rate": config.train.pretrain_rate,
            "outer.schedule": "cosine",
            "train.steps": config.train.pretrain,
        }
    )
    tasks, eval_tasks = build_tasks(changed, stores, True, supervised=True)
    classes = stores["train"].num_classes * (4 if config.data.rotations else 1)
    return dataclasses.replace(
        experiment,
        method=Maml(build_learner(changed, classes), InnerLoop(sgd(0.0)), steps=0),
        tested=build_tested(changed, config.eval.way),
        optimizer=build_outer(changed),
        tasks=tasks,
        eval_tasks=eval_tasks,
        training=experiment.training._replace(steps=config.train.pretrain),
        testing=experiment.testing._replace(
            steps=0, facts=experiment.testing.facts | {"norm": "batch", "transductive": True, "head": "prototypes"}
        ),
    )
