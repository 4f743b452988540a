"""Training: resuming is exact, files are whole, and nothing is lost to a signal or to numbers that are none."""

import contextlib
import dataclasses
import json
import shutil
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maml_jax import parallel, train
from maml_jax.checkpoint import Checkpoints
from maml_jax.data import stream
from maml_jax.data.store import ClassStore
from maml_jax.data.stream import HostTasks
from maml_jax.episode import Episode
from maml_jax.errors import DataError
from maml_jax.files import to_json, write_whole
from maml_jax.metrics import MetricsWriter
from maml_jax.nn.mlp import MLP
from maml_jax.nn.model import learner
from tests.helpers import assert_same, experiment, small


def stored(workdir, like, kind="latest"):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.restore(kind, like.fresh_state())


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def figures(workdir):
    """Loss and accuracy by meta-step and split."""
    return {(r["step"], r["split"]): (r["loss"], r["accuracy"]) for r in records(workdir)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The work directory of a run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    assert int(train.train(experiment(), workdir).step) == 12
    return workdir


def on_host(of):
    """An experiment whose images stay on the host."""

    def moved(tasks):
        offsets = np.asarray(tasks.offsets, np.int64)
        return HostTasks(tasks.spec, ClassStore(np.asarray(tasks.pixels), offsets, tuple("abcdef"), tasks.spec.split))

    eval_tasks = {split: moved(tasks) for split, tasks in of.eval_tasks.items()}
    return dataclasses.replace(of, tasks=moved(of.tasks), eval_tasks=eval_tasks)


@pytest.mark.parametrize("place", [lambda of: of, on_host], ids=["device", "host"])
def test_a_run_in_parts_ends_with_the_same_bits(whole, tmp_path, monkeypatch, place):
    """The stop falls between two checkpoints, reports and validations; chunks from the host in line with none."""
    monkeypatch.setattr(stream, "_CHUNK_BYTES", 2 * 2 * 2 * 3 * 4 * 4)  # two meta-steps
    train.train(place(experiment(steps=7)), tmp_path)
    assert int(stored(tmp_path, experiment()).step) == 7
    train.train(place(experiment()), tmp_path)
    assert_same(stored(tmp_path, experiment()), stored(whole, experiment()), 0)

    expected, actual = figures(whole), figures(tmp_path)
    assert [step for step, split in expected if split == "train"] == [3, 4, 5, 6, 8, 9, 10, 12]
    assert [step for step, split in expected if split == "val"] == [4, 8, 12]
    assert actual.keys() - expected.keys() == {(7, "train"), (7, "val")}
    assert expected.keys() <= actual.keys()
    for key in expected.keys() - {(8, "train")}:  # after the stop at 7, a mean over other meta-steps
        np.testing.assert_allclose(actual[key], expected[key], rtol=1e-6, err_msg=str(key))


def test_a_signal_stops_with_a_checkpoint_and_the_run_goes_on(whole, tmp_path, monkeypatch):
    write = MetricsWriter.write

    def interrupt(self, step, *args, **scalars):
        write(self, step, *args, **scalars)
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(MetricsWriter, "write", interrupt)
    with pytest.raises(train.Interrupted, match="run the same command"):
        train.train(experiment(), tmp_path)
    assert 3 <= int(stored(tmp_path, experiment()).step) < 12
    monkeypatch.undo()
    train.train(experiment(), tmp_path)
    assert_same(stored(tmp_path, experiment()), stored(whole, experiment()), 0)
    steps = [r["step"] for r in records(tmp_path)]
    assert steps == sorted(steps)


def test_a_report_waits_for_one_call_of_the_next_ones(tmp_path, monkeypatch):
    """And so is made when its meta-steps end: its tasks per second are theirs."""
    events, write = [], MetricsWriter.write
    monkeypatch.setattr(train, "Pace", lambda: SimpleNamespace(steps=1, begin=lambda: None, call_taken=bool))

    def spread(*args, **how):
        call = parallel.spread(*args, **how)
        return lambda *args: events.append("call") or call(*args)

    def report(self, step, *args, **scalars):
        events.append(step)
        write(self, step, *args, **scalars)

    monkeypatch.setattr(train, "spread", spread)
    monkeypatch.setattr(MetricsWriter, "write", report)
    train.train(experiment(steps=6, report_every=2, checkpoint_every=6, validate_every=0), tmp_path)
    assert events == ["call"] * 3 + [2] + ["call"] * 2 + [4] + ["call"] + [6]


def test_a_second_signal_stops_at_once():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs lack
    with train._StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_best_and_latest(whole):
    validations = {step: accuracy for (step, split), (_, accuracy) in figures(whole).items() if split == "val"}
    best = int(stored(whole, experiment(), "best").step)
    assert validations[best] == max(validations.values())
    assert int(stored(whole, experiment()).step) == 12
    assert {entry.name for entry in whole.iterdir()} == {"checkpoints", "metrics.jsonl", "tensorboard"}


def test_no_meta_steps_leave_the_start_to_be_evaluated(tmp_path):
    untrained = experiment(steps=0)
    state = train.train(untrained, tmp_path)
    assert_same(stored(tmp_path, untrained), untrained.fresh_state(), 0)
    assert_same(jax.device_get(state.params), jax.device_get(untrained.fresh_state().params), 0)


class Lines:
    """A user's own tasks, in a class that is no pytree: y = a x; `answer` says what the queries' y are."""

    def __init__(self, split, answer=lambda y: y):
        self.seed, self.answer = {"train": 0, "val": 1, "test": 2}[split], answer

    def sample(self, index):
        slope_key, x_key = jax.random.split(jax.random.fold_in(jax.random.key(self.seed), index))
        x = jax.random.normal(x_key, (8, 1))
        y = jax.random.normal(slope_key, ()) * x
        return Episode(x[:3], y[:3], x[3:], self.answer(y[3:]))


def test_tasks_of_ones_own_and_regression(tmp_path):
    """The loss falls, there is no accuracy, and a validation that gives no number is never the best."""
    tasks = {split: Lines(split) for split in ("train", "test")} | {"val": Lines("val", lambda y: y * jnp.nan)}
    own = experiment(learner(MLP(1), loss="squared_error"), tasks, optax.adam(0.05), steps=40, report_every=20)
    train.train(own, tmp_path)
    losses = {r["step"]: r["loss"] for r in records(tmp_path) if r["split"] == "train"}
    assert losses[40] < losses[4]
    assert not any("accuracy" in r for r in records(tmp_path))
    assert {r["loss"] for r in records(tmp_path) if r["split"] == "val"} == {None}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step("latest") == 40
        assert checkpoints.latest_step("best") is None


def test_checkpoint_of_another_model_is_refused(whole):
    with pytest.raises(DataError, match=r"of another model: params\.encoder\.\S+ is \(2,\), expected \(3,\)"):
        stored(whole, experiment(small(blocks=1, width=3)))
    with pytest.raises(DataError, match=r"of another model: params\.encoder\.block2\.\S+ is lacking"):
        stored(whole, experiment(small(blocks=2)))


def test_a_missing_or_damaged_checkpoint_is_refused(whole, tmp_path):
    with pytest.raises(DataError, match="train first"):
        stored(tmp_path, experiment())
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    for file in (tmp_path / "checkpoints" / "latest").rglob("*"):
        if file.is_file() and file.parent.name == "state":
            file.write_bytes(b"")
    with pytest.raises(DataError, match=r"the checkpoint.*latest/12 is damaged"):
        stored(tmp_path, experiment())


def test_checkpoints_of_version_0_1_load(tmp_path):
    """Whose statistics stand without the name of their collection."""
    now = experiment(small("global", blocks=1)).fresh_state()
    now = now.replace(stats=jax.tree.map(lambda x: x + 0.25, now.stats), step=jnp.int32(3))
    before = now.replace(stats=now.stats["lasting_stats"])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save("latest", 3, before)
        names = checkpoints.read("latest")[0]
        like = experiment(small("global", blocks=1)).fresh_state()
        restored, model = checkpoints.restore("latest", like), checkpoints.restore_model("latest", like)
    assert "stats.lasting_stats.encoder.block1.norm.mean" in names
    assert_same(jax.device_get(restored), jax.device_get(now), 0)
    for part in ("step", "params", "stats"):
        assert_same(getattr(model, part), jax.device_get(getattr(now, part)), 0)


def test_json_has_null_where_there_is_no_number():
    value = {"loss": float("nan"), "rows": [1.5, float("inf"), {"n": 3, "of": (float("-inf"), "x", None, True)}]}
    assert json.loads(to_json(value)) == {"loss": None, "rows": [1.5, None, {"n": 3, "of": [None, "x", None, True]}]}
    assert to_json({"a": 1}, indent=None) == '{"a": 1}\n'


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "eval.json"
    path.write_text("before")

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with contextlib.suppress(OSError):
        write_whole(path, fail)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
