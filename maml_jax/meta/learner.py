"""What the algorithms need of a model, and nothing else."""

import enum
from typing import NamedTuple, Protocol

import jax

from maml_jax.tree import PyTree


class Pass(enum.Enum):
    """Which pass over an episode a forward evaluation is."""

    SUPPORT = enum.auto()
    CONTEXT = enum.auto()  # the support set at the adapted parameters, before the query pass
    QUERY = enum.auto()


class Phase(NamedTuple):
    """Where in an episode a forward evaluation stands.

    Attributes:
      which: the pass.
      train: meta-training, against meta-test.
      step: the inner step, from 0, int or int32 scalar; a query pass goes with the last one taken.
      key: a random key, a different one for every evaluation; None where nothing is random.
    """

    which: Pass = Pass.QUERY
    train: bool = False
    step: int | jax.Array = 0
    key: jax.Array | None = None


class Learner(Protocol):
    """A model as pure functions of parameters and statistics, both pytrees of arrays.

    Attributes:
      uses_context: whether a query pass needs a context pass before it.
    """

    uses_context: bool

    def init(self, key: jax.Array, x: jax.Array) -> tuple[PyTree, PyTree]:
        """Draws the meta-parameters, and the statistics that outlive an episode.

        Args:
          key: a random key.
          x: inputs `[batch, ...]`, of which only shape and type matter.
        """

    def start(self, params: PyTree, stats: PyTree, support_x: jax.Array, support_y: jax.Array) -> tuple[PyTree, PyTree]:
        """Where an episode starts: parameters (with a head, say, of zeros or prototypes) and statistics of all layers.

        Args:
          params: meta-parameters.
          stats: the statistics that outlive an episode.
          support_x: the support set's inputs, `[batch, ...]`.
          support_y: its labels or targets, `[batch, ...]`.
        """

    def apply(self, params: PyTree, stats: PyTree, x: jax.Array, phase: Phase) -> tuple[jax.Array, PyTree]:
        """Outputs `[batch, ...]` for inputs `[batch, ...]`, and the statistics after this pass."""

    def loss(self, outputs: jax.Array, y: jax.Array) -> jax.Array:
        """The loss of outputs against labels or targets, a scalar; the same on support and query sets."""

    def lasting(self, stats: PyTree) -> PyTree:
        """What outlives an episode of the statistics that it ended with, in the form that `init` gives."""
