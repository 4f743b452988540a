"""How much work a compiled call gets, so that a request to stop is soon heard."""

import time

import numpy as np

from maml_jax.parallel import agreed

_SHORT, _LONG = 2.0, 5.0  # seconds


class Pace:
    """How many meta-steps to take per compiled call, which is the same in all processes.

    Between its SIGTERM and its SIGKILL a scheduler leaves half a minute, often. Within it must fit the calls under way,
    which are two, and a checkpoint. So calls begin with one step, and grow while they are short. How steps are parted
    into calls does not change what they compute.

    Attributes:
      steps: that the next call should take at most.
    """

    def __init__(self):
        self.steps, self._since = 1, None

    def begin(self) -> None:
        """Other work was done since the last call, which is not to be counted."""
        self._since = None

    def call_taken(self, stop: bool) -> bool:
        """Another call is under way, and the one before it has ended.

        Args:
          stop: whether this process was asked to stop.

        Returns:
          Whether any process was.
        """
        now, before = time.perf_counter(), self._since
        self._since = now
        seconds = (_SHORT + _LONG) / 2 if before is None else now - before
        stop, no_longer_short, long = agreed(np.array([stop, seconds > _SHORT, seconds > _LONG]))
        if long:
            self.steps = max(1, self.steps // 2)
        elif not no_longer_short:
            self.steps *= 2
        return bool(stop)
