"""Training: resuming is exact, files are whole, and nothing is lost to a signal."""

import contextlib
import json
import signal

import jax
import numpy as np
import pytest

from configs import default
from maml_jax import experiment, train
from maml_jax.checkpoint import Checkpoints
from maml_jax.data import stream
from maml_jax.data.sampler import DeviceImages
from maml_jax.data.store import ClassStore
from maml_jax.errors import DataError
from maml_jax.evaluate import Evaluation, Evaluator
from maml_jax.files import MetricsWriter, write_whole


@pytest.fixture
def config():
    c = default.get_config()
    c.model.width = 2
    c.data.image_size = 16
    c.task.way, c.task.query, c.eval.query = 2, 2, 2
    c.inner.steps = 1
    c.train.tasks = 2
    c.train.steps = 12
    c.train.report_every = 3
    c.train.validate_every = 4
    c.train.validation_tasks = 10
    c.train.checkpoint_every = 5
    c.eval.tasks = 10
    return c


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 200, (6, 1, 16, 16, 1))
    pixels = (patterns + rng.integers(0, 56, (6, 8, 16, 16, 1))).astype(np.uint8).reshape(48, 16, 16, 1)
    store = DeviceImages(jax.numpy.asarray(pixels), jax.numpy.arange(7, dtype=np.int32) * 8)
    return {"train": store, "val": store, "test": store}


def final(workdir, config, images, kind="latest"):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.restore(kind, train.fresh_state(config, images["train"].pixels.shape[1:]))


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_an_interrupted_run_ends_with_the_same_bits(config, images, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for workdir in (whole, parts):
        workdir.mkdir()
    train.train(config, images, whole)

    config.train.steps = 7  # stops between two checkpoints of the whole run, and between two reports
    train.train(config, images, parts)
    assert int(final(parts, config, images).step) == 7
    config.train.steps = 12
    train.train(config, images, parts)

    expected, actual = (final(workdir, config, images) for workdir in (whole, parts))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert int(actual.step) == 12
    steps = lambda r, split: [x["step"] for x in r if x["split"] == split]  # noqa: E731
    assert steps(records(whole), "train") == [3, 4, 5, 6, 8, 9, 10, 12]
    assert steps(records(whole), "val") == [4, 8, 12]
    losses = {x["step"]: x["loss"] for x in records(whole)}
    assert all(np.isclose(losses[x["step"]], x["loss"], rtol=0.5) for x in records(parts) if x["step"] in losses)


def test_images_on_the_host_end_with_the_same_bits(config, images, tmp_path, monkeypatch):
    """Streamed in chunks that no report, checkpoint or stop falls in line with; with validation, and after a stop."""
    monkeypatch.setattr(stream, "_CHUNK_BYTES", 2 * 2 * 2 * 3 * 16 * 16)  # two meta-steps
    resident, streamed = tmp_path / "resident", tmp_path / "streamed"
    for workdir in (resident, streamed):
        workdir.mkdir()
    train.train(config, images, resident)

    on_host = {
        split: ClassStore(np.asarray(x.pixels), np.asarray(x.offsets, np.int64), tuple("abcdef"), split)
        for split, x in images.items()
    }
    config.train.steps = 7
    train.train(config, on_host, streamed)
    config.train.steps = 12
    train.train(config, on_host, streamed)
    expected, actual = (final(workdir, config, images) for workdir in (resident, streamed))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)

    reports = lambda workdir: {(r["step"], r["split"]): r["accuracy"] for r in records(workdir)}  # noqa: E731
    ours, theirs = reports(streamed), reports(resident)
    assert {step for step, split in ours if split == "val"} == {4, 7, 8, 12}
    shared = (ours.keys() & theirs.keys()) - {(8, "train")}  # after the stop at 7, a mean over other meta-steps
    assert len(shared) == 10
    for key in shared:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-6)


def test_a_signal_stops_with_a_checkpoint_and_the_run_goes_on(config, images, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    whole.mkdir()
    train.train(config, images, whole)
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    write = MetricsWriter.write

    def interrupt(self, step, *args, **scalars):
        write(self, step, *args, **scalars)
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(MetricsWriter, "write", interrupt)
    with pytest.raises(train.Interrupted, match="run the same command"):
        train.train(config, images, stopped)
    step = int(final(stopped, config, images).step)
    assert 3 <= step < 12
    monkeypatch.undo()
    train.train(config, images, stopped)
    jax.tree.map(np.testing.assert_array_equal, final(stopped, config, images), final(whole, config, images))
    assert [x["step"] for x in records(stopped)] == sorted(x["step"] for x in records(stopped))


def test_a_second_signal_stops_at_once():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs lack
    with train._StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_best_and_latest(config, images, tmp_path):
    train.train(config, images, tmp_path)
    validations = {x["step"]: x["accuracy"] for x in records(tmp_path) if x["split"] == "val"}
    best = int(final(tmp_path, config, images, "best").step)
    assert validations[best] == max(validations.values())
    assert int(final(tmp_path, config, images, "latest").step) == 12
    assert {entry.name for entry in tmp_path.iterdir()} == {"checkpoints", "metrics.jsonl", "tensorboard"}


def test_validation_tasks_are_the_same_every_time_and_do_not_depend_on_their_number(config, images):
    state = train.fresh_state(config, (16, 16, 1))
    evaluator = Evaluator(config, images["val"], "val")
    few, many = (evaluator(state.params, state.stats, n) for n in (7, 40))
    np.testing.assert_array_equal(few.accuracies, many.accuracies[:7])
    assert many.accuracies.shape == (40,)


def test_interval_is_students_t():
    evaluation = Evaluation(np.array([0.2, 0.4, 0.6]), np.zeros(3))
    np.testing.assert_allclose(evaluation.ci95, 4.302653 * 0.2 / np.sqrt(3), rtol=1e-6)
    np.testing.assert_allclose(evaluation.accuracy, 0.4)


@pytest.mark.parametrize(
    ("schedule", "changes", "rates"),
    [
        ("constant", {}, {0: 1.0, 99: 1.0}),
        ("step", {"milestones": (4, 8), "factor": 0.1}, {0: 1.0, 3: 1.0, 4: 0.1, 7: 0.1, 8: 0.01, 50: 0.01}),
        ("step", {"milestones": (4,), "factor": 0.5, "period": 3}, {4: 1.0, 5: 1.0, 6: 0.5}),
        ("cosine", {}, {0: 1.0, 6: 0.5, 12: 0.0}),
        ("cosine", {"period": 6}, {5: 1.0, 6: 0.5, 11: 0.5}),
    ],
)
def test_schedules(config, schedule, changes, rates):
    config.outer.schedule, config.outer.rate = schedule, 1.0
    for name, value in changes.items():
        config.outer[name] = value
    learning_rate = experiment.build_schedule(config)
    for step, rate in rates.items():
        np.testing.assert_allclose(learning_rate(step), rate, rtol=1e-5, atol=1e-6, err_msg=str(step))


def test_checkpoint_of_another_model_is_refused(config, images, tmp_path):
    config.train.steps = 1
    train.train(config, images, tmp_path)
    config.model.width = 3
    with pytest.raises(DataError, match="of another model"):
        final(tmp_path, config, images)


def test_a_missing_or_damaged_checkpoint_is_refused(config, images, tmp_path):
    with pytest.raises(DataError, match="train first"):
        final(tmp_path, config, images)
    config.train.steps = 1
    train.train(config, images, tmp_path)
    for file in (tmp_path / "checkpoints" / "latest" / "1" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot read the checkpoint.*latest/1"):
        final(tmp_path, config, images)


def test_metrics_after_a_crash(tmp_path):
    lines = [
        '{"step": 5, "split": "train", "loss": 1.0}\n',
        '{"step": 10, "split": "train", "loss": 0.5}\n',
        '{"step": 1',
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    with MetricsWriter(tmp_path, resume_step=5) as metrics:
        metrics.write(10, "train", loss=0.25)
    assert [(r["step"], r["loss"]) for r in records(tmp_path)] == [(5, 1.0), (10, 0.25)]


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
