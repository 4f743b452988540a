"""Numbers that are infinite or none: found, explained, kept to be looked at, or left out."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maml_jax import config as config_lib
from maml_jax import nonfinite, train, tree
from maml_jax.checkpoint import Checkpoints
from maml_jax.experiment.method import build_outer
from maml_jax.nonfinite import NotFinite, TaskReport
from tests.helpers import TINY, assert_same, experiment, image_tasks
from tests.models import tiny_config


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spoiled:
    """Tasks of which one has an image with an entry that is no number, in its support or its query set."""

    tasks: object
    task: jax.Array
    part: str = dataclasses.field(metadata={"static": True}, default="query_x")

    def sample(self, index):
        episode = self.tasks.sample(index)
        bad = jnp.where(index == self.task, jnp.nan, 0.0)
        return episode._replace(**{self.part: getattr(episode, self.part) + bad})


def spoiled(task, part="query_x", **training):
    splits = {split: image_tasks(split) for split in ("train", "val", "test")}
    return experiment(tasks={**splits, "train": Spoiled(splits["train"], np.int32(task), part)}, **training)


def broken_after(step):
    """An optimiser that makes the parameters NaN in that meta-step, counted from 1."""
    return optax.scale_by_schedule(lambda count: jnp.where(count < step - 1, -0.1, jnp.nan))


def folder(path):
    path.mkdir()
    return path


def latest(workdir, of):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.restore("latest", of.fresh_state())


@pytest.mark.parametrize(
    ("when", "step"), [({}, 5), ({"checkpoint_every": 3}, 3), ({"validate_every": 6, "checkpoint_every": 2}, 4)]
)
def test_training_stops_with_the_last_checkpoint_that_is_finite(tmp_path, when, step):
    broken = experiment(optimizer=broken_after(6), **when)
    with pytest.raises(NotFinite, match=r"meta-step 6: it leads to parameters .*outer\.clip") as caught:
        train.train(broken, tmp_path)
    assert caught.value.step == 6
    state = latest(tmp_path, broken)
    assert int(state.step) == step
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.stats)))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step("best") in (None, 4)


@pytest.mark.parametrize(
    ("part", "what"),
    [("query_x", "the query loss is nan"), ("support_x", "the support loss before inner step 1 is nan")],
)
def test_the_task_and_what_came_first_are_named_and_kept(tmp_path, part, what):
    """Task 13 is the second of meta-step 7."""
    of = spoiled(13, part)
    with pytest.raises(NotFinite, match=f"meta-step 7: task 2 of 2: {what}") as caught:
        train.train(of, tmp_path)
    (kept,) = (tmp_path / nonfinite.FOLDER).iterdir()
    assert str(kept) in caught.value.facts
    with np.load(kept) as file:
        assert file["step"] == 6
        assert np.isnan(file[f"episodes/{part}"][1]).all()
        assert np.isfinite(file[f"episodes/{part}"][0]).all()
    sound = train.train(experiment(steps=6, validate_every=0), folder(tmp_path / "sound"))
    with np.load(kept) as file:
        for name, leaf in tree.by_name({"params": sound.params}).items():
            np.testing.assert_array_equal(file[name], leaf)


def test_meta_steps_are_left_out(tmp_path, capsys):
    """The state is that of a training that never saw them; and they are counted."""
    of = spoiled(13, on_nonfinite="skip")
    state = train.train(of, tmp_path)
    assert "1 not finite, left out" in capsys.readouterr().err
    assert int(state.step) == 12
    before = train.train(experiment(steps=6), folder(tmp_path / "before"))
    advance = jax.jit(lambda s, i: train.meta_step(of.method, of.optimizer, s, train.sample_batch(of.tasks, i), 1))
    expected = jax.device_get(before)
    for step in range(7, 12):
        expected, _ = advance(expected, 2 * step + np.arange(2, dtype=np.int32))
    assert_same(jax.device_get(state.params), jax.device_get(expected.params), 1e-4)
    lines = (tmp_path / "metrics.jsonl").read_text()
    assert lines.count('"skipped": 1') == 1


def test_if_all_would_be_left_out_training_stops(tmp_path):
    broken = experiment(optimizer=broken_after(4), on_nonfinite="skip")
    with pytest.raises(NotFinite, match=r"none of \d meta-steps from here on") as caught:
        train.train(broken, tmp_path)
    assert "on_nonfinite" not in caught.value.facts


def test_clipping_hides_no_infinite_gradient():
    rule = build_outer(tiny_config())
    params = {"w": jnp.ones(3)}
    update, _ = rule.update({"w": jnp.array([1.0, 1e9, jnp.inf])}, rule.init(params), params)
    assert np.isfinite(update["w"][:2]).all()
    assert not np.isfinite(update["w"][2])


BURST = ["--config.inner.encoder_rate=1e18", "--config.model.norm=global"]


@pytest.mark.parametrize("debug", [[], ["--config.debug=True"]])
def test_what_was_kept_is_taken_again(launch, tmp_path, debug):
    run = tmp_path / "run"
    status, _, err = launch("--workdir", run, *TINY, *BURST, *debug)
    jax.config.update("jax_debug_nans", False)
    assert status == 2
    message = next(line for line in err.splitlines() if line.startswith("error: "))
    assert "meta-step 1: task 1 of 2" in message
    file = re.search(r"replay (\S+) takes", message)[1]
    status, out, _ = launch("replay", file)
    assert status == 1
    assert out.splitlines()[0] == "meta-step 1, 2 tasks"
    assert "task 2: support losses" in out
    assert "tensors of the gradient not finite" in out
    mild = tmp_path / "mild.npz"
    with np.load(file) as arrays:
        np.savez(mild, **{**arrays, "config": str(arrays["config"]).replace("1e+18", "0.01")})
    status, out, _ = launch("replay", mild)
    assert status == 0
    assert "0 of" in out


def kept_arrays():
    """A meta-step whose parameters are not all there."""
    images = np.zeros((2, 3, 16, 16, 1), np.float32)
    labels = np.arange(6, dtype=np.int32).reshape(2, 3) % 3
    parts = {"support_x": images, "support_y": labels, "query_x": images, "query_y": labels}
    config = config_lib.to_json(tiny_config())
    return {"config": config, "step": np.int32(0), **{f"episodes/{name}": value for name, value in parts.items()}}


def test_what_is_said_of_a_task():
    """The first of what is not finite, and not all of it where that is much."""
    assert TaskReport(np.array([1.0, 2.0]), 3.0, (), 9).first == ""
    assert TaskReport(np.array([1.0, np.inf]), np.nan, ("a",), 9).first == "the support loss before inner step 2 is inf"
    assert TaskReport(np.array([]), np.inf, ("a",), 9).first == "the query loss is inf"
    assert TaskReport(np.array([]), 1.0, ("a", "b"), 9).first == "the meta-gradient of a, b is not finite"
    report = TaskReport(np.array([1.0]), 1.0, tuple("abcde"), 9)
    assert report.first == "the meta-gradient of a, b, c and 2 more is not finite"
    assert str(report).startswith("support losses 1; query loss 1; 5 of 9 tensors of the gradient not finite: the meta")


def test_a_file_that_is_none(launch, tmp_path):
    for name, write in {
        "lacking.npz": None,
        "text.npz": lambda path: path.write_text("x"),
        "other.npz": lambda path: np.savez(path, config="{}", a=1),
        "pickled.npz": lambda path: np.savez(path, config=np.array({}, object)),
        "misfit.npz": lambda path: np.savez(path, **kept_arrays()),
    }.items():
        if write:
            write(tmp_path / name)
        status, _, err = launch("replay", tmp_path / name)
        assert status == 2, name
        assert name in err
        assert "Traceback" not in err
