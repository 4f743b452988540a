"""Builders of stores that are interrupted, killed, or two at once."""

import signal
import time

import pytest

from tests.helpers import start_python

SLOW = """
import functools, signal, sys, time
import numpy as np
from pathlib import Path
from maml_jax import cli, data
from maml_jax.data.source import ClassImages, Source

def load(c):
    Path("begun").touch()
    time.sleep(0.02)
    return np.full((1, 16, 16, 3), c, np.uint8)

classes = [ClassImages(str(c), 1, functools.partial(load, c)) for c in range(int(sys.argv[1]))]
source = Source("slow", {}, (16, 16, 3), {"train": classes})
data.DATA_SETS["slow"] = data.DataSet("slow", lambda settings, root: source, "no terms")
for number in (signal.SIGTERM, signal.SIGINT):  # as launch.py does, and as a shell's background jobs lack
    signal.signal(number, signal.default_int_handler)
flags = ["--config.data.name=slow", "--config.data.cache_dir=cache"]
sys.exit(cli.main(["prepare", *flags]))
"""


def start(folder, classes):
    return start_python("-c", SLOW, classes, cwd=folder)


def start_and_stop(folder, number):
    process = start(folder, 100_000)
    for _ in range(6000):
        if (folder / "begun").exists():
            break
        time.sleep(0.02)
    process.send_signal(number)
    return process, process.communicate(timeout=120)[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path, number):
    process, err = start_and_stop(tmp_path, number)
    assert process.returncode == 130, err
    assert err.strip() == "interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["begun"]


def test_killed(tmp_path):
    start_and_stop(tmp_path, signal.SIGKILL)
    (left,) = (tmp_path / "cache" / "stores").iterdir()
    assert left.name.startswith(".slow-")
    process = start(tmp_path, 20)  # the same data set, for all that its name and fingerprint say
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    (store,) = (tmp_path / "cache" / "stores").iterdir()
    assert store.name.startswith("slow-")


def test_twice_at_once(tmp_path):
    processes = [start(tmp_path, 20) for _ in range(2)]
    outputs = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert len(list((tmp_path / "cache" / "stores").iterdir())) == 1
