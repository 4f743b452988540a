"""Several processes of one run: they keep one pace, and if one is killed the others say so and end; nothing is lost."""

import json
import signal
import socket
import time

import pytest

from maml_jax import progress
from maml_jax.checkpoint import Checkpoints
from maml_jax.metrics import NoMetrics, read_metrics
from tests.helpers import ROOT, TINY, assert_same, start_python

MINUTE = 60  # seconds
SETTINGS = [
    *TINY,
    "--config.train.report_every=50",  # in which the pace changes more than once
    "--config.train.validate_every=0",
    "--config.train.checkpoint_every=50",
    "--config.eval.checkpoint=latest",
]
_PACE = """
import sys
from tests import conftest
import jax
from maml_jax import pace
address, me, seconds = sys.argv[1], int(sys.argv[2]), [float(s) for s in sys.argv[3].split()]
jax.config.update("jax_num_cpu_devices", 1)
jax.distributed.initialize(address, 2, me)
now, measured = [0.0], pace.Pace()
pace.time = type("Clock", (), {"perf_counter": lambda: now[0]})
for i, taken in enumerate(seconds):
    now[0] += taken
    stop = measured.call_taken(me == 1 and i == len(seconds) - 1)
    print(measured.steps, stop)
"""
_WORD = """
import os, signal, sys
from maml_jax import startup
startup._leave_word("error: it was ended")
if sys.argv[1] == "at once":
    startup.end_at_once(3)
if int(sys.argv[1]):
    os.kill(os.getpid(), int(sys.argv[1]))
"""


@pytest.fixture
def address():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def ends(processes, seconds):
    """The exit status, output and messages of each."""
    said = [process.communicate(timeout=seconds) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def test_processes_of_different_speed_keep_one_pace(address):
    """That of the slowest; and one that is asked to stop stops all."""
    seconds = ["60 1 1 1 1 1", "60 1 3 9 1 1"]
    ended = ends([start_python("-c", _PACE, address, i, seconds[i]) for i in (0, 1)], 500)
    assert [status for status, *_ in ended] == [0, 0], ended
    expected = ["1 False", "2 False", "2 False", "1 False", "2 False", "4 True"]
    for _, out, _ in ended:
        assert [line for line in out.splitlines() if not line.startswith("[Gloo]")] == expected


@pytest.mark.parametrize(
    ("how", "status", "word"),
    [
        (signal.SIGKILL.value, -signal.SIGKILL, "error: it was ended\n"),
        (signal.SIGABRT.value, -signal.SIGABRT, "error: it was ended\n"),
        (0, 0, ""),
        ("at once", 3, ""),
    ],
)
def test_a_word_is_left_by_a_process_that_is_ended(how, status, word):
    """By that alone: not by one that comes to its end, or ends itself."""
    assert ends([start_python("-c", _WORD, how)], 500) == [(status, "", word)]


def test_a_silent_process_says_its_errors(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_silent", True)
    progress.say("how far it is")
    progress.say("error: it fails", by_all=True)
    assert capsys.readouterr().err == "error: it fails\n"


def test_processes_but_the_first_write_no_metrics():
    with NoMetrics() as metrics:
        metrics.write(1, "train", loss=1.0)


def killed_one(victim, address, folder, cache):
    """Two processes train; one is killed after the first checkpoint. What became of the other, and after how long."""
    meet = [f"--config.parallel.coordinator={address}", "--config.parallel.processes=2"]
    command = [ROOT / "launch.py", "--workdir", "run", *SETTINGS, "--config.train.steps=1000000", *meet]
    one_each = ["--config.parallel.cpu_devices=1"]
    processes = [
        start_python(*command, *one_each, f"--config.parallel.process={i}", cwd=folder, MAML_JAX_CACHE=str(cache))
        for i in (0, 1)
    ]
    while not list(folder.glob("run/checkpoints/latest/*/sha256.json")):
        assert [process.poll() for process in processes] == [None, None], ends(processes, MINUTE)
        time.sleep(0.05)
    processes[victim].kill()
    begun = time.monotonic()
    (ended,) = ends([processes[1 - victim]], MINUTE)
    seconds = time.monotonic() - begun
    (dead,) = ends([processes[victim]], MINUTE)
    assert dead[0] == -signal.SIGKILL
    assert f"error: process {victim} of 2 was ended from outside" in dead[2]
    return ended, seconds


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])  # the first of which is where they meet
def test_one_of_two_processes_is_killed(victim, address, tmp_path, cache, launch):
    """The other says so and ends; one process alone goes on from the checkpoint, to what would have come without."""
    (status, _, err), seconds = killed_one(victim, address, tmp_path, cache)
    print(f"\nthe other ended with {status} after {seconds:.1f} s: {err.splitlines()[-1]}")
    assert status in (2, -signal.SIGABRT), err  # the latter by JAX, if it is faster
    assert "error: " in err.splitlines()[-1]
    assert "the same command goes on from the latest checkpoint" in err.splitlines()[-1]
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        reached = checkpoints.latest_step("latest")
    alone = [*SETTINGS, "--config.parallel.devices=1", f"--config.train.steps={reached + 50}"]
    status, _, err = launch("--workdir", tmp_path / "run", *alone)
    assert status == 0
    assert f"continuing at meta-step {reached} of" in err
    status, _, _ = launch("--workdir", tmp_path / "undisturbed", *alone)
    assert status == 0
    ended = {}
    for name in ("run", "undisturbed"):
        with Checkpoints(tmp_path / name / "checkpoints") as checkpoints:
            ended[name] = checkpoints.read("latest")[0]
    assert_same(ended["run"], ended["undisturbed"], 1e-4)  # gradients were added in another order
    steps = [row["step"] for row in read_metrics(tmp_path / "run")]
    assert steps == [row["step"] for row in read_metrics(tmp_path / "undisturbed")]
    found, expected = (json.loads((tmp_path / n / "eval.json").read_text()) for n in ("run", "undisturbed"))
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-3)
