"""Supervised training of the encoder before meta-training."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax.checkpoint import Checkpoints
from maml_jax.data.sampler import ImageTasks, TaskSpec
from tests.helpers import TINY

PRETRAINED = [*TINY, "--config.train.pretrain=4", "--config.train.pretrain_batch=8"]


def arrays(folder, kind="latest"):
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return checkpoints.read(kind)[0]


@pytest.mark.parametrize("rotations", [False, True])
def test_labels_are_the_classes_of_the_split(rotations):
    """Every pixel of a class's images is its number; a turned class is another one."""
    pixels = np.repeat(np.arange(6, dtype=np.uint8), 4)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    spec = TaskSpec(0, "train", way=4, shot=1, query=2, rotations=rotations, split_labels=True)
    tasks = ImageTasks(spec, pixels, np.arange(0, 25, 4, dtype=np.int32))
    found = [tasks.sample(jnp.int32(i)) for i in range(8)]
    for episode in found:
        seen = np.rint(np.asarray(episode.query_x)[:, 0, 0, 0] * 255)
        assert len(np.unique(episode.query_y)) == 4
        np.testing.assert_array_equal(episode.query_y // (4 if rotations else 1), seen)
    if rotations:
        assert np.unique(np.concatenate([e.query_y for e in found]) % 4).size == 4


def test_meta_training_starts_from_the_encoder(launch, tmp_path):
    """And what has been trained is not trained again."""
    run = tmp_path / "run"
    status, _, err = launch("--workdir", run, *PRETRAINED, "--config.train.steps=0")
    assert status == 0, err
    learned, start = arrays(run / "pretrain", "best"), arrays(run)
    assert learned["params.head.kernel"].shape[1] > 5
    assert start["params.head.kernel"].shape[1] == 5
    for name in start:
        if name.startswith("params.encoder"):
            np.testing.assert_array_equal(start[name], learned[name])
    scores = [json.loads(line) for line in (run / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in scores if row["split"] == "val"] == [2, 4]
    status, _, err = launch("--workdir", run, *PRETRAINED, "--config.train.steps=0")
    assert status == 0
    assert "supervised" not in err
    status, _, err = launch("--workdir", run, *PRETRAINED, "--config.train.pretrain=5")
    assert status == 2
    assert "train.pretrain" in err


def test_pretraining_goes_on_where_it_stopped(launch, tmp_path):
    """Killed at its second validation, it ends as one that was not."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert launch("--workdir", whole, *PRETRAINED)[0] == 0
    import maml_jax.train

    validate, calls = maml_jax.train._Run._validate, []

    def fail(self, step):
        calls.append(step)
        if len(calls) == 2:
            raise KeyboardInterrupt
        validate(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maml_jax.train._Run, "_validate", fail)
        assert launch("--workdir", cut, *PRETRAINED)[0] != 0
    status, _, err = launch("--workdir", cut, *PRETRAINED)
    assert status == 0
    assert "continuing at meta-step 2 of 4" in err
    for name, leaf in arrays(whole).items():
        np.testing.assert_array_equal(leaf, arrays(cut)[name])


def test_a_start_that_is_given_twice_is_refused(launch, tmp_path):
    status, _, err = launch("--workdir", tmp_path / "run", *PRETRAINED, "--config.train.start=glyphs_5w1s")
    assert status == 2
    assert "train.pretrain=4 and train.start='glyphs_5w1s'" in err
