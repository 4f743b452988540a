"""A store as large as tiered-ImageNet: 448,695 images of 84 px, 9.5 GB.

Run it with `pytest -m slow -s tests/data/test_large.py`. Each step runs in a process of its own, whose peak memory
Linux keeps as `VmHWM`. (What `getrusage` gives starts from the memory of the process that started it.)
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

IMAGES, CLASSES, BYTES = 448_695, 351, 448_695 * 84 * 84 * 3

COMMON = """
import json, re, sys, time
from pathlib import Path
began = time.monotonic()
def report(**facts):
    peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
    print(json.dumps({"seconds": time.monotonic() - began, "peak": peak, **facts}))
"""
BUILD = """
import functools
import numpy as np
from maml_jax.data import store
from maml_jax.data.source import ClassImages, Source

images, classes = int(sys.argv[2]), int(sys.argv[3])
def load(c, count):
    return np.frombuffer(np.random.default_rng(c).bytes(count * 84 * 84 * 3), np.uint8).reshape(count, 84, 84, 3)
counts = [images // classes + (c < images % classes) for c in range(classes)]
listed = [ClassImages(f"n{c:08}", n, functools.partial(load, c, n)) for c, n in enumerate(counts)]
path = store.build(Source("large-84", {}, (84, 84, 3), {"train": listed}), sys.argv[1], progress=False)
report(path=str(path))
"""
VERIFY = """
from maml_jax.data import store
store.verify(sys.argv[1])
report()
"""
EPISODE = """
import numpy as np
from maml_jax.data import store
began = time.monotonic()
opened = store.open_store(sys.argv[1], "train")
rng = np.random.default_rng(0)
classes = rng.choice(opened.num_classes, 5, replace=False)
rows = [opened.offsets[c] + rng.choice(opened.counts[c], 16, replace=False) for c in classes]
episode = np.stack([opened.images[r] for r in rows])
report(shape=episode.shape, mean=float(episode.mean()))
"""


def run(script, *arguments):
    command = [sys.executable, "-c", COMMON + script, *map(str, arguments)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    print(facts)  # shown with -s
    return facts


@pytest.mark.slow
def test_store_of_tiered_imagenets_size(tmp_path):
    if shutil.disk_usage(tmp_path).free < 1.2 * BYTES:
        pytest.skip("needs 12 GB of free disk")
    try:
        built = run(BUILD, tmp_path, IMAGES, CLASSES)
        assert (Path(built["path"]) / "train.npy").stat().st_size > BYTES
        assert built["peak"] <= 1e9
        episode = run(EPISODE, built["path"])
        assert episode["shape"] == [5, 16, 84, 84, 3]
        assert 120 < episode["mean"] < 135
        assert episode["seconds"] <= 2
        assert run(VERIFY, built["path"])["peak"] <= 1e9
    finally:
        shutil.rmtree(tmp_path)
