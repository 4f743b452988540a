"""Model-agnostic meta-learning in JAX and Flax: the names that a program needs.

`learner` makes a learner of a Flax module, `Maml` says how it is meta-learned, `meta_step` learns from a batch of tasks
and `predict` adapts to a new one. `load` gives a trained model, ready for images of your own. See the README for
examples.
"""

from maml_jax.config import preset
from maml_jax.data.stream import sample_batch
from maml_jax.data.tasks import load_tasks
from maml_jax.episode import Episode, Tasks
from maml_jax.errors import ConfigError, DataError, DeviceError, DiskError, UserError
from maml_jax.meta.implicit import ImplicitMaml
from maml_jax.meta.inner import InnerLoop, adapt, all_but, descent, sgd
from maml_jax.meta.learner import Learner, Pass, Phase
from maml_jax.meta.method import Method, TaskResult, evaluate_task, predict
from maml_jax.meta.outer import Annealing, Maml
from maml_jax.meta.precondition import Curvature
from maml_jax.meta.rates import LearnedRates
from maml_jax.meta.step import MetaState, init_state, meta_gradient, meta_step
from maml_jax.models.trained import Adapted, Predictions, Trained
from maml_jax.models.weights import load
from maml_jax.nn.context import ZeroContext
from maml_jax.nn.model import FlaxLearner, learner
from maml_jax.nn.starts import Learned, Prototypes, Shared, Zero

__version__ = "0.2.0"

__all__ = [
    "Adapted",
    "Annealing",
    "ConfigError",
    "Curvature",
    "DataError",
    "DeviceError",
    "DiskError",
    "Episode",
    "FlaxLearner",
    "ImplicitMaml",
    "InnerLoop",
    "Learned",
    "LearnedRates",
    "Learner",
    "Maml",
    "MetaState",
    "Method",
    "Pass",
    "Phase",
    "Predictions",
    "Prototypes",
    "Shared",
    "TaskResult",
    "Tasks",
    "Trained",
    "UserError",
    "Zero",
    "ZeroContext",
    "adapt",
    "all_but",
    "descent",
    "evaluate_task",
    "init_state",
    "learner",
    "load",
    "load_tasks",
    "meta_gradient",
    "meta_step",
    "predict",
    "preset",
    "sample_batch",
    "sgd",
]
