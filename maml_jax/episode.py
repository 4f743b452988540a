"""The unit of meta-learning, one few-shot task, and what hands out such tasks."""

from typing import NamedTuple, Protocol

import jax


class Episode(NamedTuple):
    """A task: labelled support examples to adapt on, and query examples to be judged by.

    Labels are in class order: the first `shot` support rows and the first `query` query rows are class 0, and so on. A
    batch of episodes has a leading `tasks` axis on every field.

    Attributes:
      support_x: `[way * shot, height, width, channels]` float.
      support_y: `[way * shot]` int32, in `0 .. way - 1`.
      query_x: `[way * query, height, width, channels]` float.
      query_y: `[way * query]` int32.
      key: a random key, for networks with dropout and the like; None where nothing is random.
    """

    support_x: jax.Array
    support_y: jax.Array
    query_x: jax.Array
    query_y: jax.Array
    key: jax.Array | None = None


class Tasks(Protocol):
    """The tasks of one split, each a function of its index.

    A pytree, so that its arrays can be arguments of a compiled program; or any other hashable object without arrays.
    """

    def sample(self, index: jax.Array) -> Episode:
        """Task `index`, int32 scalar, by JAX operations only."""
