"""The unit of meta-learning: one few-shot task."""

from typing import NamedTuple

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
    """

    support_x: jax.Array
    support_y: jax.Array
    query_x: jax.Array
    query_y: jax.Array
