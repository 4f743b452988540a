"""A long run takes no more of the machine than a short one.

`SOAK_STEPS=1000000 pytest -m slow -n 0 -s tests/test_soak.py` goes on for hours; by default it takes minutes. With
`SOAK_HOURS=2` the command line trains the default configuration for so long, as a process of its own, until it is told
to stop as by a scheduler. Both tell what they found, the time of a meta-step among it: on the clock, which other work
on the machine makes longer, and of the processor, which it hardly does.
"""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from maml_jax import train
from maml_jax.checkpoint import Checkpoints
from maml_jax.metrics import MetricsWriter, read_metrics
from tests.helpers import ROOT, experiment, start_python

STATUS = Path("/proc/self/statm")
HOURS = float(os.environ.get("SOAK_HOURS", "0"))
CYCLES = 24  # at least, however long that takes where the processor is busy with other work
CYCLE = 40  # meta-steps
PATIENCE = 7200  # seconds without a cycle after which the run is stuck
OFTEN = [
    "--config.train.steps=1000000000",
    "--config.train.report_every=20",
    f"--config.train.validate_every={CYCLE}",
    "--config.train.validation_tasks=20",
    f"--config.train.checkpoint_every={CYCLE}",
    "--config.parallel.cpu_devices=1",
]


def quarters(length):
    """The second quarter of so many, and the last."""
    return slice(length // 4, length // 2), slice(-(length // 4), None)


def drift(before, after):
    """In words, from one number to another."""
    return f"{before * 1e3:.2f} and {after * 1e3:.2f} ms ({after / before - 1:+.1%})"


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="what a process takes is read from /proc")
def test_memory_files_and_threads_do_not_grow(tmp_path, monkeypatch):
    """With a report, a validation or a checkpoint every meta-step or two, which is more often than any run has them."""
    steps, seen, write = int(os.environ.get("SOAK_STEPS", "3000")), [], MetricsWriter.write

    def look(self, step, *args, **scalars):
        memory = int(STATUS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        times = time.monotonic(), time.process_time()
        seen.append((step, *times, memory, len(os.listdir("/proc/self/fd")), threading.active_count()))
        write(self, step, *args, **scalars)

    monkeypatch.setattr(MetricsWriter, "write", look)
    train.train(experiment(steps=steps), tmp_path)
    step, seconds, processor, memory, files, threads = np.array(seen).T
    second, last = quarters(len(seen))
    clock, cpu = ([np.ptp(t[part]) / np.ptp(step[part]) for part in (second, last)] for t in (seconds, processor))
    print(
        f"\n{step[-1]:.0f} meta-steps, {seconds[-1] - seconds[0]:.0f} s; memory {memory[second][0] / 2**20:.1f} MiB "
        f"after a quarter, {memory[-1] / 2**20:.1f} in the end; {files[second][0]:.0f} and {files[-1]:.0f} files; "
        f"a meta-step with all that belongs to it takes {drift(*clock)} on the clock, {drift(*cpu)} of the processor"
    )
    assert memory[last].max() < 1.02 * memory[second].max()
    for count in (files, threads):  # some of which come and go
        assert np.median(count[last]) <= np.median(count[second])


def taken(pid):
    """What a process has taken so far: seconds of the processor, and bytes of memory that it alone has."""
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]  # by itself, and by the system
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    memory = sum(int(status[name].split()[0]) for name in ("RssAnon", "VmSwap"))
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK"), memory * 1024


def watch(process, run):
    """Looks at a training until its time is over, five times a second, which is short against a cycle.

    Returns:
      The time on the clock and the memory at each look, `[looks, 2]`; and at the end of each cycle, which has a
      validation and a checkpoint, the meta-step, the time on the clock and that of the processor, `[cycles, 3]`.
    """
    metrics, size = run / "metrics.jsonl", 0
    looks, cycles, heard = [], [], time.monotonic()
    while not cycles or looks[-1][0] - cycles[0][1] < 3600 * HOURS or len(cycles) <= CYCLES:
        time.sleep(0.2)
        assert process.poll() is None, "the training has ended"
        now, (processor, memory) = time.monotonic(), taken(process.pid)
        assert now - heard < PATIENCE, "the training is stuck"
        before, size = size, metrics.stat().st_size if metrics.exists() else 0
        rows = read_metrics(run) if size != before else ()
        step = max((row["step"] for row in rows if row["split"] == "val"), default=0)
        if step > (cycles[-1][0] if cycles else 0):
            heard = now
            cycles.append((step, now, processor))
        if cycles:
            looks.append((now, memory))
    return np.array(looks), np.array(cycles)


@pytest.mark.slow
@pytest.mark.skipif(not HOURS, reason="SOAK_HOURS does not say how long")
@pytest.mark.skipif(not STATUS.exists(), reason="what a process takes is read from /proc")
def test_hours_of_the_default_configuration(tmp_path):
    """Its memory grows by 2 % at most, the processor's time of a meta-step by 5 %, and it stops when told to.

    Other work on the machine takes room in the processor's caches, and so makes some meta-steps slower. A program that
    becomes slower by itself does so in all of them: the faster half of the cycles is what counts.
    """
    settings = {"MAML_JAX_CACHE": str(tmp_path / "cache"), "JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""}
    run, said = tmp_path / "run", []
    process = start_python(ROOT / "launch.py", "--workdir", run, *OFTEN, cwd=tmp_path, **settings)
    reader = threading.Thread(target=lambda: said.extend(process.stderr))  # or the pipe would be full some day
    reader.start()
    with process:
        try:
            looks, cycles = watch(process, run)
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)
        finally:
            process.kill()
            reader.join()
            print("".join(["\n", *said[:3], *said[-3:]]))
    second, last = quarters(len(looks))
    memory = looks[:, 1]
    steps, clock, processor = np.diff(cycles, axis=0).T
    clock, cpu, fast = (
        [np.quantile((t / steps)[part], q) for part in quarters(len(steps))]
        for t, q in ((clock, 0.5), (processor, 0.5), (processor, 0.25))
    )
    print(
        f"{cycles[-1, 0]:.0f} meta-steps, {cycles[-1, 1] - cycles[0, 1]:.0f} s on the clock, "
        f"{cycles[-1, 2] - cycles[0, 2]:.0f} s of the processor; memory {memory[second].max() / 2**20:.1f} MiB at "
        f"most in the second quarter, {memory[last].max() / 2**20:.1f} in the last; a meta-step takes {drift(*clock)} "
        f"on the clock, {drift(*cpu)} of the processor, {drift(*fast)} in the faster half"
    )
    assert process.returncode == 130
    with Checkpoints(run / "checkpoints") as checkpoints:
        assert f"stopped after meta-step {checkpoints.latest_step('latest')} of" in said[-1]
    assert memory[last].max() <= 1.02 * memory[second].max()
    assert fast[1] <= 1.05 * fast[0]
