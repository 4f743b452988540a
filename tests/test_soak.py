"""A long run takes no more of the machine than a short one.

`SOAK_STEPS=1000000 pytest -m slow -n 0 -s tests/test_soak.py` goes on for hours; by default it takes minutes. It tells
what it found, the time of a meta-step among it.
"""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from maml_jax import train
from maml_jax.metrics import MetricsWriter
from tests.helpers import experiment

STATUS = Path("/proc/self/statm")


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="what a process takes is read from /proc")
def test_memory_files_and_threads_do_not_grow(tmp_path, monkeypatch):
    """With a report, a validation or a checkpoint every meta-step or two, which is more often than any run has them."""
    steps, seen, write = int(os.environ.get("SOAK_STEPS", "3000")), [], MetricsWriter.write

    def look(self, step, *args, **scalars):
        memory = int(STATUS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        seen.append((step, time.monotonic(), memory, len(os.listdir("/proc/self/fd")), threading.active_count()))
        write(self, step, *args, **scalars)

    monkeypatch.setattr(MetricsWriter, "write", look)
    train.train(experiment(steps=steps), tmp_path)
    step, seconds, memory, files, threads = np.array(seen).T
    quarter, half = len(seen) // 4, len(seen) // 2
    paces = [np.median(np.diff(seconds[part])) for part in (slice(quarter, half), slice(-quarter, None))]
    print(
        f"\n{step[-1]:.0f} meta-steps, {seconds[-1] - seconds[0]:.0f} s; memory {memory[quarter] / 2**20:.1f} MiB "
        f"after a quarter, {memory[-1] / 2**20:.1f} in the end; {files[quarter]:.0f} and {files[-1]:.0f} files; "
        f"between reports {paces[0] * 1e3:.1f} and {paces[1] * 1e3:.1f} ms"
    )
    assert memory[-quarter:].max() < 1.02 * memory[quarter:half].max()
    for count in (files, threads):  # some of which come and go
        assert np.median(count[-quarter:]) <= np.median(count[quarter:half])
