"""Random kills, whatever the command line is at: started again, it ends with the same bits as if nothing had been.

`pytest -m torture -s` tells which moments were hit. `TORTURE_KILLS` says how many kills there are to be (10), and
`TORTURE_SEED` what they are drawn from (0): the same seed draws the same commands, moments and delays, though not the
same speed of the machine.
"""

import collections
import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest

from maml_jax.checkpoint import KINDS, Checkpoints
from tests.helpers import ROOT, TINY, start_python
from tests.tensorboard import scalars

RUN = ["--workdir", "run"]
SETTINGS = [*TINY, "--config.train.steps=40", "--config.train.report_every=5", "--config.train.checkpoint_every=5"]
COMMANDS = {  # in this order, in one folder
    "prepare": ["prepare", *SETTINGS],
    "train": ["train", *RUN, *SETTINGS],
    "evaluate": ["evaluate", *RUN, "--config.eval.tasks=200"],
    "audit": ["audit", *RUN, "--quick"],
    "export": ["export", *RUN, "--to", "exported"],
}
PLACES = {  # what appears while a command writes, or just after
    "prepare": ["cache/stores/.*", "cache/stores/.*/*.npy", "cache/stores/*/store.json"],
    "train": [
        "run/metrics.jsonl",
        "run/checkpoints/latest/*tmp*",
        "run/checkpoints/best/*tmp*",
        "run/checkpoints/latest/[1-9]?",
        "run/checkpoints/best/[1-9]?",
        "run/eval/.*",
        "run/report/*",
    ],
    "evaluate": ["run/eval/.*200*", "run/eval/*200.npz"],
    "audit": ["run/audit/measures/.*", "run/audit/measures/*_metabn.json", "run/audit/measures/m*", "run/audit/*.png"],
    "export": [".exported*", ".exported*/*/*", "exported"],
}
SECONDS = 600  # after which a command is stuck


class Folder:
    """A folder to run commands in, with its own store, and a cache of compiled programs that all folders share."""

    def __init__(self, path: Path, programs: Path):
        self.path = path
        (path / "cache").mkdir(parents=True)
        programs.mkdir(exist_ok=True)
        (path / "cache" / "xla").symlink_to(programs)

    def start(self, name):
        return start_python(ROOT / "launch.py", *COMMANDS[name], cwd=self.path, MAML_JAX_CACHE=str(self.path / "cache"))

    def finish(self, name) -> float:
        """Runs a command to its end; the seconds that it took."""
        begun = time.monotonic()
        process = self.start(name)
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, f"{name} in {self.path} ended with {process.returncode}:\n{errors}"
        assert "Traceback" not in errors, errors
        return time.monotonic() - begun

    def kill(self, name, moment, delay) -> str | None:
        """Starts a command and kills it `delay` seconds after the first file of a pattern has appeared, or its start.

        Returns:
          What it was at; None if it had ended before.
        """
        process, there = self.start(name), self._files(moment)
        deadline = time.monotonic() + SECONDS
        while moment and process.poll() is None and self._files(moment) <= there:
            assert time.monotonic() < deadline, f"{name} in {self.path} is stuck"
            time.sleep(0.001)
        time.sleep(delay)
        over = process.poll() is not None
        process.kill()
        said = process.communicate()[1].splitlines()
        if over:
            assert process.returncode == 0, "\n".join(said)
            return None
        return f"{name}, {moment or 'anywhere'}, after {said[-1] if said else 'nothing'!r}"

    def _files(self, pattern):
        return set(self.path.glob(pattern)) if pattern else set()

    def content(self) -> dict[str, object]:
        """All that must be the same, by name: arrays, figures, texts and bytes."""
        run, found = self.path / "run", {}
        for path in sorted(self.path.glob("cache/stores/*/*")):
            found[f"{path.parent.name}/{path.name}"] = path.read_bytes()
        with Checkpoints(run / "checkpoints") as checkpoints:
            for kind in KINDS:
                found |= {f"{kind} {name}": array for name, array in checkpoints.read(kind)[0].items()}
                found[f"{kind} facts"] = checkpoints.facts(kind)
        lines = (run / "metrics.jsonl").read_text().splitlines()
        found["metrics"] = [without_speed(json.loads(line)) for line in lines]
        shown = {f"{tag} {step}": value for (tag, step), value in scalars(run / "tensorboard").items()}
        found["tensorboard"] = without_speed(shown)
        for path in [*run.glob("*.json"), *run.glob("eval/*.json"), *run.glob("audit/report.*")]:
            found[str(path.relative_to(run))] = path.read_text()
        for path in [*run.glob("*.npz"), *run.glob("eval/*.npz"), *run.glob("audit/measures/*.npz")]:
            with np.load(path, allow_pickle=False) as arrays:
                found |= {f"{path.relative_to(run)} {name}": array for name, array in arrays.items()}
        return found | {f"exported/{path.name}": path.read_bytes() for path in (self.path / "exported").iterdir()}


def without_speed(scalars):
    return {name: value for name, value in scalars.items() if "tasks_per_second" not in name}


def assert_same_content(actual, expected):
    assert sorted(actual) == sorted(expected)
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(actual[name], value, name, strict=True)
        else:
            assert actual[name] == value, name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder that nothing disturbed, the seconds that each command takes, and where compiled programs are kept.

    The commands run twice, so that the second run finds the programs compiled, as those do that will be killed; and so
    that it shows that nothing else makes a difference.
    """
    base = tmp_path_factory.mktemp("torture")
    folders = [Folder(base / name, base / "programs") for name in ("first", "second")]
    for folder in folders:
        seconds = {name: folder.finish(name) for name in COMMANDS}
    first, second = (folder.content() for folder in folders)
    assert_same_content(second, first)
    assert {"latest step", "metrics", "eval.json", "exported/model.safetensors"} <= set(first)
    return first, seconds, base / "programs"


@pytest.mark.torture
def test_killed_at_random_all_ends_with_the_same_bits(undisturbed, tmp_path):
    """Up to three kills of each command in each round, half of them at any time, half while something is written."""
    expected, seconds, programs = undisturbed
    kills, seed = int(os.environ.get("TORTURE_KILLS", "10")), int(os.environ.get("TORTURE_SEED", "0"))
    draw, hit = random.Random(seed), collections.Counter()
    for number in range(kills):
        if hit.total() >= kills:
            break
        folder = Folder(tmp_path / str(number), programs)
        for name in COMMANDS:
            for _ in range(draw.choice((1, 2, 3))):
                moment = draw.choice(PLACES[name]) if draw.random() < 0.5 else ""
                delay = draw.uniform(0, 0.1) if moment else draw.uniform(0, seconds[name])
                if at := folder.kill(name, moment, delay):
                    hit[at] += 1
            folder.finish(name)
        assert_same_content(folder.content(), expected)
    print(f"\n{hit.total()} kills from the seed {seed}, {hit.total()} of them with the same bits in the end:")
    for at, times in sorted(hit.items()):
        print(f"  {times} x {at}")
    assert hit.total() >= kills
